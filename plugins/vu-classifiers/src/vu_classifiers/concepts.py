"""What may follow ``--forget`` where images have labels: ``class:cat``, or a random share of the training images."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from vu_core import Capability, Concept, DataError, Plan, Selection, did_you_mean

RANDOM = "random"
"""The word before the colon of a share of all training images; as a label, the share: ``{"random": "0.1"}``."""

_MANY = 20


def select(forget: Sequence[str], overwrite: Sequence[str], axes: Mapping[str, tuple[str, ...]]) -> Selection:
    """Understand ``axis:value``, repeated for several, or one ``random:SHARE``, as ``random:0.1`` or ``random:10%``.

    Args:
        forget: what follows ``--forget``.
        overwrite: what follows ``--overwrite``; nothing may.
        axes: values per axis.

    Raises:
        DataError: VU-D111 for unknown axes and values, one that is named twice, a share that is none, or nothing;
            VU-D112 for an overwrite.

    Example:
        >>> select(["class:cat"], [], {"class": ("cat", "dog")}).concepts[0].labels
        {'class': 'cat'}
        >>> select(["random:10%"], [], {"class": ("cat", "dog")}).concepts[0].labels
        {'random': '0.1'}
    """
    if overwrite:
        raise DataError(
            "VU-D112",
            f"These images have labels and no captions, so {overwrite[0]!r} can take the place of nothing.",
            "Leave --overwrite out: a classifier forgets a class, and methods that need another label draw one.",
            where="data.overwrite",
        )
    if not forget:
        raise refused("It is not said what to forget.", f"Name it with --forget; what can be named: {offer(axes)}.")
    concepts = tuple(Concept(text, _labels(text, axes)) for text in forget)
    shares = [concept.text for concept in concepts if RANDOM in concept.labels]
    if shares and len(concepts) > 1:
        raise refused(
            f"{shares[0]!r} cannot be forgotten together with something else.", "Name one share, or classes alone."
        )
    seen: set[str] = set()
    for concept in concepts:
        if concept.text in seen:
            raise refused(f"{concept.text!r} is named twice.", "Name every class once.")
        seen.add(concept.text)
    return Selection(concepts)


def share_of(concepts: Sequence[Concept]) -> float | None:
    """Return the share of the training images that is forgotten, or ``None`` where classes are."""
    named = [concept.labels[RANDOM] for concept in concepts if RANDOM in concept.labels]
    return float(named[0]) if named else None


def offer(axes: Mapping[str, tuple[str, ...]]) -> str:
    """Return in words what can be named.

    Example:
        >>> offer({"class": ("cat", "dog")})
        'class:cat, class:dog, or random:0.1 for a tenth of all training images'
    """
    every = [f"{axis}:{value}" for axis, values in axes.items() for value in values]
    rest = f" and {len(every) - _MANY} more" if len(every) > _MANY else ""
    return f"{', '.join(every[:_MANY])}{rest}, or {RANDOM}:0.1 for a tenth of all training images"


def check_overwrites(plan: Plan) -> None:
    """Object to a diffusion model when the data say with ``has_overwrites = False`` that they have no overwrites.

    Raises:
        DataError: VU-D113.
    """
    data, can = plan.config.data, plan.model.capabilities
    if Capability.DENOISE in can and not getattr(data.entry.load(), "has_overwrites", True):
        raise DataError(
            "VU-D113",
            f"The model {plan.model.name!r} is taught what to draw instead, and the data {data.name!r} have labels, "
            "without a caption of what takes the place.",
            "Use an image classifier, or data with overwrite captions: --data FOLDER.",
            where="data.name",
        )


def refused(problem: str, remedy: str) -> DataError:
    """Return the error for what cannot be forgotten."""
    return DataError("VU-D111", problem, remedy, where="data.forget")


def _labels(text: str, axes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    axis, colon, value = text.partition(":")
    if colon and axis == RANDOM:
        return {RANDOM: str(_share(text, value))}
    if not colon or axis not in axes:
        problem = f"{text!r} names no axis of this data." if colon else f"{text!r} is not of the form axis:value."
        exact = [f"{name}:{text}" for name, values in axes.items() if text in values]
        near = f" Did you mean {exact[0]!r}?" if exact else did_you_mean(axis, (*axes, RANDOM))
        raise refused(problem + near, f"What can be named: {offer(axes)}.")
    if value not in axes[axis]:
        raise refused(
            f"{text!r} cannot be forgotten: the axis {axis!r} has no value {value!r}.{did_you_mean(value, axes[axis])}",
            f"What can be named: {offer({axis: axes[axis]})}.",
        )
    return {axis: value}


def _share(text: str, value: str) -> float:
    match = re.fullmatch(r"(\d+|\d*\.\d+)(%?)", value)
    share = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 < share < 1:
        raise refused(
            f"{text!r} is no share of the training images.", f"Write {RANDOM}:0.1 or {RANDOM}:10%, between 0 and 1."
        )
    return share
