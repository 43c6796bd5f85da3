"""What is measured before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vu_core.contracts.model import Model
from vu_core.data import Evaluation
from vu_core.score import Score, Status
from vu_core.source import Source

if TYPE_CHECKING:
    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)
Observations = Mapping[str, Any]
"""JSON values, one entry per item: cacheable for the untouched model, comparable in pairs."""


class Metric(Protocol[ConfigT]):
    """The class behind a metric name; one metric may yield several scores.

    `observe` looks at one model; `scores` compares what was observed before and after on the same items. ``version`` is
    part of the fingerprint and changes whenever a number could. A metric that does not look at what the model does, as
    the size of an edit, says ``looks = False``: a run with no other one cannot show that anything was forgotten. One
    that asks about what the run trained on says ``uses_train = True`` and finds it in `Evaluation.train`; a classifier
    has prepared it, and all other tables.
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]
    version: ClassVar[str]

    def __init__(self, config: ConfigT) -> None: ...

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of everything that defines the numbers: version, judge, thresholds, items."""
        ...

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Look at one model. Raises: MeasureError on empty or non-finite input; never returns NaN."""
        ...

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return the scores with before, after, n and interval; fractions, not percent."""
        ...

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Return (``not_forgotten`` or ``retain_collapsed``, one sentence) for scores that are alarming."""
        ...
