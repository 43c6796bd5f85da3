"""Making a model trainable without touching it, and looking at it through an edit."""

from vu_core.adapters.applying import apply_edit, check_fits, compose
from vu_core.adapters.arithmetic import STRATEGIES, combined, negated, scaled
from vu_core.adapters.carrying import Carried
from vu_core.adapters.deltas import DeltaSize, delta_size, zero_fraction
from vu_core.adapters.full import Full, FullConfig, FullTheta, difference
from vu_core.adapters.layers import Factors, LoraLayer, Switch
from vu_core.adapters.lora import Lora, LoraConfig, LoraTheta, MaskedLora
from vu_core.adapters.refitting import densified, refit
from vu_core.adapters.subsets import SUBSETS, check_subset, subset
from vu_core.edit_file import edit_digest, load_edit, save_edit

__all__ = [
    "STRATEGIES",
    "SUBSETS",
    "Carried",
    "DeltaSize",
    "Factors",
    "Full",
    "FullConfig",
    "FullTheta",
    "Lora",
    "LoraConfig",
    "LoraLayer",
    "LoraTheta",
    "MaskedLora",
    "Switch",
    "apply_edit",
    "check_fits",
    "check_subset",
    "combined",
    "compose",
    "delta_size",
    "densified",
    "difference",
    "edit_digest",
    "load_edit",
    "negated",
    "refit",
    "save_edit",
    "scaled",
    "subset",
    "zero_fraction",
]
