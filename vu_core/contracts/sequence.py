"""What a sequence plugin provides: the tasks of a sequence of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import attrs

from vu_core.source import Source

ConfigT = TypeVar("ConfigT", covariant=True)


@attrs.frozen
class SequenceTask:
    """One task of a sequence: what its run forgets.

    Args:
        forget: concepts, as after ``--forget``.
        leave_out: concepts in neither side, besides what earlier tasks of the sequence forget; they count as old.
        missing: concepts that are retained without any training example.
        name: a word for tables; empty for its number.
    """

    forget: tuple[str, ...]
    leave_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    name: str = ""


class Sequence(Protocol[ConfigT]):
    """The class behind a sequence name: it divides the classes of the data into tasks. Torch-free.

    The engine adds to ``leave_out`` of a task what earlier tasks forget, and lets each task's run begin with the model
    that the one before has left.
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]
    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics that are used when ``measure.metrics`` says nothing, and model and data can serve all of
    them; else those that the data names are."""

    def __init__(self, config: ConfigT) -> None:
        """Take the settings of the table ``[sequence]``."""

    def tasks(self, classes: Mapping[str, str]) -> tuple[SequenceTask, ...]:
        """Divide the classes.

        Args:
            classes: class name to concept text, in the order of the labels.

        Returns:
            The tasks in order, at least one. No concept is forgotten twice.

        Raises:
            ConfigError: the settings do not fit so many classes.
        """
        ...
