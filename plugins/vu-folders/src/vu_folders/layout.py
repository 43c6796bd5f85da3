"""Folders that are separated already: ``train`` beside ``test`` or ``val``, each with the same class folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from vu_core import DataError, Selection, Split, did_you_mean
from vu_folders.rows import IMAGE_SUFFIXES, Row, caption_of
from vu_folders.settings import ImageSettings

METADATA = "metadata.jsonl"
PARTS = ("train", "test", "val")
RANDOM = "random"
"""The word before the colon of a share of all training images; as a label, the share: ``{"random": "0.1"}``."""


def parts_of(root: Path) -> dict[Split, Path]:
    """Return the folder of every split of a data folder that is separated already, and nothing for any other.

    The folder holds ``train``, one or both of ``test`` and ``val``, and no other folder; each of them holds class
    folders and neither images nor a ``metadata.jsonl`` right inside. ``test`` is held out and ``val`` for validation;
    without ``test``, ``val`` is held out.
    """
    folders = {path.name: path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if not {"train"} < folders.keys() <= set(PARTS) or not all(map(_holds_classes, folders.values())):
        return {}
    parts: dict[Split, Path] = {"train": folders["train"], "held-out": folders.get("test") or folders["val"]}
    if len(folders) == len(PARTS):
        parts["validation"] = folders["val"]
    return parts


def collected(
    parts: Mapping[Split, Path], root: Path, chosen: Sequence[str], settings: ImageSettings
) -> tuple[Row, ...]:
    """Return the images of the chosen classes, of all when none is, by split, class and name.

    Raises:
        DataError: VU-D118 when a split lacks a class.
    """
    found = {split: {path.name: path for path in _folders(folder)} for split, folder in parts.items()}
    wanted = list(chosen) or sorted({name for folders in found.values() for name in folders})
    rows = []
    for split, folders in found.items():
        for name in wanted:
            images = sorted(_images(folders[name])) if name in folders else []
            if not images:
                near = "" if name in folders else did_you_mean(name, folders)
                raise disagree(
                    f"The class {name!r} has no images in {str(parts[split])!r}.{near}",
                    "Put images there, or leave the class out with data.classes.",
                    str(parts[split]),
                )
            for path in images:
                place, caption = path.relative_to(root).as_posix(), caption_of(name, settings)
                rows.append(Row(path, place, caption, "", {"class": name}, str(path), split=split))
    return tuple(rows)


def with_validation(rows: Sequence[Row], share: float) -> tuple[Row, ...]:
    """Return the rows with a share of every class's training images set apart for validation, unless a folder is.

    Of n different images of a class they are the first ``floor(share n)`` in the order of their hashes, at least one
    unless the share is 0. Equal images stay together.
    """
    if not share or any(row.split == "validation" for row in rows):
        return tuple(rows)
    own: dict[str, set[str]] = {}
    for row in rows:
        if row.split == "train":
            own.setdefault(row.labels["class"], set()).add(row.content)
    held = {name: set(sorted(found)[: max(1, int(share * len(found) + 1e-9))]) for name, found in own.items()}
    return tuple(
        attrs.evolve(row, split="validation")
        if row.split == "train" and row.content in held[row.labels["class"]]
        else row
        for row in rows
    )


def drawn(rows: Iterable[Row], share: float, seed: int) -> frozenset[str]:
    """Return the names of ``floor(share n)`` of the n training images: the first by ``SHA-256(seed, image)``.

    Equal images are drawn together.

    Raises:
        DataError: VU-D076 when that is no image.
    """
    order = sorted(
        (hashlib.sha256(f"random {seed} {row.content}".encode()).hexdigest(), row.name)
        for row in rows
        if row.split == "train"
    )
    count = int(share * len(order) + 1e-9)
    if not count:
        raise DataError(
            "VU-D076",
            f"A share of {share:g} of {len(order)} training images is no image.",
            "Name a larger share.",
            where="data.forget",
        )
    while count < len(order) and order[count][0] == order[count - 1][0]:
        count += 1
    return frozenset(name for _, name in order[:count])


def share_of(selection: Selection) -> float | None:
    """Return the share of the training images that is forgotten, or ``None`` where concepts are."""
    named = [concept.labels[RANDOM] for concept in selection.concepts if RANDOM in concept.labels]
    return float(named[0]) if named else None


def disagree(problem: str, remedy: str, where: str) -> DataError:
    """Return the error for class folders that do not fit a list, or each other."""
    return DataError("VU-D118", problem, remedy, where=where)


def _holds_classes(folder: Path) -> bool:
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if any(path.name == METADATA or path.suffix.lower() in IMAGE_SUFFIXES for path in entries if path.is_file()):
        return False
    return any(path.is_dir() for path in entries)


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _images(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden:
            yield path
