"""Model before, model after -> Scorecard: same prompts, same seeds, same batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from vu_core.blame import asked
from vu_core.cache import Cache, dispensable, settings_text
from vu_core.config import RunConfig
from vu_core.contracts import Classifier, Metric, Observations, TextToImage
from vu_core.data import Evaluation, EvaluationItem, Examples, digest
from vu_core.edit import Edit
from vu_core.errors import MeasureError
from vu_core.plan import Capability
from vu_core.registry import Entry
from vu_core.run import Run
from vu_core.score import Score, Scorecard, Status
from vu_core.stages.apply import apply
from vu_core.stages.bench import Bench
from vu_core.stages.load import training_data
from vu_core.stages.plan import NOTHING_MEASURES, measures_forgetting
from vu_core.stages.reference import beside, comparable, read_reference
from vu_core.stages.subset import split_evaluation

if TYPE_CHECKING:
    import numpy as np

FIRST_SEED: Mapping[str, int] = {"validation": 0, "held-out": 10_000}
"""First seed of each split; validation ends at 9,999."""


@attrs.frozen(eq=False)
class Samples:
    """Images for the report: the items and uint8 ``(N, H, W, 3)`` before and after the edit."""

    items: tuple[EvaluationItem, ...]
    before: np.ndarray[Any, Any]
    after: np.ndarray[Any, Any]


@attrs.frozen(eq=False)
class Measured:
    """What the stage returns: the scores, and the images that go with them (``None`` when there are none)."""

    scorecard: Scorecard
    samples: Samples | None = None


def measure(bench: Bench, edit: Edit) -> Measured:
    """Ask every metric about the untouched and the edited model.

    Only here does the data plugin build the part of the data that ``measure.split`` names. What a metric observes on
    the untouched model is cached by base hash, metric, fingerprint, split and seeds.

    Args:
        bench: its train and validation data are not needed.
        edit: what the method returned.

    Returns:
        Scores in the order of the metrics. The status is ``not_forgotten`` when any metric doubts that forgetting
        happened or nothing measured it, else ``retain_collapsed`` when any metric doubts that the rest was kept, else
        ``ok``.

    Raises:
        MeasureError: a metric gave nothing, no `Score`, a number that is not finite, or a doubt that is none
            (``VU-S050``), or ``measure.reference`` was asked something else (``VU-S112``).
        RecordError: ``measure.reference`` is no run with scores (``VU-R140``).
        PluginError: the code of a metric, of the data or of the model failed (``VU-P009``).
    """
    run, place = bench.run, bench.plan.config.measure.reference
    run.stage = "measure"
    reference = read_reference(place) if place is not None else None
    evaluation = _prepared(bench, _with_train(bench, evaluate_on(bench)))
    if reference is not None:
        evaluation = attrs.evolve(evaluation, reference=_comparable(bench, reference, evaluation))
    _note_idle_seeds(bench)
    before = {name: _before(bench, name, metric, evaluation) for name, metric in bench.metrics.items()}
    images_before = _images(bench, evaluation, "images before")
    with apply(bench.model, edit):
        seen = attrs.evolve(run, edit=edit)
        after = {name: _observed(bench, name, metric, evaluation, seen) for name, metric in bench.metrics.items()}
        images_after = _images(bench, evaluation, "images after")
    scores: list[Score] = []
    doubts: list[tuple[Status, str]] = []
    for name, metric in bench.metrics.items():
        with asked(_entry(bench, name), bench.entries):
            given = _finite(name, _several(name, metric.scores(before[name], after[name], evaluation)))
            found = tuple(_complete(score, _entry(bench, name), metric, evaluation) for score in given)
            if reference is not None and evaluation.reference is not None:
                found = beside(found, reference, evaluation.reference)
            scores += found
            doubts += _known(name, _several(name, metric.doubts(found)))
    if not measures_forgetting(bench.plan.config, bench.plan.manifest):
        doubts.append(("not_forgotten", NOTHING_MEASURES.capitalize()))
    for score in scores:
        run.emit("score", name=score.name, before=score.before, after=score.after)
    samples = None
    if images_before is not None and images_after is not None:
        samples = Samples(evaluation.samples, images_before, images_after)
    card = Scorecard(evaluation.split, _status(doubts), tuple(scores), tuple(text for _, text in doubts))
    return Measured(card, samples)


def _note_idle_seeds(bench: Bench) -> None:
    """Say that seeds which were asked for change no score, where no metric makes images."""
    config: RunConfig = bench.plan.config
    asked_for = config.origins.get("measure.seeds", "").startswith("--")
    if asked_for and not any(_draws(choice.entry) for choice in config.metrics):
        rest = ", only the images" if isinstance(bench.model, TextToImage) else ""
        bench.run.emit("note", text=f"No metric here makes images: measure.seeds changes no score{rest}.")


def split_seeds(split: str, count: int) -> tuple[int, ...]:
    """Return the first ``count`` seeds of a split.

    Example:
        >>> split_seeds("held-out", 2)
        (10000, 10001)
    """
    return tuple(range(FIRST_SEED[split], FIRST_SEED[split] + count))


def evaluate_on(bench: Bench) -> Evaluation:
    """Let the data plugin build what is measured on, and settle how images are made."""
    plan, settings = bench.plan, bench.plan.config.measure
    with asked(plan.config.data.entry, bench.entries):
        evaluation = bench.dataset.evaluation(
            plan.selection,
            split=settings.split,
            seeds=split_seeds(settings.split, settings.seeds),
            samples=settings.samples,
            resolution=bench.model.facts.resolution,
            run=bench.run,
        )
    return attrs.evolve(split_evaluation(plan, evaluation), generation=generation(bench))


def _with_train(bench: Bench, evaluation: Evaluation) -> Evaluation:
    """Add what the run trained on, as the data builds it in this stage: without augmentation."""
    if not any(getattr(metric, "uses_train", False) for metric in bench.metrics.values()):
        return evaluation
    data = training_data(bench.dataset, bench.model, bench.plan, bench.run, bench.entries)
    return attrs.evolve(evaluation, train=(data.forget, data.retain))


def _prepared(bench: Bench, evaluation: Evaluation) -> Evaluation:
    """Let a classifier prepare every table once, for all metrics; the draws do not depend on the run."""
    if not isinstance(bench.model, Classifier):
        return evaluation
    draws, model = attrs.evolve(bench.run, seed=0), bench.model

    def ready(table: Examples) -> Examples:
        with asked(bench.plan.config.model.entry, bench.entries):
            return model.prepare(table, draws) if len(table) else table

    def both(tables: tuple[Examples, Examples] | None) -> tuple[Examples, Examples] | None:
        return None if tables is None else (ready(tables[0]), ready(tables[1]))

    groups = {name: ready(table) for name, table in evaluation.groups.items()}
    return attrs.evolve(evaluation, examples=both(evaluation.examples), train=both(evaluation.train), groups=groups)


def _comparable(bench: Bench, reference: Scorecard, evaluation: Evaluation) -> Scorecard:
    """Return the scores of the reference that were asked what this run asks. Raises: MeasureError (``VU-S112``)."""

    def fingerprints(name: str) -> Iterator[str]:
        for metric_name, metric in bench.metrics.items():
            entry = _entry(bench, metric_name)
            with asked(entry, bench.entries):
                yield _fingerprint(entry, metric, evaluation, name)

    return comparable(reference, fingerprints)


def generation(bench: Bench) -> dict[str, float]:
    """Return ``steps`` and ``guidance`` of images: what ``[measure]`` says, else the model's own."""
    settings, facts = bench.plan.config.measure, bench.model.facts.generation
    chosen = {"steps": settings.steps, "guidance": settings.guidance}
    return {**facts, **{name: value for name, value in chosen.items() if value is not None}}


def _before(bench: Bench, name: str, metric: Metric[Any], evaluation: Evaluation) -> Observations:
    cache, run = Cache(bench.run.cache), bench.run
    with asked(_entry(bench, name), bench.entries):
        key = _before_key(bench, name, metric, evaluation)
    stored = cache.get_json("before", key)
    if stored is not None:
        run.emit("note", text=f"What {name} observes on the untouched model comes from the cache.")
        return dict(stored)
    observed = _observed(bench, name, metric, evaluation, run)
    try:
        about = f"{name}, {evaluation.split}, {bench.plan.config.measure.seeds} seeds, {bench.model.facts.name}"
        with dispensable(run.emit):
            cache.put_json("before", key, observed, about=about)
    except (TypeError, ValueError) as error:
        raise MeasureError(
            "VU-S050",
            f"The metric {name!r} observed something that is no JSON value: {error}.",
            "Tell the authors of the plugin: observations are JSON values without NaN.",
            where=name,
        ) from error
    return observed


def _observed(bench: Bench, name: str, metric: Metric[Any], evaluation: Evaluation, run: Run) -> Observations:
    with asked(_entry(bench, name), bench.entries):
        return metric.observe(bench.model, evaluation, run)


def _entry(bench: Bench, name: str) -> Entry:
    config: RunConfig = bench.plan.config
    return next(choice.entry for choice in config.metrics if choice.name == name)


def _before_key(bench: Bench, name: str, metric: Metric[Any], evaluation: Evaluation) -> str:
    """Hash everything that observations of the untouched model depend on, down to what changes the last bit."""
    import torch

    run = bench.run
    content = [run.base_hash, name, metric.version, metric.fingerprint(evaluation), evaluation.split]
    items = [f"{item.seed} {item.prompt} {sorted(item.labels.items())}" for item in evaluation.items]
    groups = [table for _, table in sorted(evaluation.groups.items())]
    tables = [*(evaluation.examples or ()), *groups]
    examples = [f"{table.captions} {sorted(table.labels.items())}" for table in tables]
    settings = [settings_text(choice.config) for choice in bench.plan.config.metrics if choice.name == name]
    chosen = bench.plan.config
    data = [bench.plan.manifest.name, settings_text(chosen.data.config), *settings]
    data += [bench.plan.data_digest] if evaluation.train is not None else []  # also which of the images were drawn
    # Two models may share their weights and yet draw differently, such as with another sampler.
    model = [chosen.model.name, settings_text(chosen.model.config), str(getattr(bench.model, "fingerprint", ""))]
    versions = [f"{dist} {version}" for dist, version in sorted(bench.plan.versions.items())]
    machine = [run.device, run.precision, str(torch.get_num_threads()), torch.__version__, *versions]
    generation = str(sorted(evaluation.generation.items()))
    return digest(*content, *model, *data, generation, *items, "/", *examples, "/", *machine)


def _images(bench: Bench, evaluation: Evaluation, what: str) -> np.ndarray[Any, Any] | None:
    model, items = bench.model, evaluation.samples
    if not items or not isinstance(model, TextToImage):
        return None
    bench.run.progress(what, 0, len(items))
    with asked(bench.plan.config.model.entry, bench.entries):
        made = model.generate(
            [item.prompt for item in items],
            [item.seed for item in items],
            steps=int(evaluation.generation["steps"]),
            guidance=float(evaluation.generation["guidance"]),
        )
    bench.run.progress(what, len(items), len(items))
    return made


def _several(name: str, answer: Any) -> tuple[Any, ...]:
    if isinstance(answer, Iterable) and not isinstance(answer, str):
        return tuple(answer)
    raise _unusable(name, f"{type(answer).__name__!r}, where scores or doubts are several")


def _known(name: str, doubts: Sequence[Any]) -> Sequence[tuple[Status, str]]:
    """Return the doubts if each is a status and a sentence. Raises: MeasureError (``VU-S050``)."""
    for doubt in doubts:
        pair = isinstance(doubt, tuple | list) and len(doubt) == 2
        if not (pair and doubt[0] in ("not_forgotten", "retain_collapsed") and isinstance(doubt[1], str)):
            raise _unusable(
                name, f"the doubt {doubt!r}, where each is ('not_forgotten' or 'retain_collapsed', sentence)"
            )
    return [(status, text) for status, text in doubts]


def _unusable(name: str, what: str) -> MeasureError:
    return MeasureError(
        "VU-S050",
        f"The metric {name!r} gave {what}.",
        "Tell the authors of the plugin; leave the metric out with measure.metrics meanwhile.",
        where=name,
    )


def _finite(name: str, scores: Sequence[Any]) -> Sequence[Score]:
    """Return the scores if there are any and all are sound. Raises: MeasureError (``VU-S050``)."""
    for score in scores:
        if not isinstance(score, Score):
            raise _unusable(name, f"{type(score).__name__!r}, where each must be a Score")
    unsound = [score for score in scores if not all(map(_is_finite, _all(score)))]
    if scores and not unsound:
        return scores
    bad = ", ".join(score.name for score in unsound) or "no score at all"
    raise _unusable(name, f"{bad}, where every number must be finite")


def _is_finite(number: Any) -> bool:
    return number is None or (isinstance(number, int | float) and math.isfinite(number))


def _all(score: Score) -> tuple[float | None, ...]:
    interval = (score.ci_low, score.ci_high, score.change_low, score.change_high)
    return (score.before, score.after, score.n, *interval)


def _complete(score: Score, entry: Entry, metric: Metric[Any], evaluation: Evaluation) -> Score:
    """Fill in the seeds, of what makes images, and the fingerprint, which only the stage knows in full."""
    fingerprint = _fingerprint(entry, metric, evaluation, score.name)
    seeds = score.seeds or (tuple(sorted({item.seed for item in evaluation.items})) if _draws(entry) else ())
    return attrs.evolve(score, fingerprint=fingerprint, seeds=seeds)


def _fingerprint(entry: Entry, metric: Metric[Any], evaluation: Evaluation, name: str) -> str:
    """Return the hash of everything that defines a score of a metric."""
    sampling = str(sorted(evaluation.generation.items()))
    return digest(entry.name, metric.version, metric.fingerprint(evaluation), sampling, name)[:16]


def _draws(entry: Entry) -> bool:
    """Tell whether a metric makes images, the only ones that seeds are for."""
    return Capability.GENERATE in entry.needs


def _status(doubts: Sequence[tuple[Status, str]]) -> Status:
    kinds = {kind for kind, _ in doubts}
    if "not_forgotten" in kinds:
        return "not_forgotten"
    return "retain_collapsed" if "retain_collapsed" in kinds else "ok"
