"""UA, IRA and CRA of the UnlearnCanvas benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import attrs
import numpy as np

from vu_core import (
    Evaluation,
    EvaluationItem,
    MeasureError,
    Model,
    Observations,
    Run,
    Score,
    Source,
    Status,
    TextToImage,
    digest,
    setting,
)
from vu_metrics.accuracies import (
    Correct,
    Outcomes,
    Term,
    correct_per_axis,
    cra_terms,
    forget_terms,
    ira_terms,
    mean_accuracy,
    outcomes,
)
from vu_metrics.intervals import interval_of_mean, newcombe, wilson

RETAIN_HELP = {"ira": "other labels of the same kind", "cra": "labels of the other kinds"}
"""What the mean is over, when labels are forgotten."""
PAIR_HELP = {
    "ira": "groups of images that share exactly one label with a forgotten pair",
    "cra": "groups of images that share no label with a forgotten pair",
}
"""The same when pairs are forgotten; both may be in one edit."""


@attrs.frozen
class UnlearnCanvasConfig:
    """Settings of `UnlearnCanvas`."""

    cra_exclude_forgotten: bool = setting(False, help="leave images of the forgotten concept out of CRA")
    min_ua: float = setting(0.5, help="a UA below this is reported as not forgotten", ge=0, le=1)
    max_fall: float = setting(0.15, help="a fall of IRA or CRA by more than this is reported as a collapse", ge=0, le=1)
    batch_size: int = setting(50, help="images generated at a time", ge=1, speed_only=True)


class UnlearnCanvas:
    """Judge generated images of every prompt: is the concept gone, is everything else still there?

    ``acc(Y)`` is the top-1 accuracy, by the judge of Y's axis, over **all** images whose prompt contains Y. With one
    forgotten concept X, such as ``style:neon``:

    ======  =======================================================================================
    UA      ``1 - acc(X)``; the accuracy itself is reported too, as ``forget_accuracy``
    IRA     mean of ``acc(Y)`` over the other labels Y of the same axis (the other styles)
    CRA     mean of ``acc(Y)`` over all labels Y of the other axes (the objects); images of X count, as in the
            released evaluation code, unless ``cra_exclude_forgotten`` is set
    ======  =======================================================================================

    Several concepts in one edit: IRA and CRA are the means over the union of the terms of each concept, without the
    labels that are forgotten themselves; ``ua[...]`` tells each concept's own UA. UA counts every image once: one
    that shows two forgotten concepts is gone when neither is recognised. Concepts on different axes (a style and an
    object) make IRA and CRA share terms: the other objects are of the object's own kind and of the style's other kind,
    so with two axes the two are then one number, unless ``cra_exclude_forgotten`` takes images out of one of them.

    ``n`` is the number of distinct images. Intervals, 95 %: Wilson for UA and for each accuracy, Newcombe's method 10
    for each paired change; those of IRA and CRA are made of the ones of their terms by MOVER. Labels are fixed, the
    images of each are the sample; images of different prompts share their seeds, which the intervals do not count. All
    of them have width also when every outcome agrees.

    A pair (``object:star+style:neon``) is recognised when both axes are right. Its IRA is the mean over two terms,
    images that share exactly the one or exactly the other label with it; its CRA is the accuracy of the images
    that share none; both axes must be right everywhere, and no image of a forgotten concept counts.

    Deviates: an image is judged as generated; the benchmark writes JPEG files in between.

    Source: UnlearnCanvas, Zhang et al. 2024, arXiv 2402.11846.
    """

    Config: ClassVar[type[UnlearnCanvasConfig]] = UnlearnCanvasConfig
    source: ClassVar[Source] = Source(
        "UnlearnCanvas: A Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion Models, "
        "Zhang et al. 2024",
        "https://arxiv.org/abs/2402.11846",
        "code",
    )
    version: ClassVar[str] = "3"

    def __init__(self, config: UnlearnCanvasConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of judge, prompts, seeds, sampling and libraries; not of the concept.

        Runs that forget different concepts are asked the same, so they share what was observed before and may be
        compared.
        """
        judge = evaluation.judge
        definition = {
            "version": self.version,
            "judge": None if judge is None else judge.fingerprint,
            "split": evaluation.split,
            "generation": dict(sorted(evaluation.generation.items())),
            "cra_exclude_forgotten": self.config.cra_exclude_forgotten,
            "libraries": library_versions("torch", "diffusers", "transformers"),
            "items": [[item.prompt, item.seed, sorted(item.labels.items())] for item in evaluation.items],
        }
        return digest("unlearncanvas", json.dumps(definition, sort_keys=True))

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Generate an image of every item and return the judge's labels, ``{"labels": {axis: [one per item]}}``.

        Raises:
            MeasureError: nothing to generate, no judge, a model that generates no images, or a judge that leaves
            some out.
        """
        judge = evaluation.judge
        if judge is None:
            raise MeasureError(
                "VU-S090",
                "The metric 'unlearncanvas' needs data with a judge, and this data has none.",
                "Measure with 'edit-size' and 'denoising-gap', or use data that names what is on an image.",
                where="measure.metrics",
            )
        if not isinstance(model, TextToImage):
            raise MeasureError(
                "VU-S090",
                f"The metric 'unlearncanvas' needs a model that generates images from prompts; {model.facts.name!r} "
                "does not.",
                "Choose another metric or another model.",
                where="measure.metrics",
            )
        refuse_no_items(evaluation.items)
        sampling = sampling_of(model, evaluation)
        labels: dict[str, list[str]] = {axis: [] for axis in evaluation.axes}
        total = len(evaluation.items)
        run.progress("generate and judge images", 0, total)  # so that the first portion counts in the pace
        for first in range(0, total, self.config.batch_size):
            batch = evaluation.items[first : first + self.config.batch_size]
            images = model.generate([i.prompt for i in batch], [i.seed for i in batch], **sampling)
            named = judge.classify(images)
            for axis, column in labels.items():
                column.extend(checked_labels(named, axis, len(batch)))
            run.progress("generate and judge images", min(first + len(batch), total), total)
        return {"labels": labels}

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return ``ua``, ``forget_accuracy``, ``ira``, ``cra``, and ``ua[...]`` for each of several concepts.

        Raises:
            MeasureError: nothing to judge, nothing was forgotten, nothing is left to keep, or an observation that is
                not about these items.
        """
        items = evaluation.items
        refuse_no_items(items)
        if not evaluation.concepts:
            raise MeasureError(
                "VU-S091",
                "UA needs to know what was forgotten, and the evaluation names no concept.",
                "Let the data plugin's evaluation() pass on the concepts of the selection.",
                where="evaluation.concepts",
            )
        was, now = correct_per_axis(before, items), correct_per_axis(after, items)
        fingerprint = self.fingerprint(evaluation)
        shared = {
            "unit": "fraction",
            "seeds": tuple(sorted({item.seed for item in items})),
            "fingerprint": fingerprint,
        }
        forgotten = forget_terms(evaluation.concepts, items)
        return (
            *forget_scores(forgotten, was, now, shared),
            retain_score("ira", ira_terms(evaluation), was, now, shared),
            retain_score("cra", cra_terms(evaluation, self.config.cra_exclude_forgotten), was, now, shared),
        )

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Doubt a UA (of any concept) that is low or has not risen, and a fall of IRA or CRA.

        Thresholds are ``min_ua`` and ``max_fall``. However high UA is, an edit that did not raise it removed nothing:
        the judge did not recognise the concept before, either.
        """
        found: list[tuple[Status, str]] = []
        for score in scores:
            if score.name.startswith("ua"):
                what = "The concept" if score.name == "ua" else score.name[3:-1]
                seen = f"{100 * (1 - score.after):.0f} % of its images"
                if score.after < self.config.min_ua:
                    found.append(("not_forgotten", f"{what} is still recognised on {seen}."))
                elif score.change is not None and score.change <= 0:
                    found.append(("not_forgotten", f"{what} is recognised on {seen}, no less often than before."))
            elif score.name in ("ira", "cra") and score.change is not None and -score.change > self.config.max_fall:
                found.append(("retain_collapsed", f"{score.name.upper()} fell by {-100 * score.change:.0f} points."))
        return found


def retain_score(name: str, terms: Sequence[Term], was: Correct, now: Correct, shared: Mapping[str, Any]) -> Score:
    """Return a mean of accuracies with its interval and that of its change. Raises: MeasureError without terms."""
    if not terms:
        raise MeasureError(
            "VU-S092",
            f"{name.upper()} is a mean over what is kept, and every label that it covers was forgotten.",
            "Forget fewer concepts in one edit, or measure with other metrics.",
            where="data.forget",
        )
    before, after = [outcomes(term, was) for term in terms], [outcomes(term, now) for term in terms]
    rows = [term.rows for term in terms]
    accuracies = [float(term.mean()) for term in after]
    changes = [float(a.mean()) - float(b.mean()) for b, a in zip(before, after, strict=True)]
    low, high = interval_of_mean(accuracies, [wilson(int(term.sum()), len(term)) for term in after], rows)
    change = interval_of_mean(changes, [newcombe(b, a) for b, a in zip(before, after, strict=True)], rows)
    return Score(
        name=name,
        before=mean_accuracy(before),
        after=mean_accuracy(after),
        direction="up",
        n=len({row for term in rows for row in term}),
        ci_low=max(0.0, low),
        ci_high=min(1.0, high),
        change_low=max(-1.0, change[0]),
        change_high=min(1.0, change[1]),
        help=retain_help(name, terms),
        **shared,
    )


def retain_help(name: str, terms: Sequence[Term]) -> str:
    """Say what IRA or CRA is a mean over: labels, or groups of images where pairs were forgotten."""
    labels = sum(len(term.axes) == 1 for term in terms)
    counts = ((labels, RETAIN_HELP), (len(terms) - labels, PAIR_HELP))
    return "mean accuracy over " + " and ".join(f"{count} {words[name]}" for count, words in counts if count)


def forget_scores(terms: Sequence[Term], was: Correct, now: Correct, shared: Mapping[str, Any]) -> Iterator[Score]:
    """Yield UA and its complement over the images of all concepts, then UA of each concept when there are several."""
    before, after = recognised_per_image(terms, was), recognised_per_image(terms, now)
    yield ua_score("ua", before, after, shared)
    n, recognised = len(after), int(after.sum())
    low, high = wilson(recognised, n)
    change = newcombe(before, after)
    yield Score(
        name="forget_accuracy",
        before=float(before.mean()),
        after=recognised / n,
        direction="down",
        n=n,
        ci_low=low,
        ci_high=high,
        change_low=change[0],
        change_high=change[1],
        help="how often the forgotten concept is still recognised; 100 % - UA",
        **shared,
    )
    if len(terms) > 1:
        for term in terms:
            yield ua_score(f"ua[{term.name}]", outcomes(term, was), outcomes(term, now), shared)


def recognised_per_image(terms: Sequence[Term], correct: Correct) -> Outcomes:
    """Return for each distinct image whether any of the forgotten concepts that it shows is recognised."""
    seen: dict[int, bool] = {}
    for term in terms:
        for row, right in zip(term.rows, outcomes(term, correct), strict=True):
            seen[row] = seen.get(row, False) or bool(right)
    return np.array([seen[row] for row in sorted(seen)], dtype=bool)


def ua_score(name: str, before: Outcomes, after: Outcomes, shared: Mapping[str, Any]) -> Score:
    """Return the share of images on which the concept is not recognised, with its interval and that of its change."""
    n, gone = len(after), int((~after).sum())
    low, high = wilson(gone, n)
    change = newcombe(~before, ~after)
    return Score(
        name=name,
        before=float((~before).mean()),
        after=gone / n,
        direction="up",
        n=n,
        ci_low=low,
        ci_high=high,
        change_low=change[0],
        change_high=change[1],
        help="unlearning accuracy: how often the forgotten concept is not recognised any more",
        **shared,
    )


def refuse_no_items(items: Sequence[EvaluationItem]) -> None:
    """Raise MeasureError when there is nothing to judge."""
    if not items:
        raise MeasureError(
            "VU-S091",
            "There is no image to judge: the evaluation has no items.",
            "Ask for at least one seed (measure.seeds) and one prompt.",
            where="measure.seeds",
        )


def checked_labels(named: Mapping[str, Sequence[str]], axis: str, expected: int) -> Sequence[str]:
    """Return the judge's labels of an axis. Raises: MeasureError when it left an image or the axis out."""
    column = named.get(axis)
    if column is None or len(column) != expected:
        raise MeasureError(
            "VU-S093",
            f"The judge named {0 if column is None else len(column)} of {expected} images on the axis {axis!r}.",
            "Every image needs a label on every axis; look at the judge of the data plugin.",
            where="unlearncanvas",
        )
    return [str(label) for label in column]


def sampling_of(model: Model, evaluation: Evaluation) -> dict[str, Any]:
    """Return steps and guidance of the evaluation, else of the model. Raises: MeasureError when nobody says."""
    known = {**model.facts.generation, **evaluation.generation}
    for key in ("steps", "guidance"):
        if key not in known:
            raise MeasureError(
                "VU-S094",
                f"Neither the configuration nor the model {model.facts.name!r} says which {key} to generate with.",
                f"Set measure.{key}.",
                where=f"measure.{key}",
            )
    return {"steps": int(known["steps"]), "guidance": float(known["guidance"])}


def library_versions(*names: str) -> dict[str, str]:
    """Return the installed versions of the libraries that images depend on; an absent one is ``absent``."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
