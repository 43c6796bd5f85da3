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

from vu_core import (
    Capability,
    DataError,
    Evaluation,
    ForgetRetain,
    Manifest,
    Plan,
    Selection,
    Source,
    Split,
    did_you_mean,
    setting,
)
from vu_folders import assembly
from vu_folders.columns import read_entry, read_text
from vu_folders.grammar import offer, read_concepts, read_share
from vu_folders.layout import METADATA, collected, disagree, drawn, parts_of, share_of, with_validation
from vu_folders.rows import IMAGE_SUFFIXES, Row, axes_of, caption_of, fingerprinted
from vu_folders.settings import ImageSettings

if TYPE_CHECKING:
    from vu_core import Run

FORGET = "forget"
_ENTRIES = 10_000  # names that `recognises` looks at


@attrs.frozen
class Config(ImageSettings):
    """Settings of the data ``imagefolder``, the table ``[data]``."""

    classes: tuple[str, ...] = setting((), help="class folders that are read, in the order of their labels; else all")
    classes_file: str | None = setting(None, help="text file with one of these class folders per line", path=True)
    random_seed: int = setting(0, help="which images --forget random:SHARE draws", ge=0)


class ImageFolder:
    """Read images from a folder.

    An image that a ``metadata.jsonl`` lists (in its folder or above) has the caption ``text`` of its line. Any other
    is captioned by the name of the folder it lies in.

    After ``--forget``, ``folder:NAME`` names everything in the folder NAME right under the data folder, ``class:NAME``
    the images without a metadata line that lie in a folder called NAME at any depth, and ``COLUMN:VALUE`` the
    images with this value in a further column of ``metadata.jsonl``. All else is retained. A folder called ``forget``
    is what is forgotten when nothing is said.

    A folder that holds ``train`` and ``test`` (or ``val``) with the same class folders, and nothing else, is separated
    already: what lies in ``test`` is held out, and what lies in ``val`` beside it is for validation, else a share of
    ``train`` is. Its only axis is ``class``; ``random:0.1`` or ``random:10%`` names a share of all training images. An
    overwrite may be given, and is needed by diffusion models alone.

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
        if self._parts and (share := read_share(forget, overwrite)) is not None:
            return Selection((share,))
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
        return self._images(selection).build(resolution, run)

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Return captions and images of ``split``; see `vu_folders.assembly.Images.evaluation`."""
        return self._images(selection).evaluation(resolution, split=split, seeds=seeds, samples=samples)

    def classes(self) -> Mapping[str, str]:
        """Return the concept of every class folder, in the order of `Config`, else of their names.

        Raises:
            DataError: VU-D118 where images lie in no class folders.
        """
        names = self._axes.get("class", ())
        if not names:
            raise disagree("These images lie in no class folders.", "Put them into folders of their class.", self.ref)
        return {name: f"class:{name}" for name in names}

    @cached_property
    def _parts(self) -> Mapping[Split, Path]:
        """Where the images of every split lie, if the folder is separated already."""
        root = Path(self.ref).expanduser()
        return parts_of(root) if root.is_dir() else {}

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        """The images with the hashes of their files."""
        rows = fingerprinted(self._found)
        return with_validation(rows, self.config.validation) if self._parts else rows

    @cached_property
    def _found(self) -> tuple[Row, ...]:
        root = Path(self.ref).expanduser()
        if not root.is_dir():
            raise DataError(
                "VU-D070",
                f"There is no folder {self.ref!r}.",
                "Name the folder: --data imagefolder=FOLDER.",
                where="data.ref",
            )
        rows = collected(self._parts, root, self._chosen, self.config) if self._parts else self._named(root)
        if not rows:
            raise DataError(
                "VU-D070",
                f"The folder {self.ref!r} holds no images.",
                f"Put images there ({', '.join(sorted(IMAGE_SUFFIXES))}), in class folders or with a {METADATA}.",
                where=str(root),
            )
        return rows

    def _named(self, root: Path) -> tuple[Row, ...]:
        """Return the images of the chosen class folders, of all when none is chosen. Raises: DataError VU-D118."""
        rows, chosen = tuple(self._collect(root, root)), self._chosen
        known = {row.labels["class"] for row in rows if "class" in row.labels}
        for name in chosen:
            if name not in known:
                raise disagree(
                    f"There is no class folder {name!r} in {self.ref!r}.{did_you_mean(name, known)}",
                    "Correct data.classes.",
                    "data.classes",
                )
        return tuple(row for row in rows if not chosen or row.labels.get("class") in chosen)

    @cached_property
    def _chosen(self) -> tuple[str, ...]:
        """The class folders that are named, none where all are meant. Raises: DataError VU-D118, VU-D070."""
        chosen, file = self.config.classes, self.config.classes_file
        if file is not None:
            path = Path(file).expanduser()
            if chosen:
                raise disagree("The classes are given twice.", "Set data.classes or data.classes_file.", "data.classes")
            if not path.is_file():
                raise DataError("VU-D070", f"There is no file {file!r}.", "Name it.", where="data.classes_file")
            chosen = tuple(line.strip() for line in read_text(path).split("\n") if line.strip())
        for place, name in enumerate(chosen):
            if name in chosen[:place]:
                raise disagree(f"The class {name!r} is named twice.", "Name every class once.", "data.classes")
        return chosen

    @cached_property
    def _axes(self) -> Mapping[str, tuple[str, ...]]:
        axes = axes_of(self._found)
        return {**axes, "class": self._chosen} if self._chosen else axes

    def _images(self, selection: Selection) -> assembly.Images:
        share = share_of(selection) if self._parts else None
        names = frozenset[str]() if share is None else drawn(self._rows, share, self.config.random_seed)

        def chosen(row: Row) -> bool:
            if share is not None:
                return row.name in names
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


def check_overwrites(plan: Plan) -> None:
    """Object to a diffusion model where the data are labelled images without an overwrite.

    Raises:
        DataError: VU-D074.
    """
    data = plan.config.data
    if data.entry.load() is not ImageFolder or Capability.DENOISE not in plan.model.capabilities:
        return
    if any(concept.overwrite for concept in plan.selection.concepts) or not parts_of(Path(data.ref).expanduser()):
        return
    raise DataError(
        "VU-D074",
        f"The model {plan.model.name!r} is taught what to draw instead of the forgotten, and no overwrite is named.",
        "Name one concept for all: --overwrite CONCEPT. A share of the images suits classifiers alone.",
        where="data.overwrite",
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
