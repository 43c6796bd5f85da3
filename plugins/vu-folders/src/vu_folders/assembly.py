"""What both kinds of data hand out: tables of examples, and what `measure` asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from vu_core import DataError, Evaluation, EvaluationItem, Examples, ForgetRetain, Manifest, Run, Selection, Side, Split
from vu_folders.images import read_image
from vu_folders.layout import share_of
from vu_folders.rows import Row, Sides, by_folder, divide, with_overwrites
from vu_folders.settings import ImageSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

METRICS = ("edit-size", "denoising-gap", "classification")
"""Asked when nothing is said, of a model that can serve them: nobody judges what is on a stranger's images."""


@attrs.frozen
class Images:
    """The images of a selection: what both kinds of data make of them.

    Args:
        selection: what was asked; forget, retain: the rows of either side, before they are split.
        axes: the values of every axis; settings: how images are read and split.
    """

    selection: Selection
    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    axes: Mapping[str, tuple[str, ...]]
    settings: ImageSettings

    def noted(self, overwrites_named: bool, notes: Sequence[str] = ()) -> Selection:
        """Return the selection with notes on what its overwrite captions are. Raises: DataError VU-D074."""
        done = with_overwrites(self.forget, self.selection, self.settings)
        own = sum(bool(row.overwrite) for row in self.forget)
        notes = list(notes)
        if own and overwrites_named:
            notes.append(f"{own} of {len(done)} forget images have their own overwrite caption; it comes first.")
        # A caption of one's own is rarely written like the template, so more than the concept would differ.
        made = [row for row, asked in zip(done, self.forget, strict=True) if not asked.overwrite and not by_folder(row)]
        for caption in dict.fromkeys(row.overwrite for row in made):
            count = sum(row.overwrite == caption for row in made)
            notes.append(
                f"The overwrite caption of {count} of {len(done)} forget images is {caption!r} "
                "(data.caption_template), although they have captions of their own."
            )
        if not self.retain:
            notes.append("Every image is to be forgotten: nothing is left to retain.")
        return attrs.evolve(self.selection, notes=tuple(notes))

    def sides(self) -> Sides:
        """Return the rows by split and side. Raises: DataError VU-D074, VU-D076."""
        return divide(with_overwrites(self.forget, self.selection, self.settings), self.retain, self.settings)

    def manifest(self, name: str, ref: str) -> Manifest:
        """Describe the data that a run will see."""
        sides, settings = self.sides(), self.settings
        items = len({row.caption for side in ("forget", "retain") for row in sides.asked("held-out", side)})
        limits = {"max_forget": settings.max_forget, "max_retain": settings.max_retain}
        limited = ", ".join(f"{key} = {limit}" for key, limit in limits.items() if limit)
        split = (
            f"per side by the hash of the file's bytes: {settings.held_out:g} held out, {settings.validation:g} for"
            " validation, at least one each unless 0, the rest to train on"
        )
        if any(row.split for row in self.retain):
            split = (
                "by folder: train to train on, test (without it val) held out, val beside test for validation, else"
                f" {settings.validation:g} of every class in train by the hash of the file's bytes"
            )
        split += f" ({limited})" if limited else ""
        counts = {**sides.counts(), "evaluation/items": items}
        return Manifest(name=name, ref=ref, digest=sides.digest, counts=counts, split=split, axes=self.axes)

    def build(self, resolution: int, run: Run) -> ForgetRetain:
        """Return train and validation examples; only training images are cropped at random and flipped.

        While a run is measured, none are. Raises: DataError VU-D119.
        """
        sides, size = self.sides(), self._size(resolution)

        def table(split: Split, side: Side) -> Examples:
            augment = split == "train" and run.stage != "measure"
            return examples(sides.parts[split, side], side, self.axes, size, self.settings, augment=augment)

        return ForgetRetain(
            table("train", "forget"),
            table("train", "retain"),
            table("validation", "forget"),
            table("validation", "retain"),
        )

    def evaluation(self, resolution: int, *, split: Split, seeds: Sequence[int], samples: int) -> Evaluation:
        """Return what `measure` asks: the captions of the part with every seed, and the images themselves.

        Without images in the part (its fraction is 0) the captions of the training images are asked and no examples
        are given. Of a random share of the training images nothing is asked, and its examples are none. Half of the
        ``samples``, rounded up, show what was to be forgotten.
        """
        sides, size = self.sides(), self._size(resolution)
        asked: dict[Side, list[EvaluationItem]] = {}
        drawn = any(row.split for row in self.forget) and share_of(self.selection) is not None
        for side in ("forget", "retain"):
            rows = () if drawn and side == "forget" else sides.asked(split, side)
            shown = {row.caption: row for row in reversed(rows)}  # one item per caption, in the order of the rows
            prompts = [shown[caption] for caption in dict.fromkeys(row.caption for row in rows)]
            asked[side] = [
                EvaluationItem(row.caption, seed, dict(row.labels), side == "forget")
                for row in prompts
                for seed in seeds
            ]
        unseen = {side: sides.parts[split, side] for side in asked}
        tables = tuple(examples(rows, side, self.axes, size, self.settings) for side, rows in unseen.items())
        return Evaluation(
            split=split,
            items=(*asked["forget"], *asked["retain"]),
            axes=self.axes,
            examples=(tables[0], tables[1]) if unseen["retain"] and (unseen["forget"] or drawn) else None,
            samples=spread_samples(asked["forget"], asked["retain"], len(seeds), samples),
            concepts=self.selection.concepts,
        )

    def _size(self, resolution: int) -> int:
        """Return the side of the squares. Raises: DataError VU-D119 when images are made smaller than that."""
        size, short = self.settings.resolution or resolution, self.settings.resize
        if short is not None and short < size:
            raise DataError(
                "VU-D119",
                f"data.resize is {short}, but squares of {size} pixels are cut out.",
                f"Use at least {size}, or leave it out.",
                where="data.resize",
            )
        return size


def examples(
    rows: Sequence[Row],
    side: Side,
    axes: Mapping[str, tuple[str, ...]],
    size: int,
    settings: ImageSettings,
    *,
    augment: bool = False,
) -> Examples:
    """Return a table of examples; without ``augment`` the middle square is taken and nothing is flipped."""
    overwrites = tuple(row.overwrite for row in rows)
    return Examples(
        side=side,
        captions=tuple(row.caption for row in rows),
        overwrites=overwrites if side == "forget" and (all(overwrites) or not rows) else None,
        labels={axis: tuple(row.labels.get(axis, "") for row in rows) for axis in axes},
        load=_loader(rows, size, settings, augment),
        reload=augment and settings.crop == "random_per_step",
    )


def _loader(
    rows: Sequence[Row], size: int, settings: ImageSettings, augment: bool
) -> Callable[[int, torch.Generator], Tensor]:
    random_crop, flip, short = augment and settings.crop != "center", augment and settings.flip, settings.resize

    def load(row: int, generator: torch.Generator) -> Tensor:
        path = rows[row].path
        return read_image(path, size, random_crop=random_crop, flip=flip, generator=generator, short=short)

    return load


def spread_samples(
    forget: Sequence[EvaluationItem], retain: Sequence[EvaluationItem], seeds: int, samples: int
) -> tuple[EvaluationItem, ...]:
    """Return ``samples`` items of both sides, different prompts first, then further seeds."""

    def spread(items: Sequence[EvaluationItem]) -> list[EvaluationItem]:
        return [item for turn in range(seeds) for item in items[turn::seeds]]

    kept = spread(retain)[: samples // 2]
    return (*spread(forget)[: samples - len(kept)], *kept)
