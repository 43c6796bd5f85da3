"""Making a model trainable without touching it, and looking at it through an edit."""

from vu_core.adapters.applying import apply_edit, compose
from vu_core.adapters.full import Full, FullConfig, FullTheta, difference
from vu_core.adapters.layers import Factors, LoraLayer, Switch
from vu_core.adapters.lora import Lora, LoraConfig, LoraTheta, MaskedLora
from vu_core.edit_file import edit_digest, load_edit, save_edit

__all__ = [
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
    "compose",
    "difference",
    "edit_digest",
    "load_edit",
    "save_edit",
]
