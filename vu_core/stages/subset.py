"""``[subset]``: which of the examples that the data builds are trained on, and what becomes of the others.

The draw hangs on the seed of the run and the labels of the examples alone. Two methods with one seed, and everything
inside a run that estimates importance, prototypes or teachers, see the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from vu_core.config import RunConfig, SubsetSettings
from vu_core.contracts import Dataset
from vu_core.data import Concept, Evaluation, EvaluationItem, Examples, ForgetRetain, Manifest, digest
from vu_core.errors import DataError
from vu_core.plan import Plan

OLD, MISSING = "old", "missing"
"""Names of the groups of `vu_core.Evaluation`: what was forgotten earlier, and what is retained without examples."""


def concepts_of(dataset: Dataset[object], texts: Sequence[str]) -> tuple[Concept, ...]:
    """Let the data understand concepts that are not forgotten in this run.

    Together, so that a folder is looked through once; one by one where the data objects to all of them at once, such as
    when no overwrite is left for so many: none is needed.

    Raises:
        DataError: the data does not know one of them.
    """
    if not texts:
        return ()
    try:
        return dataset.parse(texts, ()).concepts
    except DataError:
        return tuple(concept for text in texts for concept in dataset.parse([text], ()).concepts)


def select(plan: Plan, data: ForgetRetain, seed: int) -> ForgetRetain:
    """Return the tables that a run trains and selects on.

    From the training tables of both sides, what is left out and what is missing go first; then every class keeps its
    share. The validation tables lose the same concepts and keep everything else.

    Args:
        plan: with the concepts that the table names.
        data: what the data plugin has built.
        seed: of the run.

    Raises:
        DataError: a class has too few examples (``VU-D120``), or a side is left without any (``VU-D121``).
    """
    settings = plan.config.subset
    if settings.whole:
        return data
    kept = data.map(lambda table: _without(table, plan.left_out))
    kept = attrs.evolve(
        kept,
        retain=_without(kept.retain, plan.missing),
        validation_retain=_without(kept.validation_retain, plan.missing),
    )
    drawn = attrs.evolve(
        kept, forget=draw(kept.forget, settings, seed=seed), retain=draw(kept.retain, settings, seed=seed)
    )
    for before, after in ((data.forget, drawn.forget), (data.retain, drawn.retain)):
        if len(before) and not len(after):
            raise DataError(
                "VU-D121",
                f"Nothing is left on the {after.side} side: all of its examples show what subset.leave_out or "
                "subset.missing names.",
                "Name fewer concepts there.",
                where="subset",
            )
    return drawn


def draw(table: Examples, settings: SubsetSettings, *, seed: int) -> Examples:
    """Return the share of every class, in the order of the table.

    A class is all examples with the same labels. With n of them, ``per_class`` are kept, or ``max(1, round(fraction *
    n))``: those whose hash of (seed, labels, number within the class) is lowest. Neither another class nor the side
    changes the draw.

    Args:
        table: training examples of one side.
        settings: ``fraction`` or ``per_class``.
        seed: of the run.

    Raises:
        DataError: a class has fewer than ``per_class`` examples (``VU-D120``).

    Example:
        >>> table = Examples("forget", ("",) * 4, labels={"class": ("a", "a", "b", "b")})
        >>> draw(table, SubsetSettings(per_class=1), seed=0).labels["class"]
        ('a', 'b')
    """
    if settings.per_class is None and settings.fraction == 1:
        return table
    rows: dict[str, list[int]] = {}
    for row in range(len(table)):
        rows.setdefault(_class_of(table, row), []).append(row)
    chosen: list[int] = []
    for name, members in rows.items():
        count = settings.per_class or max(1, round(settings.fraction * len(members)))
        if count > len(members):
            raise DataError(
                "VU-D120",
                f"The class {name} has {len(members)} training examples on the {table.side} side, fewer than "
                f"subset.per_class = {count}.",
                "Ask for fewer examples per class, or let the data hold more.",
                where="subset.per_class",
            )
        ranked = sorted(range(len(members)), key=lambda place: digest("subset", str(seed), name, str(place)))
        chosen += [members[place] for place in ranked[:count]]
    return table.take(sorted(chosen))


def split_evaluation(plan: Plan, evaluation: Evaluation) -> Evaluation:
    """Take what is left out off the retain side of an evaluation, and name the groups ``old`` and ``missing``.

    Args:
        plan: with the concepts that the table ``[subset]`` names.
        evaluation: what the data plugin has built.

    Returns:
        The evaluation; ``groups`` has an entry per kind of concept that the table names.
    """
    if not (plan.left_out or plan.missing):
        return evaluation

    def asked(item: EvaluationItem) -> bool:
        return item.forget or not any(concept.labels.items() <= item.labels.items() for concept in plan.left_out)

    rest = attrs.evolve(
        evaluation, items=tuple(filter(asked, evaluation.items)), samples=tuple(filter(asked, evaluation.samples))
    )
    if evaluation.examples is None:
        return rest
    forget, retain = evaluation.examples
    kept = _without(retain, plan.left_out)
    groups = dict(evaluation.groups)
    if plan.left_out:
        groups[OLD] = _only(retain, plan.left_out)
    if plan.missing:
        groups[MISSING] = _only(kept, plan.missing)
    return attrs.evolve(rest, examples=(forget, kept), groups=groups)


def counted(config: RunConfig, manifest: Manifest, classes: int | None) -> Manifest:
    """Return the manifest with an estimate of how many examples are left for training.

    Args:
        config: with the table ``[subset]``.
        manifest: what the data counts.
        classes: how many classes the data has; ``None`` when it does not say.
    """
    subset = config.subset
    counts = dict(manifest.counts)
    sides = {"forget": len(config.forget), "retain": (classes or 0) - len(config.forget)}
    gone = len({*subset.leave_out, *subset.missing})
    for side, number in sides.items():
        name = f"train/{side}"
        left = number - gone if side == "retain" else number
        if name not in counts:
            continue
        if classes is not None and number > 0:
            counts[name] = round(counts[name] * max(left, 0) / number)
        if subset.per_class is not None and classes is not None:
            counts[name] = min(counts[name], subset.per_class * max(left, 1))
        counts[name] = max(1, round(subset.fraction * counts[name])) if counts[name] else 0
    return attrs.evolve(manifest, counts=counts)


def _class_of(table: Examples, row: int) -> str:
    return "+".join(f"{axis}:{values[row]}" for axis, values in sorted(table.labels.items())) or table.side


def _shows(table: Examples, row: int, concepts: Sequence[Concept]) -> bool:
    labels = {axis: values[row] for axis, values in table.labels.items()}
    return any(concept.labels.items() <= labels.items() for concept in concepts)


def _without(table: Examples, concepts: Sequence[Concept]) -> Examples:
    return table.take([row for row in range(len(table)) if not _shows(table, row, concepts)]) if concepts else table


def _only(table: Examples, concepts: Sequence[Concept]) -> Examples:
    return table.take([row for row in range(len(table)) if _shows(table, row, concepts)])
