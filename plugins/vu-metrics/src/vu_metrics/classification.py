"""How often a classifier is right, on images that no method has seen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import attrs
import numpy as np

from vu_core import (
    Batch,
    Classifier,
    Concept,
    Evaluation,
    Examples,
    MeasureError,
    Model,
    Observations,
    Run,
    Score,
    Source,
    Status,
    digest,
    setting,
)
from vu_metrics.denoising_gap import content
from vu_metrics.intervals import Outcomes, newcombe, wilson

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen
class ClassificationConfig:
    """Settings of `Classification`."""

    min_ua: float = setting(0.5, help="a UA below this is reported as not forgotten", ge=0, le=1)
    max_fall: float = setting(0.15, help="a fall of TA by more than this is reported as a collapse", ge=0, le=1)
    batch_size: int = setting(256, help="images classified at a time", ge=1, speed_only=True)


class Classification:
    """Classify unseen images of both sides: is the class gone, is everything else still there?

    ``acc(D)`` is the top-1 accuracy over the images D: the share whose largest logit is that of their class.

    ===================  ==========================================================================
    ua                   ``1 - acc(D_f)`` over the unseen images that show a forgotten concept
    forget_accuracy      ``acc(D_f)``, because the two are easily confused
    ta                   ``acc(D_t)`` over the unseen images that show none: the test images without
                         the forgotten class
    ===================  ==========================================================================

    Of several concepts in one edit, ``ua[...]`` tells each concept's own UA. For class-wise forgetting UA should be 1;
    where a random part of the images is forgotten, it should be that of a model that never saw them.

    Intervals, 95 %: Wilson for each share, Newcombe's method 10 for its paired change.

    Deviates: the published UA is taken on the very images that were forgotten, and RA on those that were retained.
    `measure` has unseen images alone: this UA says that the class is gone, not merely its training images, and there
    is no RA.

    Source: SalUn, Fan et al. 2024, arXiv 2310.12508.
    """

    Config: ClassVar[type[ClassificationConfig]] = ClassificationConfig
    source: ClassVar[Source] = Source(
        "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and "
        "Generation, Fan et al. 2024",
        "https://arxiv.org/abs/2310.12508",
        "paper",
    )
    version: ClassVar[str] = "1"

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config
        # Images are read once for the fingerprint and once for the model, however often a run asks.
        self._asked: tuple[Evaluation, str] | None = None
        self._prepared: tuple[Evaluation, Model, tuple[Examples, ...]] | None = None

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the version and of the images and labels of both sides."""
        if self._asked is None or self._asked[0] is not evaluation:
            parts: list[str | bytes] = [self.version]
            for table in both_sides(evaluation):
                parts += [table.side, json.dumps(dict(table.labels), sort_keys=True)]
                parts += [content(table, row) for row in range(len(table))]
            self._asked = (evaluation, digest("classification", *parts))
        return self._asked[1]

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return per side whether each image is classified right, ``{"forget": [0 or 1], "retain": [0 or 1]}``.

        Raises:
            MeasureError: the model is no classifier, a side has no unseen image, or a logit is not finite.
        """
        if not isinstance(model, Classifier):
            raise MeasureError(
                "VU-S090",
                f"The metric 'classification' needs a classifier; {model.facts.name!r} is none.",
                "Choose another metric or another model.",
                where="measure.metrics",
            )
        fixed = attrs.evolve(run, seed=0)  # draws do not depend on the run, so that runs can be compared
        tables = self._tables(cast("Model", model), evaluation, fixed)
        return {table.side: [int(right) for right in self._classify(model, table, fixed, run)] for table in tables}

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return ``ua``, ``forget_accuracy``, ``ta``, and ``ua[...]`` for each of several concepts.

        Raises:
            MeasureError: the observations are not about these images, or none of them shows one of the concepts.
        """
        forget, retain = both_sides(evaluation)
        was, now = outcomes(before, forget), outcomes(after, forget)
        fingerprint = self.fingerprint(evaluation)
        return (
            share_score("ua", ~was, ~now, fingerprint, "unlearning accuracy: how often a forgotten class is not named"),
            share_score(
                "forget_accuracy", was, now, fingerprint, "how often a forgotten class is still named; 100 % - UA"
            ),
            share_score(
                "ta", outcomes(before, retain), outcomes(after, retain), fingerprint, "accuracy on all other images"
            ),
            *per_concept(evaluation.concepts, forget, was, now, fingerprint),
        )

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Doubt a UA (of any concept) that is low or has not risen, and a fall of TA.

        Thresholds are ``min_ua`` and ``max_fall``.
        """
        found: list[tuple[Status, str]] = []
        for score in scores:
            change = score.change or 0.0
            if score.name.startswith("ua"):
                what = "What was forgotten" if score.name == "ua" else score.name[3:-1]
                seen = f"{100 * (1 - score.after):.0f} % of its images"
                if score.after < self.config.min_ua:
                    found.append(("not_forgotten", f"{what} is still classified right on {seen}."))
                elif change <= 0:
                    found.append(("not_forgotten", f"{what} is classified right on {seen}, no less often than before."))
            elif score.name == "ta" and -change > self.config.max_fall:
                found.append(("retain_collapsed", f"TA fell by {-100 * change:.0f} points."))
        return found

    def _tables(self, model: Model, evaluation: Evaluation, draws: Run) -> tuple[Examples, ...]:
        """Return both sides, prepared by the model."""
        known = self._prepared
        if known is None or known[0] is not evaluation or known[1] is not model:
            tables = tuple(model.prepare(table, draws) for table in both_sides(evaluation))
            self._prepared = known = (evaluation, model, tables)
        return known[2]

    def _classify(self, model: Classifier, examples: Examples, draws: Run, run: Run) -> Iterator[bool]:
        """Yield for each image whether its largest logit is that of its class. Raises: MeasureError (``VU-S096``)."""
        import torch

        total, device = len(examples), torch.device(run.device)
        for first in range(0, total, self.config.batch_size):
            rows = tuple(range(first, min(first + self.config.batch_size, total)))
            batch = Batch(examples, rows, 0, rows, draws, device)
            with torch.no_grad():
                logits: Tensor = model.logits(model.images(batch))  # (B, K)
            if not bool(logits.isfinite().all()):
                raise MeasureError(
                    "VU-S096",
                    f"The classifier gives logits that are not finite for {examples.side} images.",
                    "The edit has destroyed the model: unlearn again with a lower learning rate.",
                    where="classification",
                )
            yield from (logits.argmax(dim=1) == model.labels(batch)).tolist()
            run.progress(f"classify unseen {examples.side} images", rows[-1] + 1, total)


def both_sides(evaluation: Evaluation) -> tuple[Examples, Examples]:
    """Return unseen forget and retain images. Raises: MeasureError when a side has none."""
    examples = evaluation.examples
    if examples is None or not all(map(len, examples)):
        raise MeasureError(
            "VU-S091",
            "The metric 'classification' needs unseen images of both sides, and this data has none in its "
            f"{evaluation.split} part.",
            "Give the data more images, so that some can be held out, or leave 'classification' out of "
            "measure.metrics.",
            where="measure.metrics",
        )
    return examples


def outcomes(observed: Observations, table: Examples) -> Outcomes:
    """Return for each image of a side whether it was classified right. Raises: MeasureError on another number."""
    found = observed[table.side]
    if len(found) != len(table):
        raise MeasureError(
            "VU-S093",
            f"{len(found)} {table.side} images were classified, but there are {len(table)}.",
            "Clear the cache (`vu cache clear`) and measure again; no image may be left out.",
            where="classification",
        )
    return np.asarray(found, dtype=bool)


def per_concept(
    concepts: Sequence[Concept], forget: Examples, was: Outcomes, now: Outcomes, fingerprint: str
) -> Iterator[Score]:
    """Yield the UA of each of several concepts. Raises: MeasureError when no image shows one."""
    for concept in concepts if len(concepts) > 1 else ():
        rows = [row for row in range(len(forget)) if shows(forget.labels, row, concept.labels)]
        if not rows:
            raise MeasureError(
                "VU-S091",
                f"None of the {len(forget)} unseen forget images shows {concept.text}, so its UA has no value.",
                "Give the data more images of it, so that some can be held out.",
                where="data.forget",
            )
        words = f"how often {concept.text} is not named"
        yield share_score(f"ua[{concept.text}]", ~was[rows], ~now[rows], fingerprint, words)


def shows(labels: Mapping[str, Sequence[str]], row: int, wanted: Mapping[str, str]) -> bool:
    """Tell whether an example has all these labels."""
    return all(axis in labels and labels[axis][row] == value for axis, value in wanted.items())


def share_score(name: str, before: Outcomes, after: Outcomes, fingerprint: str, help: str) -> Score:
    """Return the share of images of which something holds, with its interval and that of its change."""
    low, high = wilson(int(after.sum()), len(after))
    change = newcombe(before, after)
    return Score(
        name=name,
        before=float(before.mean()),
        after=float(after.mean()),
        unit="fraction",
        direction="down" if name == "forget_accuracy" else "up",
        n=len(after),
        ci_low=low,
        ci_high=high,
        change_low=change[0],
        change_high=change[1],
        fingerprint=fingerprint,
        help=help,
    )
