"""Settings that all data with images have, and the check of a template."""

from __future__ import annotations

import attrs

from vu_core import setting

CROPS = ("random", "center", "random_per_step")


def _multiple_of_8(value: int) -> str | None:
    return None if value % 8 == 0 else f"must be a multiple of 8, but is {value}"


def one_gap(value: str) -> str | None:
    """Tell what is wrong with a template that is filled with one word, or return ``None``."""
    try:
        filled = value.format("\0")
    except (IndexError, KeyError, ValueError) as error:
        return f"must hold one {{}} and no other braces, but is {value!r} ({error})"
    return None if filled.count("\0") == 1 else f"must hold one {{}}, but is {value!r}"


@attrs.frozen
class ImageSettings:
    """How images are read, captioned, limited and split."""

    resolution: int | None = setting(
        None, help="side of the images in pixels; the model's own when absent", ge=8, check=_multiple_of_8
    )
    resize: int | None = setting(
        None, help="short side of an image in pixels before the square is cut out; its side when absent", ge=8
    )
    crop: str = setting(
        "random",
        help="square taken from a training image: random once per run, center, or anew at every step",
        choices=CROPS,
    )
    flip: bool = setting(False, help="mirror training images left to right, each with probability 1/2")
    caption_template: str = setting(
        "An image of {}.", help="caption of a class or overwrite concept, put in place of {}", check=one_gap
    )
    overwrite_column: str = setting("overwrite", help="metadata column with the overwrite caption of a forget image")
    max_forget: int | None = setting(None, help="at most so many forget images are trained on", ge=1)
    max_retain: int | None = setting(None, help="at most so many retain images are trained on", ge=1)
    validation: float = setting(0.1, help="part of each side that methods may select on", ge=0, lt=1)
    held_out: float = setting(0.1, help="part of each side that only measure sees", ge=0, lt=1)
