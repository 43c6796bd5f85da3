"""Which images stand behind which accuracy: the terms of UA, IRA and CRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from vu_core import Concept, Evaluation, EvaluationItem, MeasureError, Observations

Outcomes = NDArray[np.bool_]
"""Is it right, per item of a term."""

Correct = Mapping[str, Outcomes]
"""Per axis: is the judge's label the right one, per item."""


@attrs.frozen
class Term:
    """One accuracy: the items that it is a mean over, and the axes that must be right on each of them."""

    name: str
    rows: tuple[int, ...]
    axes: tuple[str, ...]


def forget_terms(concepts: Sequence[Concept], items: Sequence[EvaluationItem]) -> list[Term]:
    """Return one term per concept: the items that show it. Raises: MeasureError when no item shows it."""
    terms = []
    for concept in concepts:
        rows = tuple(row for row, item in enumerate(items) if shows(item, concept.labels))
        if not rows:
            raise MeasureError(
                "VU-S091",
                f"None of the {len(items)} images asked for shows {concept.text}, so UA has no value.",
                "Ask for at least one prompt that contains the forgotten concept.",
                where="measure",
            )
        terms.append(Term(concept.text, rows, tuple(sorted(concept.labels))))
    return terms


def ira_terms(evaluation: Evaluation) -> list[Term]:
    """Return the accuracies behind IRA; see `UnlearnCanvas`."""
    terms: dict[str, Term] = {}
    for concept in evaluation.concepts:
        if len(concept.labels) == 1:
            (axis,) = concept.labels
            terms.update(label_terms(evaluation, axis, skip=frozenset()))
        else:
            rows = retained_rows(evaluation)
            for axis, label in sorted(concept.labels.items()):
                alone = [r for r in rows if shared_axes(evaluation.items[r], concept) == {axis}]
                terms.update(named_term(f"{concept.text}: {axis}:{label} alone", alone, tuple(sorted(concept.labels))))
    return list(terms.values())


def cra_terms(evaluation: Evaluation, exclude_forgotten: bool) -> list[Term]:
    """Return the accuracies behind CRA; see `UnlearnCanvas`."""
    everything = range(len(evaluation.items))
    skip = frozenset(everything) - frozenset(retained_rows(evaluation) if exclude_forgotten else everything)
    terms: dict[str, Term] = {}
    for concept in evaluation.concepts:
        if len(concept.labels) == 1:
            for axis in evaluation.axes:
                if axis not in concept.labels:
                    terms.update(label_terms(evaluation, axis, skip))
        else:
            none = [r for r in retained_rows(evaluation) if not shared_axes(evaluation.items[r], concept)]
            terms.update(named_term(f"{concept.text}: neither", none, tuple(sorted(concept.labels))))
    return list(terms.values())


def label_terms(evaluation: Evaluation, axis: str, skip: frozenset[int]) -> dict[str, Term]:
    """Return one term per label of the axis that is not forgotten itself."""
    forgotten = {c.labels[axis] for c in evaluation.concepts if set(c.labels) == {axis}}
    terms: dict[str, Term] = {}
    for label in evaluation.axes[axis]:
        if label not in forgotten:
            rows = [r for r, item in enumerate(evaluation.items) if item.labels.get(axis) == label and r not in skip]
            terms.update(named_term(f"{axis}:{label}", rows, (axis,)))
    return terms


def named_term(name: str, rows: Sequence[int], axes: tuple[str, ...]) -> dict[str, Term]:
    """Return the term under its name. Raises: MeasureError when no image belongs to it."""
    if not rows:
        raise MeasureError(
            "VU-S092",
            f"No image asked for belongs to {name}, so its accuracy has no value.",
            "Ask for every label at least once, or leave the label out of the axes.",
            where="measure",
        )
    return {name: Term(name, tuple(rows), axes)}


def retained_rows(evaluation: Evaluation) -> list[int]:
    """Return the rows of items that show no forgotten concept."""
    return [r for r, item in enumerate(evaluation.items) if not any(shows(item, c.labels) for c in evaluation.concepts)]


def shows(item: EvaluationItem, labels: Mapping[str, str]) -> bool:
    """Tell whether the prompt of the item contains all these labels."""
    return all(item.labels.get(axis) == label for axis, label in labels.items())


def shared_axes(item: EvaluationItem, concept: Concept) -> set[str]:
    """Return the axes on which item and concept agree."""
    return {axis for axis, label in concept.labels.items() if item.labels.get(axis) == label}


def correct_per_axis(observed: Observations, items: Sequence[EvaluationItem]) -> Correct:
    """Return per axis whether each item was judged right. Raises: MeasureError when the lists do not fit the items."""
    correct: dict[str, Outcomes] = {}
    for axis, named in observed["labels"].items():
        if len(named) != len(items):
            raise MeasureError(
                "VU-S093",
                f"There are {len(named)} judged images on the axis {axis!r}, but {len(items)} were asked for.",
                "Clear the cache (`vu cache clear`) and measure again; no image may be left out.",
                where="unlearncanvas",
            )
        correct[axis] = np.array(
            [label == item.labels.get(axis) for label, item in zip(named, items, strict=True)], dtype=bool
        )
    return correct


def outcomes(term: Term, correct: Correct) -> Outcomes:
    """Return for each item of the term whether all its axes are right."""
    right = np.ones(len(term.rows), dtype=bool)
    for axis in term.axes:
        right &= correct[axis][list(term.rows)]
    return right


def mean_accuracy(outcomes_per_term: Sequence[Outcomes]) -> float:
    """Return the mean of the accuracies, each term with the same weight."""
    return float(np.mean([term.mean() for term in outcomes_per_term]))
