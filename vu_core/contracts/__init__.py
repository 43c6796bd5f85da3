"""One protocol per plugin kind."""

from vu_core.contracts.attribution import Attribution
from vu_core.contracts.audit import Audit
from vu_core.contracts.command import Host
from vu_core.contracts.dataset import Dataset
from vu_core.contracts.exporter import Check, Exporter
from vu_core.contracts.metric import Metric, Observations
from vu_core.contracts.model import (
    Blocks,
    Classifier,
    Denoiser,
    Fresh,
    Headed,
    Model,
    ModelPlugin,
    TextToImage,
    Tokens,
    Trajectory,
    TransformerBlock,
    torch_dtype,
)
from vu_core.contracts.parameters import Parameters, Theta
from vu_core.contracts.regularizer import Regularizer
from vu_core.contracts.sequence import Sequence, SequenceTask
from vu_core.contracts.unlearner import Unlearner
from vu_core.contracts.weighting import Weighting

__all__ = [
    "Attribution",
    "Audit",
    "Blocks",
    "Check",
    "Classifier",
    "Dataset",
    "Denoiser",
    "Exporter",
    "Fresh",
    "Headed",
    "Host",
    "Metric",
    "Model",
    "ModelPlugin",
    "Observations",
    "Parameters",
    "Regularizer",
    "Sequence",
    "SequenceTask",
    "TextToImage",
    "Theta",
    "Tokens",
    "Trajectory",
    "TransformerBlock",
    "Unlearner",
    "Weighting",
    "torch_dtype",
]
