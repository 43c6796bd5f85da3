"""Losses, a listener and a metric that the tests of elastic parameters share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch.nn import functional as F

from vu_core import Batch, Evaluation, LowRank, Register, Run, Score, digest, hookimpl
from vu_core.testing.toys import TOY_SOURCE

SPACE = (8, 4, 2)


def toy_losses(model, ask=lambda predict, *questions: predict(*questions)):
    """Regression of the prediction on the noise; ``ask`` may wrap the forward pass."""

    def losses(batches: Mapping[str, Batch]):
        out = {}
        for side, batch in batches.items():
            z, t = model.latents(batch), batch.integers("timestep", 0, model.timesteps)
            n = batch.normal("noise", z.shape[1:])
            prediction = ask(model.predict, model.add_noise(z, n, t), t, model.embed(batch.captions))
            out[side] = F.mse_loss(prediction, n)
        return out

    return losses


@attrs.define
class FirstGradient:
    """Keeps the gradient of the first AdamW step, whose first moment is 0.1 times that."""

    gradient: torch.Tensor | None = None
    side: str = "outside"

    def prepare(self, model, theta, data, run):
        pass

    def penalty(self):
        return None

    def after_step(self, optimizer):
        if self.gradient is None:
            moments = [optimizer.state[p]["exp_avg"] for group in optimizer.param_groups for p in group["params"]]
            self.gradient = torch.cat([moment.flatten() for moment in moments]) / 0.1

    def state(self):
        return {}


@attrs.frozen
class KnownConfig:
    """No settings."""


class Known:
    """Scores that are known for every rank: UA falls below rank 4 in attn1, IRA below rank 2 in attn2.

    Keeps what it was asked for, and can be told to end in the middle.
    """

    Config = KnownConfig
    source = TOY_SOURCE
    version = "1"
    asked: ClassVar[list[tuple[str, tuple[int, ...]]]] = []
    ends_after: ClassVar[tuple[int, type[BaseException]] | None] = None

    def __init__(self, config: KnownConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        return digest("known", str(evaluation.items))

    def observe(self, model: Any, evaluation: Evaluation, run: Run) -> dict[str, Any]:
        self.asked.append((evaluation.split, tuple(sorted({item.seed for item in evaluation.items}))))
        if self.ends_after is not None and len(self.asked) > self.ends_after[0]:
            raise self.ends_after[1]
        return {"ranks": {name: part.rank for name, part in run.edit or () if isinstance(part, LowRank)}}

    def scores(self, before: Mapping[str, Any], after: Mapping[str, Any], evaluation: Evaluation) -> tuple[Score, ...]:
        found = known_scores(after["ranks"])
        return tuple(Score(name, value, "fraction", "up", len(evaluation.items)) for name, value in found.items())

    def doubts(self, scores: Any) -> tuple[()]:
        return ()


def known_scores(ranks: Mapping[str, int]) -> dict[str, float]:
    """Return UA and IRA of an adapter by the ranks of its two attentions."""
    first, second = (next((r for name, r in ranks.items() if block in name), 0) for block in ("attn1", "attn2"))
    return {"ua": 0.99 if first >= 4 else 0.9, "ira": 0.95 if second >= 2 else 0.8}


@hookimpl
def vu_register_metrics(register: Register) -> None:
    """Name the metric."""
    register("known", "elastic_toys:Known", summary="scores that are known for every rank", needs=("generate",))
