"""Images with captions, before they are split and read: plain values, torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from vu_core import DataError, Selection, Side, Split, digest
from vu_folders.file_check import check_image
from vu_folders.settings import ImageSettings

SPLITS: tuple[Split, ...] = ("train", "validation", "held-out")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@attrs.frozen
class Row:
    """One image as the data names it.

    Args:
        path: the file; name: how the data calls it.
        caption: what it shows; overwrite: its own overwrite caption, empty when it has none.
        labels: value per axis; where: file and line that named it.
        content: SHA-256 of the file's bytes.
        split: where the folders say it belongs; ``None`` where its hash decides.
    """

    path: Path
    name: str
    caption: str
    overwrite: str
    labels: Mapping[str, str]
    where: str
    content: str = ""
    split: Split | None = None


@attrs.frozen
class Sides:
    """The rows of a run, by split and side, in their fixed order; forget rows carry their overwrite caption.

    The digest is over these rows and over the settings that decide which pixels of them are seen.
    """

    parts: Mapping[tuple[Split, Side], tuple[Row, ...]]
    digest: str

    def counts(self) -> dict[str, int]:
        """Return the number of rows per part, such as ``{"train/forget": 8}``."""
        return {f"{split}/{side}": len(rows) for (split, side), rows in self.parts.items()}

    def asked(self, split: Split, side: Side) -> tuple[Row, ...]:
        """Return the rows whose captions are asked when ``split`` is measured: training rows where it has none."""
        return self.parts[split, side] or self.parts["train", side]


def fingerprinted(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the rows with the hash of their files' bytes, after checking that each file is an image.

    Raises:
        DataError: VU-D070 for a missing file, VU-D073 for a file that is no whole 8-bit image.
    """
    return tuple(attrs.evolve(row, content=_content(row)) for row in rows)


def _content(row: Row) -> str:
    try:
        data = row.path.read_bytes()
    except OSError as error:
        raise DataError(
            "VU-D070",
            f"The image {row.name!r} cannot be read: there is no readable file {str(row.path)!r}.",
            "Put the file there, or correct its name; relative names start at the folder of the file that lists them.",
            where=row.where,
        ) from error
    check_image(data, row.path, row.where)
    return hashlib.sha256(data).hexdigest()


def axes_of(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """Return the values of every axis that a row has, sorted; axes in the order in which they appear."""
    axes: dict[str, set[str]] = {}
    for row in rows:
        for axis, value in row.labels.items():
            axes.setdefault(axis, set()).add(value)
    return {axis: tuple(sorted(values)) for axis, values in axes.items()}


def divide(forget: Sequence[Row], retain: Sequence[Row], settings: ImageSettings) -> Sides:
    """Separate both sides into train, validation and held-out.

    The different images of a side (files with equal bytes count once and stay together) are ordered by the hash of
    their bytes; the first ``floor(held_out * n)`` are held out, the next ``floor(validation * n)`` are for validation,
    but at least one each unless the fraction is 0, and at least one is left to train on. An image that lies on both
    sides is always trained on. ``max_forget`` and ``max_retain`` keep the first training images in that order.
    Images whose folders say where they belong stay there.

    Raises:
        DataError: VU-D076 when a side has too few images for its parts.
    """
    both = {row.content for row in forget} & {row.content for row in retain}
    parts: dict[tuple[Split, Side], tuple[Row, ...]] = {}
    for side, rows, limit in (("forget", forget, settings.max_forget), ("retain", retain, settings.max_retain)):
        separated = any(row.split for row in rows)
        place = _said(rows, side) if separated else _places(rows, both, settings, side)
        ordered = sorted(rows, key=lambda row: (row.content, row.name))
        for split in SPLITS:
            chosen = tuple(row for row in ordered if place[row.name if separated else row.content] == split)
            parts[split, side] = chosen[:limit] if split == "train" else chosen  # type: ignore[index]
    lines = [
        "\0".join((split, side, row.name, row.content, row.caption, row.overwrite))
        for (split, side), rows in parts.items()
        for row in rows
    ]
    pixels = f"{settings.resolution} {settings.crop} {settings.flip}"
    pixels += f" {settings.resize}" if settings.resize else ""
    return Sides(parts, digest("folders 1", pixels, *lines))


def _said(rows: Sequence[Row], side: str) -> dict[str, Split]:
    """Return the split of every image of a side, by name, as its folders say it."""
    place = {row.name: row.split for row in rows if row.split is not None}
    if "train" not in place.values():
        raise DataError(
            "VU-D076",
            f"The {side} side has no image to train on: data.validation takes all of them.",
            "Add images, or lower data.validation (0 = no such part).",
            where="data",
        )
    return place


def _places(rows: Sequence[Row], both: set[str], settings: ImageSettings, side: str) -> dict[str, Split]:
    """Return the split of every image of a side, by content."""
    place: dict[str, Split] = dict.fromkeys(both, "train")
    contents = sorted({row.content for row in rows} - both)
    wanted = {"held-out": settings.held_out, "validation": settings.validation}
    sizes = {split: max(1, int(part * len(contents) + 1e-9)) if part else 0 for split, part in wanted.items()}
    trained = len(contents) - sum(sizes.values()) + len(both)
    if rows and trained < 1:
        raise DataError(
            "VU-D076",
            f"The {side} side has {len(contents)} different images; its parts need {sum(sizes.values()) + 1} or more:"
            f" {sizes['held-out']} held out, {sizes['validation']} for validation, 1 to train on.",
            "Add images, or lower data.held_out and data.validation (0 = no such part).",
            where="data",
        )
    if not rows:
        return place
    for position, content in enumerate(contents):
        held = position < sizes["held-out"]
        seen = position < sizes["held-out"] + sizes["validation"]
        place[content] = "held-out" if held else "validation" if seen else "train"
    return place


def with_overwrites(rows: Sequence[Row], selection: Selection, settings: ImageSettings) -> tuple[Row, ...]:
    """Return forget rows with an overwrite caption each: their own, else that of the first concept they show.

    Where the folders say what is held out, overwrites may be left out altogether: then the rows stay as they are.

    Raises:
        DataError: VU-D074 when a row has neither, or would be overwritten by its own caption.
    """
    if not any(concept.overwrite for concept in selection.concepts) and all(row.split for row in rows):
        return tuple(rows)
    done = tuple(attrs.evolve(row, overwrite=row.overwrite or _supplied(row, selection, settings)) for row in rows)
    for row in done:
        if row.overwrite == row.caption:
            raise DataError(
                "VU-D074",
                f"The forget image {row.name!r} would be overwritten by its own caption, {row.caption!r}.",
                "Name another concept to take its place: --overwrite CONCEPT, or correct its overwrite caption.",
                where=row.where,
            )
    return done


def _supplied(row: Row, selection: Selection, settings: ImageSettings) -> str:
    for concept in selection.concepts:
        if concept.overwrite and all(row.labels.get(axis) == value for axis, value in concept.labels.items()):
            word = next(iter(concept.overwrite_labels.values()), concept.overwrite)
            return caption_of(word, settings)
    raise DataError(
        "VU-D074",
        f"The forget image {row.name!r} has no overwrite caption: what takes the place of what it shows?",
        f"Give it a column {settings.overwrite_column!r}, or name one concept for all: --overwrite CONCEPT.",
        where=row.where,
    )


def by_folder(row: Row) -> bool:
    """Tell whether the caption of a row is made of the name of its folder, as overwrite captions are of a word."""
    return "class" in row.labels


def caption_of(word: str, settings: ImageSettings) -> str:
    """Return the caption of a class or concept; underscores of folder names are spaces.

    Example:
        >>> caption_of("golden_retriever", ImageSettings())
        'An image of golden retriever.'
    """
    return settings.caption_template.format(word.replace("_", " "))
