"""Conformance of a metric."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from vu_core.adapters import apply_edit
from vu_core.data import Evaluation
from vu_core.edit import Edit, Replace
from vu_core.errors import MeasureError
from vu_core.run import Run
from vu_core.score import Score
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toy_painter import ToyPainter
from vu_core.testing.toys import toy_evaluation, toy_run
from vu_core.testing.watching import Snapshot, nothing_global_changes


class MetricTests(PluginTests):
    """Checks of a metric; set ``plugin``.

    The model is a `ToyPainter` and the data are toy images, unless `make_model` and `make_evaluation` say otherwise.
    ``reads_evaluation = False`` for a metric that looks at the edit only.
    """

    reads_evaluation: ClassVar[bool] = True

    def make_model(self) -> Any:
        """Return a fresh model."""
        return ToyPainter()

    def make_evaluation(self, run: Run) -> Evaluation:
        """Return what the metric is asked about."""
        return toy_evaluation(run)

    def make_edit(self, model: Any) -> Edit:
        """Return an edit that the metric should notice."""
        name, weight = next(iter(model.network["unet"].named_parameters()))
        return Edit({f"unet.{name}": Replace(weight.detach() + 0.5)})

    def measure(self, folder: Path, config: Any = None, model: Any = None) -> tuple[Any, Any, Evaluation]:
        """Return what was observed before and after an edit, and the evaluation."""
        metric = self.plugin(self.config() if config is None else config)
        model = model or self.make_model()
        run = toy_run(folder, stage="measure")
        evaluation = self.make_evaluation(run)
        before = metric.observe(model, evaluation, run)
        edit = self.make_edit(model)
        with apply_edit(model.network, edit):
            after = metric.observe(model, evaluation, attrs.evolve(run, edit=edit))
        return before, after, evaluation

    def scores(self, folder: Path) -> tuple[Score, ...]:
        """Return the scores of one measurement."""
        result: tuple[Score, ...] = tuple(self.make().scores(*self.measure(folder)))
        return result

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the scores without fingerprint, and the doubts about them and about extreme scores."""
        metric = self.plugin(config)
        before, after, evaluation = self.measure(folder, config)
        scores = metric.scores(before, after, evaluation)
        doubts = [tuple(metric.doubts(scores)), *(tuple(metric.doubts(extreme(scores, x))) for x in EXTREMES)]
        return [*(attrs.evolve(score, fingerprint="") for score in scores), doubts]

    def test_scores_are_complete(self, tmp_path: Path) -> None:
        """Every score has a name, a unit, a direction, n, help and a fingerprint, and there is at least one."""
        scores = self.scores(tmp_path)
        assert scores, "no score"
        assert len({score.name for score in scores}) == len(scores), "two scores have one name"
        for score in scores:
            assert score.name, "a score has no name"
            assert score.unit, f"{score.name} has no unit"
            assert score.direction in ("up", "down", "none"), f"{score.name} has the direction {score.direction!r}"
            assert score.n >= 1, f"{score.name} has n = {score.n}"
            assert score.help, f"{score.name} has no help"
            assert score.fingerprint, f"{score.name} has no fingerprint"

    def test_scores_are_finite_and_in_range(self, tmp_path: Path) -> None:
        """NaN is never a score; fractions lie in [0, 1]; intervals contain their value."""
        for score in self.scores(tmp_path):
            for value in (score.before, score.after, score.ci_low, score.ci_high):
                assert value is None or math.isfinite(value), f"{score.name} is not finite"
            if score.unit == "fraction":
                assert 0 <= score.after <= 1, f"{score.name} = {score.after} is no fraction"
            if score.ci_low is not None:
                assert score.ci_high is not None, f"{score.name} has half an interval"
                assert score.ci_low <= score.after <= score.ci_high, f"{score.name} lies outside of its interval"

    def test_the_edit_is_noticed(self, tmp_path: Path) -> None:
        """A metric that gives the same numbers before and after a real edit measures nothing."""
        assert any(score.change for score in self.scores(tmp_path)), "no score changed"

    def test_same_before_and_after_is_no_change(self, tmp_path: Path) -> None:
        """Comparing a model with itself gives a change of exactly zero."""
        before, _, evaluation = self.measure(tmp_path)
        for score in self.make().scores(before, before, evaluation):
            assert not score.change, f"{score.name} changed by {score.change} although nothing did"

    def test_measuring_twice_gives_the_same(self, tmp_path: Path) -> None:
        """Scores are deterministic."""
        assert self.scores(tmp_path / "1") == self.scores(tmp_path / "2")

    def test_observations_survive_json(self, tmp_path: Path) -> None:
        """What was observed before is cached as JSON."""
        before, after, evaluation = self.measure(tmp_path)
        text = json.dumps([before, after], allow_nan=False)
        assert self.make().scores(*json.loads(text), evaluation) == self.make().scores(before, after, evaluation)

    def test_batch_equals_single(self, tmp_path: Path) -> None:
        """The size of a batch changes speed, never a score."""
        if not hasattr(self.config(), "batch_size"):
            pytest.skip("the metric has no batch_size")
        single = self.make(batch_size=1).scores(*self.measure(tmp_path / "1", self.config(batch_size=1)))
        for one, many in zip(single, self.scores(tmp_path / "2"), strict=True):
            assert one.after == pytest.approx(many.after, rel=1e-5, abs=1e-7), f"{one.name} depends on the batch size"

    def test_empty_is_an_error(self, tmp_path: Path) -> None:
        """Nothing to look at is a MeasureError, never a number."""
        if not self.reads_evaluation:
            pytest.skip("the metric looks at the edit only")
        run = toy_run(tmp_path)
        empty = attrs.evolve(self.make_evaluation(run), items=(), examples=None)
        with pytest.raises(MeasureError):
            self.make().observe(self.make_model(), empty, run)

    def test_fingerprint_is_about_the_question(self, tmp_path: Path) -> None:
        """Equal questions have equal fingerprints; other items, images or sampling have others."""
        evaluation = self.make_evaluation(toy_run(tmp_path))
        usual = self.make().fingerprint(evaluation)
        assert usual == self.make().fingerprint(self.make_evaluation(toy_run(tmp_path)))
        if self.reads_evaluation:
            other = attrs.evolve(evaluation, items=evaluation.items[1:], examples=fewer(evaluation))
            assert self.make().fingerprint(other) != usual, "other items have the same fingerprint"

    def test_model_and_process_are_left_alone(self, tmp_path: Path) -> None:
        """Measuring changes nothing."""
        model = self.make_model()
        before = Snapshot.of(model.network)
        with nothing_global_changes():
            self.measure(tmp_path, model=model)
        assert not before.differences(model.network), before.differences(model.network)

    def test_doubts_are_known_statuses(self, tmp_path: Path) -> None:
        """A doubt is ``not_forgotten`` or ``retain_collapsed`` and one sentence, whatever the scores are."""
        scores = self.scores(tmp_path)
        for value in (None, *EXTREMES):
            for status, sentence in self.make().doubts(scores if value is None else extreme(scores, value)):
                assert status in ("not_forgotten", "retain_collapsed"), f"unknown status {status!r}"
                assert sentence.strip(), "a doubt without a sentence"

    def test_version_is_a_text(self) -> None:
        """The version is part of every fingerprint."""
        assert isinstance(self.plugin.version, str), "version must be a str"
        assert self.plugin.version, "version is empty"


EXTREMES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.6, 3.0)
"""Values of scores for which a metric is asked whether it doubts them; before is 1."""


def extreme(scores: tuple[Score, ...], value: float) -> tuple[Score, ...]:
    """Return the scores as if each had fallen (or risen) from 1 to ``value``."""
    return tuple(attrs.evolve(score, before=1.0, after=value) for score in scores)


def fewer(evaluation: Evaluation) -> Any:
    """Return the unseen examples with the captions of the other side, so that they are others."""
    if evaluation.examples is None:
        return None
    forget, retain = evaluation.examples
    return (attrs.evolve(retain, side="forget"), attrs.evolve(forget, side="retain"))
