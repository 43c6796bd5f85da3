"""`vu`: remove a concept, a class or an identity from a trained vision model, and prove it.

The names below are all that a plugin needs besides `vu_core.ops`, `vu_core.adapters`, `vu_core.training` and
`vu_core.testing`, and for a command `vu_core.workbench` and `vu_core.exporting`. Importing them imports no torch.
"""

from vu_core.atomic import write_text
from vu_core.cache import cache_root
from vu_core.contracts import (
    Attribution,
    Audit,
    Check,
    Classifier,
    Dataset,
    Denoiser,
    Exporter,
    Host,
    Metric,
    Model,
    ModelPlugin,
    Observations,
    Parameters,
    Regularizer,
    TextToImage,
    Theta,
    Tokens,
    Trajectory,
    Unlearner,
    Weighting,
    torch_dtype,
)
from vu_core.data import (
    Batch,
    Concept,
    Evaluation,
    EvaluationItem,
    Examples,
    ForgetRetain,
    Judge,
    Manifest,
    Selection,
    Side,
    Split,
    digest,
)
from vu_core.edit import Edit, LowRank, Replace, Sparse
from vu_core.errors import (
    ConfigError,
    DataError,
    EditError,
    MeasureError,
    ModelError,
    PlanError,
    PluginError,
    RecordError,
    UnlearnError,
    VuError,
    did_you_mean,
    near_misses,
    together,
)
from vu_core.event import Event
from vu_core.hookspecs import Register, hookimpl
from vu_core.plan import Capability, Cost, ModelFacts, Plan
from vu_core.record import RunRecord
from vu_core.run import Report, Run, Section
from vu_core.score import Score, Scorecard, Status, Table
from vu_core.setting import setting
from vu_core.source import Source
from vu_core.stored_tensors import StoredTensor, base_hash, stored_tensors

__version__ = "0.1.0"

__all__ = [
    "Attribution",
    "Audit",
    "Batch",
    "Capability",
    "Check",
    "Classifier",
    "Concept",
    "ConfigError",
    "Cost",
    "DataError",
    "Dataset",
    "Denoiser",
    "Edit",
    "EditError",
    "Evaluation",
    "EvaluationItem",
    "Event",
    "Examples",
    "Exporter",
    "ForgetRetain",
    "Host",
    "Judge",
    "LowRank",
    "Manifest",
    "MeasureError",
    "Metric",
    "Model",
    "ModelError",
    "ModelFacts",
    "ModelPlugin",
    "Observations",
    "Parameters",
    "Plan",
    "PlanError",
    "PluginError",
    "RecordError",
    "Register",
    "Regularizer",
    "Replace",
    "Report",
    "Run",
    "RunRecord",
    "Score",
    "Scorecard",
    "Section",
    "Selection",
    "Side",
    "Source",
    "Sparse",
    "Split",
    "Status",
    "StoredTensor",
    "Table",
    "TextToImage",
    "Theta",
    "Tokens",
    "Trajectory",
    "UnlearnError",
    "Unlearner",
    "VuError",
    "Weighting",
    "base_hash",
    "cache_root",
    "did_you_mean",
    "digest",
    "hookimpl",
    "near_misses",
    "setting",
    "stored_tensors",
    "together",
    "torch_dtype",
    "write_text",
]
