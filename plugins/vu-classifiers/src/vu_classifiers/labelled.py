"""Labelled images in memory, divided into what is forgotten and what is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray

from vu_classifiers.concepts import refused, share_of
from vu_core import (
    Evaluation,
    EvaluationItem,
    Examples,
    ForgetRetain,
    Manifest,
    Run,
    Selection,
    Side,
    Split,
    digest,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Rows = NDArray[np.int64]

CLASS = "class"
METRICS = ("classification", "edit-size")
"""Asked when nothing is said."""

LARGEST = 2**32
"""Bytes of a table in memory; images of a larger one are resized whenever they are used."""

PADDING = 8
"""A shifted image is padded by this part of its side: 4 pixels at 32."""


@attrs.frozen(eq=False)
class Labelled:
    """Images and their labels, as a file or a package holds them.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        axes: per axis its values; those of ``class`` in the order of their labels.
        labels: per axis the place of every image among the values, ``(N,)``.
        train: rows to train on; test: rows that only `measure` sees, ``(n,)``.
    """

    images: NDArray[np.uint8]
    axes: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, Rows]
    train: Rows
    test: Rows

    @cached_property
    def hashes(self) -> list[bytes]:
        """SHA-256 per image."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images]

    def stratified(self, rows: Rows, share: float) -> tuple[Rows, Rows]:
        """Separate ``floor(share n)`` of the n rows of every class, at least one, from the others; none for 0.

        They are the first in the order of their hashes. Equal images of a class stay together.

        Returns:
            The share and the others, both in the order of the rows.
        """
        taken: list[int] = []
        for number in range(len(self.axes[CLASS])) if share else ():
            own = sorted((self.hashes[row], int(row)) for row in rows[self.labels[CLASS][rows] == number])
            wanted = max(1, int(share * len(own) + 1e-9))
            while 0 < wanted < len(own) and own[wanted][0] == own[wanted - 1][0]:
                wanted += 1
            taken += [row for _, row in own[:wanted]]
        chosen = np.isin(rows, taken)
        return rows[chosen], rows[~chosen]


@attrs.frozen(eq=False)
class Divided:
    """The images of a selection, by split and side.

    Class-wise, the forget side of every split holds its images that show a named class. Of a random share the forget
    side holds training images alone, so that validation and held-out are all retained. They are
    ``floor(share n)`` of the n training images of all classes, validation left out: the first in the order of
    ``SHA-256(seed, image)``.

    Args:
        data: the images; selection: what was asked.
        validation: share of every class that is taken out of the training images.
        random_seed: which random share is drawn.
        augment: whether training images are shifted, and with ``flip`` mirrored, at every step.
    """

    data: Labelled
    selection: Selection
    validation: float
    random_seed: int
    augment: bool
    flip: bool

    @cached_property
    def parts(self) -> Mapping[tuple[Split, Side], Rows]:
        """Rows by split and side, in the order of the data. Raises: DataError (``VU-D111``)."""
        held, train = self.data.stratified(self.data.train, self.validation)
        forgotten = self._forgotten(train)
        parts: dict[tuple[Split, Side], Rows] = {}
        splits: tuple[tuple[Split, Rows], ...] = (
            ("train", train),
            ("validation", held),
            ("held-out", self.data.test),
        )
        for split, rows in splits:
            parts[split, "forget"] = rows[forgotten[rows]]
            parts[split, "retain"] = rows[~forgotten[rows]]
        return parts

    def _forgotten(self, train: Rows) -> NDArray[np.bool_]:
        """Return for every image whether it is forgotten, ``(N,)``."""
        data, share = self.data, share_of(self.selection.concepts)
        forgotten = np.zeros(len(data.images), dtype=bool)
        if share is None:
            for concept in self.selection.concepts:
                for axis, value in concept.labels.items():
                    forgotten |= data.labels[axis] == data.axes[axis].index(value)
            return forgotten
        count = int(share * len(train) + 1e-9)
        if not count:
            text = self.selection.concepts[0].text
            raise refused(f"{text!r} of {len(train)} training images is no image.", "Name a larger share.")
        seed = f"random {self.random_seed} ".encode()
        order = sorted((hashlib.sha256(seed + data.hashes[row]).digest(), int(row)) for row in train)
        forgotten[[row for _, row in order[:count]]] = True
        return forgotten

    def manifest(self, name: str, ref: str, split: str) -> Manifest:
        """Describe the data that a run will see.

        Args:
            name: of the data.
            ref: where they lie.
            split: how the test images were separated, in words.
        """
        counts = {f"{part}/{side}": len(rows) for (part, side), rows in self.parts.items()}
        words = f"{split}; {self.validation:g} of the training images of every class for validation, by their hash"
        if share_of(self.selection.concepts) is not None:
            words += f"; random share drawn with seed {self.random_seed}"
        lines = [f"{part} {side} {row} {self._words(row)}" for (part, side), rows in self.parts.items() for row in rows]
        content = b"".join(self.data.hashes)
        augment = f"augment {self.augment} flip {self.flip}"
        return Manifest(
            name=name,
            ref=ref,
            digest=digest("labelled 1", content, augment, *lines),
            counts={**counts, "evaluation/items": len(self._shown("held-out"))},
            split=words,
            axes=self.data.axes,
        )

    def build(self, resolution: int, run: Run) -> ForgetRetain:
        """Return train and validation tables; while a run is measured, training images are not augmented."""
        augment = self.augment and run.stage != "measure"
        return ForgetRetain(
            self._table("train", "forget", resolution, augment),
            self._table("train", "retain", resolution, augment),
            self._table("validation", "forget", resolution),
            self._table("validation", "retain", resolution),
        )

    def evaluation(self, resolution: int, *, split: Split, seeds: Sequence[int], samples: int) -> Evaluation:
        """Return the images of ``split``, and an item per class and seed.

        Half of the ``samples``, rounded up, show what was to be forgotten.
        """
        shown = self._shown(split)
        items = tuple(EvaluationItem(labels[CLASS], seed, labels, forget) for seed in seeds for labels, forget in shown)
        kept = [item for item in items if not item.forget][: samples // 2]
        lost = [item for item in items if item.forget][: samples - len(kept)]
        return Evaluation(
            split=split,
            items=items,
            axes=self.data.axes,
            examples=(self._table(split, "forget", resolution), self._table(split, "retain", resolution)),
            samples=(*lost, *kept),
            concepts=self.selection.concepts,
        )

    def _shown(self, split: Split) -> list[tuple[dict[str, str], bool]]:
        """Return the labels of every class that a split shows, in the order of the classes, and whether it is lost."""
        first: dict[int, tuple[dict[str, str], bool]] = {}
        for side in ("forget", "retain"):
            for row in self.parts[split, side]:
                first.setdefault(int(self.data.labels[CLASS][row]), (self._words(row), side == "forget"))
        return [first[number] for number in sorted(first)]

    def _words(self, row: int) -> dict[str, str]:
        return {axis: values[self.data.labels[axis][row]] for axis, values in self.data.axes.items()}

    def _table(self, split: Split, side: Side, size: int, augment: bool = False) -> Examples:
        """Return the table of a part: its images as the column ``pixels``, uint8, unless they differ at every step."""
        import torch

        rows, flip = self.parts[split, side], self.flip
        native = torch.from_numpy(self.data.images[rows])  # (n, 3, H, W)
        large = 3 * size * size * len(rows) > LARGEST
        levels = native if large else resized(native, size)  # (n, 3, S, S)

        def load(row: int, generator: torch.Generator) -> Tensor:
            image = resized(levels[row : row + 1], size)[0]
            if augment:
                image = shifted(image, generator, flip=flip)
            return image.float() / 127.5 - 1

        labels, axes = self.data.labels, self.data.axes
        words = {axis: tuple(values[place] for place in labels[axis][rows]) for axis, values in axes.items()}
        return Examples(
            side=side,
            captions=words[CLASS],
            labels=words,
            load=load,
            tensors={} if augment or large else {"pixels": levels},
            reload=augment or large,
        )


def resized(levels: Tensor, size: int) -> Tensor:
    """Return images as uint8 ``(n, 3, size, size)``, bilinear and antialiased; as they are where they have the size.

    Args:
        levels: uint8 ``(n, 3, H, W)``.
        size: side in pixels.
    """
    import torch
    from torch.nn import functional

    if levels.shape[-2:] == (size, size):
        return levels
    chunks = [
        functional.interpolate(chunk.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for chunk in levels.split(1024)
    ]
    return torch.cat(chunks) if chunks else levels.new_empty(0, 3, size, size)


def shifted(image: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """Return an image cut at random out of itself with a black frame of an eighth of its side, and maybe mirrored.

    Args:
        image: ``(3, S, S)``.
        generator: draws top, left and mirror, always in this order.
        flip: mirror with probability 1/2.
    """
    import torch
    from torch.nn import functional

    size = image.shape[-1]
    frame = size // PADDING
    top, left, mirror = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    y, x = int(top * (2 * frame + 1)), int(left * (2 * frame + 1))
    image = functional.pad(image, (frame, frame, frame, frame))[:, y : y + size, x : x + size]
    return image.flip(-1) if flip and mirror < 0.5 else image
