"""What both kinds of data hand out: tables of examples, and what `measure` asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vu_core import Evaluation, EvaluationItem, Examples, ForgetRetain, Manifest, Selection, Side, Split
from vu_folders.pictures import read_picture
from vu_folders.rows import Row, Sides
from vu_folders.settings import PictureSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

METRICS = ("edit-size", "denoising-gap")
"""Asked when nothing is said: nobody judges what is on a stranger's pictures."""


def manifest(
    name: str, ref: str, sides: Sides, axes: Mapping[str, tuple[str, ...]], settings: PictureSettings
) -> Manifest:
    """Describe the data that a run will see."""
    items = len({row.caption for side in ("forget", "retain") for row in sides.asked("held-out", side)})
    limits = {"max_forget": settings.max_forget, "max_retain": settings.max_retain}
    limited = ", ".join(f"{key} = {limit}" for key, limit in limits.items() if limit)
    split = (
        f"per side by the hash of the file's bytes: {settings.held_out:g} held out, {settings.validation:g} for"
        " validation, at least one each unless 0, the rest to train on" + (f" ({limited})" if limited else "")
    )
    counts = {**sides.counts(), "evaluation/items": items}
    return Manifest(name=name, ref=ref, digest=sides.digest, counts=counts, split=split, axes=axes)


def training_data(
    sides: Sides, axes: Mapping[str, tuple[str, ...]], settings: PictureSettings, resolution: int
) -> ForgetRetain:
    """Return train and validation examples; only training pictures are cropped at random and flipped."""
    size = settings.resolution or resolution

    def table(split: Split, side: Side) -> Examples:
        return examples(sides.parts[split, side], side, axes, size, settings if split == "train" else None)

    return ForgetRetain(
        table("train", "forget"), table("train", "retain"), table("validation", "forget"), table("validation", "retain")
    )


def examples(
    rows: Sequence[Row], side: Side, axes: Mapping[str, tuple[str, ...]], size: int, augment: PictureSettings | None
) -> Examples:
    """Return a table of examples; without ``augment`` the middle square is taken and nothing is flipped."""
    return Examples(
        side=side,
        captions=tuple(row.caption for row in rows),
        overwrites=tuple(row.overwrite for row in rows) if side == "forget" else None,
        labels={axis: tuple(row.labels.get(axis, "") for row in rows) for axis in axes},
        load=_loader(rows, size, augment),
        reload=augment is not None and augment.crop == "random_per_step",
    )


def _loader(
    rows: Sequence[Row], size: int, augment: PictureSettings | None
) -> Callable[[int, torch.Generator], Tensor]:
    random_crop = augment is not None and augment.crop != "center"
    flip = augment is not None and augment.flip

    def load(row: int, generator: torch.Generator) -> Tensor:
        return read_picture(rows[row].path, size, random_crop=random_crop, flip=flip, generator=generator)

    return load


def evaluation(
    sides: Sides,
    selection: Selection,
    axes: Mapping[str, tuple[str, ...]],
    size: int,
    *,
    split: Split,
    seeds: Sequence[int],
    samples: int,
) -> Evaluation:
    """Return what `measure` asks: the captions of the part's pictures with every seed, and the pictures themselves.

    Without pictures in the part (its fraction is 0) the captions of the training pictures are asked and no examples are
    given. Half of the ``samples``, rounded up, show what was to be forgotten.
    """
    asked: dict[Side, list[EvaluationItem]] = {}
    for side in ("forget", "retain"):
        rows = sides.asked(split, side)
        shown = {row.caption: row for row in reversed(rows)}  # one item per caption, in the order of the rows
        prompts = [shown[caption] for caption in dict.fromkeys(row.caption for row in rows)]
        asked[side] = [
            EvaluationItem(row.caption, seed, dict(row.labels), side == "forget") for row in prompts for seed in seeds
        ]
    unseen = {side: sides.parts[split, side] for side in asked}
    tables = tuple(examples(rows, side, axes, size, None) for side, rows in unseen.items())
    return Evaluation(
        split=split,
        items=(*asked["forget"], *asked["retain"]),
        axes=axes,
        examples=(tables[0], tables[1]) if all(unseen.values()) else None,
        samples=_samples(asked["forget"], asked["retain"], len(seeds), samples),
        concepts=selection.concepts,
    )


def _samples(
    forget: Sequence[EvaluationItem], retain: Sequence[EvaluationItem], seeds: int, samples: int
) -> tuple[EvaluationItem, ...]:
    """Return items of both sides, different prompts first, then further seeds."""

    def spread(items: Sequence[EvaluationItem]) -> list[EvaluationItem]:
        return [item for turn in range(seeds) for item in items[turn::seeds]]

    kept = spread(retain)[: samples // 2]
    return (*spread(forget)[: samples - len(kept)], *kept)
