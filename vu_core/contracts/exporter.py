"""Files that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vu_core.contracts.model import Model
from vu_core.edit import Edit
from vu_core.source import Source

if TYPE_CHECKING:
    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


class Exporter(Protocol[ConfigT]):
    """The class behind an exporter name.

    `verify` reloads the files through the target's own loader and compares outputs.
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]

    def __init__(self, config: ConfigT) -> None: ...

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write the files. Raises: EditError when the target cannot express the edit."""
        ...

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> float:
        """Return max|y_export - y_edit| / (1 + max|y_edit|). Raises: EditError above 1e-4 in fp32."""
        ...
