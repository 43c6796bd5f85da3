"""Files that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import attrs

from vu_core.contracts.model import Model
from vu_core.edit import Edit
from vu_core.source import Source

if TYPE_CHECKING:
    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


@attrs.frozen
class Check:
    """One comparison of an export, reloaded, with the edit.

    Args:
        what: what was compared; ``denoiser`` are the outputs of the denoiser, ``image`` is a generated image.
        error: how far apart they are; 0 or more, in the unit of ``limit``.
        limit: the largest error that rounding explains.

    Example:
        >>> Check("denoiser", 1e-6, 1e-4).passed, Check("image", float("nan"), 0.01).passed
        (True, False)
    """

    what: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Tell whether the error is within the limit; an error that is no number is not."""
        return self.error <= self.limit


class Exporter(Protocol[ConfigT]):
    """The class behind an exporter name: one format, written and read again.

    Called in the order `export`, `verify`, `usage`. The exporter measures and never judges: the core compares each
    `Check` with its limit, and removes the files when one fails.
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]

    def __init__(self, config: ConfigT) -> None: ...

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write the files: all inside ``folder``, equal bytes for equal edits, never a pickle.

        Args:
            edit: what is written, at the strength it was trained with.
            model: the loaded base model; left as it is.
            folder: where to write; it and its parents may be missing.
            run: seed and device.

        Returns:
            Every file that was written.

        Raises:
            EditError: when the format cannot express the edit, or there is nothing to write; no file is left then.
        """
        ...

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> tuple[Check, ...]:
        """Read the files through the target's own loader and compare what the model computes with what the edit does.

        Args:
            files: what `export` returned.
            edit: what they are compared with.
            model: the loaded base model; bit-identical afterwards, adapters taken off.
            run: seed and device.

        Returns:
            The comparisons: ``denoiser`` first, ``image`` when the model can generate, and what the format adds.

        Raises:
            EditError: when the loader cannot read the files at all.
        """
        ...

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        """Return the few lines of Python that load the export; they go into its model card.

        Args:
            files: what `export` returned; named in the lines as relative to the folder of the export.
            base: hub id of the base model, or a text that stands for it.
        """
        ...
