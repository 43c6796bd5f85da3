"""Attacks on an edit, with their result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vu_core.contracts.model import Model
from vu_core.data import Evaluation
from vu_core.edit import Edit
from vu_core.score import Score
from vu_core.source import Source

if TYPE_CHECKING:
    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


class Audit(Protocol[ConfigT]):
    """The class behind an audit name."""

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]
    version: ClassVar[str]

    def __init__(self, config: ConfigT) -> None: ...

    def attack(self, model: Model, edit: Edit, evaluation: Evaluation, run: Run) -> tuple[Score, ...]:
        """Try to bring back what was forgotten; ``model`` is the untouched one."""
        ...
