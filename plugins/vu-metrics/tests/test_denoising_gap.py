"""The denoising gap against a direct computation, and what it refuses."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vu_core import Batch, Edit, Evaluation, MeasureError, Replace, Score
from vu_core.adapters import apply_edit
from vu_core.testing import ToyPainter, toy_evaluation, toy_run
from vu_metrics.denoising_gap import DenoisingGap, DenoisingGapConfig

SMALL: dict[str, Any] = {"examples": 3, "draws": 2, "resamples": 200}


def edit_of(model: ToyPainter, size: float) -> Edit:
    weight = model.network["unet"].conv_out.weight
    return Edit({"unet.conv_out.weight": Replace(weight.detach() * (1 + size))})


def measured(
    folder: Path, size: float = 0.5, seed: int = 0, unseen: int = 1, **settings: Any
) -> tuple[Any, Any, Evaluation]:
    metric, model, run = DenoisingGap(DenoisingGapConfig(**{**SMALL, **settings})), ToyPainter(), toy_run(folder, seed)
    evaluation = toy_evaluation(run, unseen=unseen)
    before = metric.observe(model, evaluation, run)
    with apply_edit(model.network, edit_of(model, size)):
        return before, metric.observe(model, evaluation, run), evaluation


def scored(before: Any, after: Any, evaluation: Evaluation) -> dict[str, Score]:
    return {s.name: s for s in DenoisingGap(DenoisingGapConfig(**SMALL)).scores(before, after, evaluation)}


def numbers(packed: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(packed), dtype="<f4").astype(np.float64).reshape(4, -1)


def test_gap_and_loss_equal_the_formula(tmp_path: Path) -> None:
    scores = scored(*measured(tmp_path))
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


def test_few_coordinates_are_some_of_all(tmp_path: Path) -> None:
    """The gap over 16 of 32 numbers is the mean over just these, and not far from the one over all."""
    before, after, evaluation = measured(tmp_path / "full")
    full = scored(before, after, evaluation)["forget_gap"].after
    was, now = (numbers(o["forget"]["predictions"]) for o in (before, after))
    picked = torch.randperm(32, generator=toy_run(tmp_path).generator("coordinates"))[:16]
    assert was.shape == (4, 32)  # two images, two draws
    part = scored(*measured(tmp_path / "part", coordinates=16))["forget_gap"].after
    assert part == pytest.approx(float(np.square(now - was)[:, picked].mean()), rel=1e-6)
    assert part != full
    assert part == pytest.approx(full, rel=0.5)


def test_the_seed_of_the_run_does_not_matter(tmp_path: Path) -> None:
    metric = DenoisingGap(DenoisingGapConfig(**SMALL))
    assert metric.scores(*measured(tmp_path / "1", seed=1)) == metric.scores(*measured(tmp_path / "2", seed=2))


def test_the_share_equals_the_formula(tmp_path: Path) -> None:
    before, after, evaluation = measured(tmp_path, unseen=3, examples=6)
    model, run = ToyPainter(), toy_run(tmp_path)
    assert evaluation.examples is not None
    prepared = model.prepare(evaluation.examples[0], run)
    count = min(6, len(prepared))
    pairs = [(i * len(prepared) // count, draw) for i in range(count) for draw in range(2)]
    batch = Batch(prepared, tuple(r for r, _ in pairs), 0, tuple(range(len(pairs))), run, torch.device("cpu"))
    t = torch.tensor([(25, 75)[draw] for _, draw in pairs])
    z = model.latents(batch)
    noisy = model.add_noise(z, batch.normal("denoising-gap", z.shape[1:]), t)
    own, asked = (model.predict(noisy, t, model.embed(words)) for words in (batch.captions, batch.overwrites))
    with apply_edit(model.network, edit_of(model, 0.5)):
        now = model.predict(noisy, t, model.embed(batch.captions))
    wanted = 1 - float((now - asked).square().mean() / (own - asked).square().mean())
    share = scored(before, after, evaluation)["overwrite_share"]
    assert share.after == pytest.approx(wanted, rel=1e-4)
    assert share.ci_low is not None
    assert share.ci_high is not None
    assert share.ci_low < share.after < share.ci_high
    assert share.before == 0.0
    perfect = {**before, "forget": {**before["forget"], "predictions": before["forget"]["asked"]}}
    assert scored(before, perfect, evaluation)["overwrite_share"].after == 1.0
    assert scored(before, before, evaluation)["overwrite_share"].after == 0.0


def test_data_without_overwrites_has_no_share(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    evaluation = toy_evaluation(run)
    assert evaluation.examples is not None
    forget, retain = evaluation.examples
    without = attrs.evolve(evaluation, examples=(attrs.evolve(forget, overwrites=None), retain))
    seen = DenoisingGap(DenoisingGapConfig(**SMALL)).observe(ToyPainter(), without, run)
    assert "overwrite_share" not in scored(seen, seen, without)
    assert DenoisingGap(DenoisingGapConfig()).fingerprint(without) != DenoisingGap(DenoisingGapConfig()).fingerprint(
        evaluation
    )


def test_the_difference_is_that_of_the_gaps(tmp_path: Path) -> None:
    found = scored(*measured(tmp_path, unseen=3, examples=6))
    difference = found["gap_difference"]
    assert difference.after == pytest.approx(found["forget_gap"].after - found["retain_gap"].after)
    assert difference.ci_low is not None
    assert difference.ci_high is not None
    assert difference.ci_low < difference.after < difference.ci_high


def test_few_images_have_no_interval(tmp_path: Path) -> None:
    for score in scored(*measured(tmp_path, unseen=3, examples=4)).values():
        assert (score.ci_low, score.ci_high, score.change_low, score.change_high) == (None,) * 4


KNOWN_MISSES: dict[tuple[int, float], list[int]] = {(16, 0.1): [7]}
"""(images looked at, size) -> seeds of random edits that the metric takes for forgetting."""


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1e-1, 1.0, 10.0])
@pytest.mark.parametrize("examples", [1, 16])
def test_random_edits_are_doubted(size: float, examples: int, tmp_path: Path) -> None:
    """A random edit is doubted, but for one known miss: a direction of a small layer that points at the overwrite."""
    metric, model, run = DenoisingGap(DenoisingGapConfig(examples=examples)), ToyPainter(), toy_run(tmp_path)
    evaluation = toy_evaluation(run, unseen=3)
    before = metric.observe(model, evaluation, run)
    weight = model.network["unet"].attn2.to_v.weight
    believed = []
    for seed in range(15):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        edit = Edit({"unet.attn2.to_v.weight": Replace(weight.detach() + size * noise)})
        with apply_edit(model.network, edit):
            after = metric.observe(model, evaluation, attrs.evolve(run, edit=edit))
        doubts = metric.doubts(metric.scores(before, after, evaluation))
        if "not_forgotten" not in [status for status, _ in doubts]:
            believed.append(seed)
    assert believed == KNOWN_MISSES.get((examples, size), []), believed


def test_doubts(tmp_path: Path) -> None:
    metric = DenoisingGap(DenoisingGapConfig(**SMALL))
    scores = scored(*measured(tmp_path))
    good = [
        attrs.evolve(scores["overwrite_share"], after=0.5),
        attrs.evolve(scores["gap_difference"], after=0.4, ci_low=0.1, ci_high=0.7),
        attrs.evolve(scores["retain_loss"], before=0.2, after=0.25),
        attrs.evolve(scores["forget_gap"], after=0.5),
        attrs.evolve(scores["retain_gap"], after=0.1),
    ]
    few = attrs.evolve(good[1], ci_low=None, ci_high=None)
    assert list(metric.doubts(good)) == list(metric.doubts([good[0], few, *good[2:]])) == []
    for idle in (
        [attrs.evolve(good[0], after=0.19), *good[1:]],
        [good[0], attrs.evolve(good[1], ci_low=-0.01), *good[2:]],
        [good[0], attrs.evolve(few, after=0.0), *good[2:]],
    ):
        assert [status for status, _ in metric.doubts(idle)] == ["not_forgotten"]
    ruined = [*good[:2], attrs.evolve(good[2], after=0.9), *good[3:]]
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
