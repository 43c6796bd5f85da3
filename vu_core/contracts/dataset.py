"""What a data plugin provides: a grammar for concepts, a manifest, train data; held-out data on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vu_core.data import Evaluation, ForgetRetain, Manifest, Selection, Split
from vu_core.source import Source

if TYPE_CHECKING:
    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


class Dataset(Protocol[ConfigT]):
    """The class behind a data name. Everything but `build` and `evaluation` is torch-free.

    Data whose images belong to classes has a method ``classes()``: class name to concept text for ``--forget``, in the
    order of the labels. A sequence divides these into tasks.

    Data that hands out captions and no pixels says ``has_images = False``, and data without a caption of what takes the
    place of what is forgotten ``has_overwrites = False``: its tables have ``overwrites=None``.
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]
    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics that are used when ``measure.metrics`` says nothing."""

    def __init__(self, ref: str, config: ConfigT) -> None:
        """Take the folder or file (empty for generated data)."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is data of this kind, from names and first bytes."""
        ...

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``--forget`` and ``--overwrite``.

        Raises:
            DataError: with near misses, and ``where`` either ``data.forget`` or ``data.overwrite``: the user is told
                the line of the file. Several mistakes are told at once with `vu_core.together`.
        """
        ...

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the data that a run will see. Raises: DataError when it is missing or malformed."""
        ...

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return train and validation examples.

        While ``run.stage`` is ``measure``, training images are neither cropped at random, nor flipped, nor otherwise
        changed from pass to pass: metrics look at what was trained on, and at the same images whatever the run.

        Raises:
            DataError: there are none, or they cannot be read.
        """
        ...

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Return what `measure` asks the model; nobody else calls this. ``seeds`` are those of the split."""
        ...
