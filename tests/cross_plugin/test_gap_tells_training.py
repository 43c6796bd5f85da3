"""The denoising gap calls a trained edit forgetting and a random one not, on a tiny Stable Diffusion pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from vu_core import Edit, Evaluation, Examples, ForgetRetain, LowRank, Model, Run, Score, Side
from vu_core.adapters import Lora, LoraConfig, apply_edit
from vu_core.plugins import discover
from vu_core.training import Training
from vu_diffusers.tiny import tiny_model
from vu_fade.fade import Fade, FadeConfig
from vu_metrics.denoising_gap import DenoisingGap, DenoisingGapConfig


def table(side: Side, first: int) -> Examples:
    """Eight images of noise, other ones for every ``first``."""

    def load(row: int, generator: torch.Generator) -> Tensor:
        return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(first + row)) * 2 - 1

    caption = {"forget": "An image of cat.", "retain": "An image of dog."}[side]
    overwrites = ("An image of a fish.",) * 8 if side == "forget" else None
    return Examples(side=side, captions=(caption,) * 8, overwrites=overwrites, load=load)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    weighting = discover(installed=False).registry.get("weighting", "simple").load()
    return Run(
        seed=3,
        device="cpu",
        precision="fp32",
        folder=tmp_path,
        cache=tmp_path,
        training=Training(steps=60, batch_size=4, lr=5e-3),
        parameters=Lora(LoraConfig(rank=4, alpha=4.0)),
        weighting=weighting(weighting.Config(forget_weight=0.3, retain_weight=1.0)),
    )


@pytest.fixture
def judged(model: Any, run: Run) -> Callable[[Edit, int], tuple[dict[str, Score], list[str]]]:
    """Return scores and doubts of an edit, on so many unseen images a side."""
    evaluation = Evaluation("held-out", (), {}, examples=(table("forget", 1000), table("retain", 2000)))
    unedited: dict[int, Any] = {}

    def judge(edit: Edit, images: int) -> tuple[dict[str, Score], list[str]]:
        metric = DenoisingGap(DenoisingGapConfig(examples=images))
        if images not in unedited:
            unedited[images] = metric.observe(model, evaluation, run)
        with apply_edit(model.network, edit):
            after = metric.observe(model, evaluation, attrs.evolve(run, edit=edit))
        scores = metric.scores(unedited[images], after, evaluation)
        return {score.name: score for score in scores}, [status for status, _ in metric.doubts(scores)]

    return judge


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1e-1, 1.0])
def test_random_edits_are_not_forgetting(size: float, model: Model, judged: Any) -> None:
    names = [
        name
        for name, weight in model.network.named_parameters()
        if name.startswith("unet") and name.endswith(("to_q.weight", "to_k.weight", "to_v.weight"))
    ]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        parts = {}
        for name in names:
            out, into = model.network.get_parameter(name).shape
            A, B = torch.randn(4, into, generator=generator), torch.randn(out, 4, generator=generator)
            parts[name] = LowRank(A, B * size, 4.0)
        for images in (1, 8):
            scores, doubts = judged(Edit(parts), images)
            assert "not_forgotten" in doubts, (seed, images)
            assert scores["overwrite_share"].after < 0.2


def test_a_trained_edit_is_forgetting(model: Any, run: Run, judged: Any) -> None:
    tables = ForgetRetain(table("forget", 0), table("retain", 100), table("forget", 200), table("retain", 300))
    edit = Fade(FadeConfig()).unlearn(model, tables.map(lambda examples: model.prepare(examples, run)), run)
    for images in (1, 8):
        scores, doubts = judged(edit, images)
        assert doubts == [], images
        assert 0.3 < scores["overwrite_share"].after < 1
