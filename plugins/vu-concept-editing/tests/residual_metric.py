"""A metric for tests of the search: scores that follow from the residuals that UCE tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from vu_core import Evaluation, Register, Run, Score, digest, hookimpl
from vu_core.testing.toys import TOY_SOURCE


@attrs.frozen
class ResidualConfig:
    """No settings."""


class Residual:
    """UA is what is read as the guide, IRA what is left alone; keeps which split and seeds it was asked for."""

    Config = ResidualConfig
    source = TOY_SOURCE
    version = "1"
    asked: ClassVar[list[tuple[str, tuple[int, ...]]]] = []

    def __init__(self, config: ResidualConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        return digest("residual", str(evaluation.items))

    def observe(self, model: Any, evaluation: Evaluation, run: Run) -> dict[str, Any]:
        self.asked.append((evaluation.split, tuple(sorted({item.seed for item in evaluation.items}))))
        if run.edit is None:
            return {"ua": 0.0, "ira": 1.0}
        residual = run.edit.facts["residual"]["attn2.to_v"]
        return {"ua": 1 - residual["erased_after"] / residual["erased_before"], "ira": 1 - residual["preserved"]}

    def scores(self, before: Mapping[str, Any], after: Mapping[str, Any], evaluation: Evaluation) -> tuple[Score, ...]:
        n = len(evaluation.items)
        return tuple(Score(k, after[k], "fraction", "up", n, before=before[k]) for k in ("ua", "ira"))

    def doubts(self, scores: Any) -> tuple[()]:
        return ()


@hookimpl
def vu_register_metrics(register: Register) -> None:
    """Name the metric."""
    register("residual", "residual_metric:Residual", summary="scores of what UCE tells", needs=("generate",))
