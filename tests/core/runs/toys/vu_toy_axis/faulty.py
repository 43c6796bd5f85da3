"""A weighting that fails, a method that wraps one, a method that misuses the core."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch

from vu_core import Edit, ForgetRetain, Run, Source, setting
from vu_core.ops.masks import pack_mask
from vu_core.training import Training

SOURCE = Source("a toy", "https://example.org", "own")


@attrs.frozen
class TornConfig:
    after: int = setting(0, help="calls that succeed", ge=0)
    exits: bool = setting(False, help="end the program instead of failing")


class Torn:
    Config = TornConfig
    source: ClassVar[Source] = SOURCE
    linear: ClassVar[bool] = False

    def __init__(self, config: TornConfig) -> None:
        self.config = config
        self.calls = 0

    def coefficients(self, gram: Any, losses: Any, state: Any) -> tuple[float, float]:
        self.calls += 1
        if self.calls > self.config.after:
            fail(exits=self.config.exits)
        return 1.0, 1.0


def fail(*, exits: bool) -> None:
    """Fail in a function of the package that belongs to no class."""
    if exits:
        sys.exit(0)
    raise KeyError("boom")


@attrs.frozen
class WrapConfig:
    training: Training = setting(Training(steps=12, batch_size=2, lr=0.05, checkpoint_every=0.0), help="the loop")


class Wrap:
    Config = WrapConfig
    source: ClassVar[Source] = SOURCE
    descends = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"parameters": {"name": "lora", "targets": ["to_q"]}}

    def __init__(self, config: WrapConfig) -> None:
        self.config = config

    def unlearn(self, model: Any, data: ForgetRetain, run: Run) -> Edit:
        return run.unlearner("toy-push").unlearn(model, data, run)


@attrs.frozen
class MisuseConfig:
    tool: bool = setting(True, help="misuse a tool of the core, else what the core does by itself")


class Misuse:
    Config = MisuseConfig
    source: ClassVar[Source] = SOURCE
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: MisuseConfig) -> None:
        self.config = config

    def unlearn(self, model: Any, data: ForgetRetain, run: Run) -> Edit:
        if self.config.tool:
            pack_mask(torch.zeros(3, 2).numpy())  # type: ignore[arg-type]
        return run.candidates(model)  # type: ignore[return-value]  # it has no parameters
