"""The denoising gap against a direct computation, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from vu_core import Batch, Edit, Evaluation, MeasureError, Replace
from vu_core.adapters import apply_edit
from vu_core.testing import ToyPainter, toy_evaluation, toy_run
from vu_metrics.denoising_gap import DenoisingGap, DenoisingGapConfig

SMALL: dict[str, Any] = {"examples": 3, "draws": 2, "resamples": 200}


def edit_of(model: ToyPainter, size: float) -> Edit:
    weight = model.network["unet"].conv_out.weight
    return Edit({"unet.conv_out.weight": Replace(weight.detach() * (1 + size))})


def measured(folder: Path, size: float = 0.5, seed: int = 0, **settings: Any) -> tuple[Any, Any, Evaluation]:
    metric, model, run = DenoisingGap(DenoisingGapConfig(**{**SMALL, **settings})), ToyPainter(), toy_run(folder, seed)
    evaluation = toy_evaluation(run)
    before = metric.observe(model, evaluation, run)
    with apply_edit(model.network, edit_of(model, size)):
        return before, metric.observe(model, evaluation, run), evaluation


def test_gap_and_loss_equal_the_formula(tmp_path: Path) -> None:
    scores = {s.name: s for s in DenoisingGap(DenoisingGapConfig(**SMALL)).scores(*measured(tmp_path))}
    model, run = ToyPainter(), toy_run(tmp_path)
    evaluation = toy_evaluation(run)
    assert evaluation.examples is not None
    for examples in evaluation.examples:
        prepared = model.prepare(examples, run)
        count = min(3, len(examples))
        rows = [i * len(examples) // count for i in range(count)]
        pairs = [(row, draw) for row in rows for draw in range(2)]
        batch = Batch(prepared, tuple(r for r, _ in pairs), 0, tuple(range(len(pairs))), run, torch.device("cpu"))
        t = torch.tensor([(25, 75)[draw] for _, draw in pairs])
        z = model.latents(batch)
        noise = batch.normal("denoising-gap", z.shape[1:])
        noisy, words = model.add_noise(z, noise, t), model.embed(batch.captions)
        before = model.predict(noisy, t, words)
        with apply_edit(model.network, edit_of(model, 0.5)):
            after = model.predict(noisy, t, words)
        side = examples.side
        assert scores[f"{side}_gap"].after == pytest.approx(float((after - before).square().mean()), rel=1e-5)
        assert scores[f"{side}_gap"].before == 0.0
        assert scores[f"{side}_loss"].before == pytest.approx(float((before - noise).square().mean()), rel=1e-5)
        assert scores[f"{side}_loss"].after == pytest.approx(float((after - noise).square().mean()), rel=1e-5)
        assert scores[f"{side}_gap"].n == count


def test_few_coordinates_estimate_all(tmp_path: Path) -> None:
    full = DenoisingGap(DenoisingGapConfig(**SMALL)).scores(*measured(tmp_path / "full"))
    part = DenoisingGap(DenoisingGapConfig(**SMALL)).scores(*measured(tmp_path / "part", coordinates=16))
    assert part[0].after != full[0].after
    assert part[0].after == pytest.approx(full[0].after, rel=1.0)


def test_the_seed_of_the_run_does_not_matter(tmp_path: Path) -> None:
    metric = DenoisingGap(DenoisingGapConfig(**SMALL))
    assert metric.scores(*measured(tmp_path / "1", seed=1)) == metric.scores(*measured(tmp_path / "2", seed=2))


def test_doubts(tmp_path: Path) -> None:
    metric = DenoisingGap(DenoisingGapConfig(**SMALL))
    scores = {s.name: s for s in metric.scores(*measured(tmp_path))}
    good = [
        attrs.evolve(scores["forget_gap"], after=0.5),
        attrs.evolve(scores["retain_gap"], after=0.1),
        attrs.evolve(scores["retain_loss"], before=0.2, after=0.25),
    ]
    assert list(metric.doubts(good)) == []
    idle = [attrs.evolve(good[0], after=0.05), *good[1:]]
    assert [status for status, _ in metric.doubts(idle)] == ["not_forgotten"]
    ruined = [*good[:2], attrs.evolve(good[2], after=0.9)]
    assert [status for status, _ in metric.doubts(ruined)] == ["retain_collapsed"]


def test_a_destroyed_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="not finite"):
        measured(tmp_path, size=float("nan"))


def test_without_unseen_images_there_is_no_gap(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    with pytest.raises(MeasureError, match="unseen images of both sides"):
        DenoisingGap(DenoisingGapConfig()).observe(ToyPainter(), attrs.evolve(toy_evaluation(run), examples=None), run)


def test_other_images_before_and_after_are_refused(tmp_path: Path) -> None:
    _, after, evaluation = measured(tmp_path)
    fewer, _, _ = measured(tmp_path, examples=1)
    with pytest.raises(MeasureError, match="not about the same images"):
        DenoisingGap(DenoisingGapConfig(**SMALL)).scores(fewer, after, evaluation)
