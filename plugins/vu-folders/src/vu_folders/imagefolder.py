"""The data plugin ``imagefolder``: images in folders, captioned by folder name or by metadata.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core import DataError, Evaluation, ForgetRetain, Manifest, Selection, Source, Split
from vu_folders import assembly
from vu_folders.columns import read_entry, read_text
from vu_folders.grammar import offer, read_concepts
from vu_folders.rows import IMAGE_SUFFIXES, Row, axes_of, caption_of, fingerprinted
from vu_folders.settings import ImageSettings

if TYPE_CHECKING:
    from vu_core import Run

METADATA = "metadata.jsonl"
FORGET = "forget"
_ENTRIES = 10_000  # names that `recognises` looks at


@attrs.frozen
class Config(ImageSettings):
    """Settings of the data ``imagefolder``, the table ``[data]``."""


class ImageFolder:
    """Read images from a folder.

    An image that a ``metadata.jsonl`` lists (in its folder or above) has the caption ``text`` of its line. Any other
    is captioned by the name of the folder it lies in.

    After ``--forget``, ``folder:NAME`` names everything in the folder NAME right under the data folder, ``class:NAME``
    the images without a metadata line that lie in a folder called NAME at any depth, and ``COLUMN:VALUE`` the
    images with this value in a further column of ``metadata.jsonl``. All else is retained. A folder called ``forget``
    is what is forgotten when nothing is said.

    Args:
        ref: the folder; config: see `Config`.
    """

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source(
        "Image folders as in Hugging Face datasets", "https://huggingface.co/docs/datasets/image_dataset", "own"
    )
    metrics: ClassVar[tuple[str, ...]] = assembly.METRICS

    def __init__(self, ref: str, config: Config) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is a folder with an image or a ``metadata.jsonl`` at any depth.

        Of a large folder only the first entries are looked at, level by level.
        """
        if not path.is_dir():
            return False
        return any(
            entry.name == METADATA or entry.suffix.lower() in IMAGE_SUFFIXES for entry in islice(_below(path), _ENTRIES)
        )

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``--forget`` and ``--overwrite``.

        Raises:
            DataError: VU-D075 for unknown axes and values, VU-D074 without any overwrite, VU-D076 when nothing is left
                to forget, and what is wrong with the files.
        """
        notes = []
        if not forget and FORGET in self._axes.get("folder", ()):
            forget = [f"folder:{FORGET}"]
            notes.append(f"Nothing was named, so what lies in the folder {FORGET!r} is forgotten.")
        if not forget:
            raise DataError(
                "VU-D075",
                "It is not said what to forget.",
                f"Name it with --forget; what can be named: {offer(self._axes)}.",
                where="data.forget",
            )
        selection = Selection(read_concepts(forget, overwrite, self._axes))
        return self._images(selection).noted(bool(overwrite), notes)

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the data that a run will see. Raises: DataError VU-D070 to VU-D076."""
        return self._images(selection).manifest("imagefolder", self.ref)

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return train and validation examples; ``resolution`` is used when the configuration names none."""
        return self._images(selection).build(resolution)

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Return captions and images of ``split``; see `vu_folders.assembly.Images.evaluation`."""
        return self._images(selection).evaluation(resolution, split=split, seeds=seeds, samples=samples)

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        root = Path(self.ref).expanduser()
        if not root.is_dir():
            raise DataError(
                "VU-D070",
                f"There is no folder {self.ref!r}.",
                "Name the folder: --data imagefolder=FOLDER.",
                where="data.ref",
            )
        rows = tuple(self._collect(root, root))
        if not rows:
            raise DataError(
                "VU-D070",
                f"The folder {self.ref!r} holds no images.",
                f"Put images there ({', '.join(sorted(IMAGE_SUFFIXES))}), in class folders or with a {METADATA}.",
                where=str(root),
            )
        return fingerprinted(rows)

    @cached_property
    def _axes(self) -> Mapping[str, tuple[str, ...]]:
        return axes_of(self._rows)

    def _images(self, selection: Selection) -> assembly.Images:
        def chosen(row: Row) -> bool:
            return any(all(row.labels.get(a) == v for a, v in c.labels.items()) for c in selection.concepts)

        forget = tuple(row for row in self._rows if chosen(row))
        if not forget:
            raise DataError(
                "VU-D076",
                "No image shows all that was named.",
                f"Name something that exists: {offer(self._axes)}.",
                where="data.forget",
            )
        retain = tuple(row for row in self._rows if not chosen(row))
        return assembly.Images(selection, forget, retain, self._axes, self.config)

    def _collect(self, folder: Path, root: Path) -> Iterator[Row]:
        """Yield the rows of a folder and of those below it, in the order of their names."""
        if (folder / METADATA).is_file():
            yield from self._listed(folder, root)
            return
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from self._collect(path, root)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                yield self._by_folder(path, root)

    def _by_folder(self, path: Path, root: Path) -> Row:
        if path.parent in (root, root / FORGET, root / "retain"):
            raise DataError(
                "VU-D071",
                f"The image {str(path)!r} has no caption.",
                f"List it in {str(path.parent / METADATA)!r}, or put it into a folder named after what it shows.",
                where=str(path),
            )
        labels = {"folder": path.relative_to(root).parts[0], "class": path.parent.name}
        caption = caption_of(path.parent.name, self.config)
        return Row(path, path.relative_to(root).as_posix(), caption, "", labels, str(path))

    def _listed(self, folder: Path, root: Path) -> Iterator[Row]:
        listing = folder / METADATA
        seen = set()
        for number, line in enumerate(read_text(listing).split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{listing}:{number}"
            name, caption, overwrite, columns = read_entry(_parse(line, where), where, self.config.overwrite_column)
            path = folder / name
            seen.add(path.resolve())
            parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
            labels = {"folder": parts[0]} if len(parts) > 1 else {}
            yield Row(path, name, caption, overwrite, {**labels, **columns}, where)
        for path in sorted(folder.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.suffix.lower() in IMAGE_SUFFIXES and path.resolve() not in seen and not hidden:
                raise DataError(
                    "VU-D071",
                    f"The image {str(path)!r} is not listed in {str(listing)!r}.",
                    "Add a line for it, or take the image away.",
                    where=str(listing),
                )


def _below(folder: Path) -> Iterator[Path]:
    """Yield what lies under a folder, level by level, without hidden names and folders that cannot be read."""
    level = [folder]
    while level:
        deeper: list[Path] = []
        for place in level:
            with suppress(OSError):
                for entry in place.iterdir():
                    if not entry.name.startswith("."):
                        yield entry
                        if entry.is_dir():
                            deeper.append(entry)
        level = deeper


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(
            "VU-D071", f"This line is no valid JSON: {error}.", "Write one JSON object per line.", where=where
        ) from error
