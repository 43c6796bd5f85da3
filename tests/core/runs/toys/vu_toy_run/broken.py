"""Methods and a metric that break one rule each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch

from vu_core import Edit, ForgetRetain, LowRank, Replace, Run, Score, Source, Sparse, setting
from vu_toy_run.parts import SOURCE, Gap, LoadedNet

WEIGHT = "unet.to_q.weight"


@attrs.frozen
class Nothing:
    pass


class _Method:
    Config: ClassVar[type[Any]] = Nothing
    source: ClassVar[Source] = SOURCE
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Any) -> None:
        self.config = config


class Empty(_Method):
    def unlearn(self, model: LoadedNet, data: ForgetRetain, run: Run) -> Edit:
        return Edit({})


@attrs.frozen
class IdentityConfig:
    kind: str = setting("low-rank", help="kind of part", choices=("low-rank", "sparse", "replace"))
    allowed: bool = setting(False, help="declare that an identity is a valid result")


class Identity(_Method):
    Config = IdentityConfig

    def unlearn(self, model: LoadedNet, data: ForgetRetain, run: Run) -> Edit:
        weight = dict(model.network.named_parameters())[WEIGHT]
        parts: dict[str, Any] = {
            "low-rank": LowRank(torch.ones(1, 4), torch.zeros(weight.shape[0], 1), 1.0),
            "sparse": Sparse(torch.tensor([0, 3]), torch.zeros(2), tuple(weight.shape)),
            "replace": Replace(weight.detach().clone()),
        }
        return Edit({WEIGHT: parts[self.config.kind]}, may_be_identity=self.config.allowed)


class NotFinite(_Method):
    def unlearn(self, model: LoadedNet, data: ForgetRetain, run: Run) -> Edit:
        weight = dict(model.network.named_parameters())[WEIGHT]
        return Edit({WEIGHT: Replace(torch.full_like(weight, float("nan")))})


@attrs.frozen
class MisfitConfig:
    name: str = setting("unet.to_z.weight", help="name of the tensor")


class Misfit(_Method):
    Config = MisfitConfig

    def unlearn(self, model: LoadedNet, data: ForgetRetain, run: Run) -> Edit:
        return Edit({self.config.name: Replace(torch.ones(3, 3))})


class NoEdit(_Method):
    def unlearn(self, model: LoadedNet, data: ForgetRetain, run: Run) -> Any:
        return {"unet.to_q.weight": 1}


@attrs.frozen
class DirtyConfig:
    trace: str = setting("weight", help="what is left behind")


class Dirty(_Method):
    """Returns a fine edit, but leaves something behind."""

    Config = DirtyConfig

    def unlearn(self, model: LoadedNet, data: ForgetRetain, run: Run) -> Edit:
        weight = dict(model.network.named_parameters())[WEIGHT]
        body: Any = model.network["unet"]
        traces = {
            "weight": lambda: weight.data[0, 0].add_(1e-6),
            "requires_grad": lambda: weight.requires_grad_(True),
            "mode": lambda: model.network.train(),
            "module": lambda: body.__setitem__("to_q", torch.nn.Linear(4, 8)),
            "buffer": lambda: body.register_buffer("extra", torch.zeros(1)),
            "grad": lambda: torch.set_grad_enabled(False),
            "rng": lambda: torch.rand(1),
            "python": lambda: __import__("random").random(),
            "numpy": lambda: __import__("numpy").random.rand(),
            "deterministic": lambda: torch.use_deterministic_algorithms(True),
            "dtype": lambda: torch.set_default_dtype(torch.float64),
            "none": lambda: None,
        }
        traces[self.config.trace]()
        return Edit({WEIGHT: Sparse(torch.tensor([1]), torch.tensor([0.5]), tuple(weight.shape))})


class NaN(Gap):
    def scores(self, before: Any, after: Any, evaluation: Any) -> tuple[Score, ...]:
        return (Score("toy", float("nan"), "length", "none", 1),)
