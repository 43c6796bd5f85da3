"""What may follow ``--forget`` and ``--overwrite``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vu_core import Concept, DataError, did_you_mean

_MANY = 8


def read_concepts(
    forget: Sequence[str], overwrite: Sequence[str], axes: Mapping[str, tuple[str, ...]]
) -> tuple[Concept, ...]:
    """Understand ``axis:value`` and ``axis:value+axis:value``; one overwrite for all concepts, or one each.

    An overwrite is ``axis:value`` or free text.

    Raises:
        DataError: VU-D075 for unknown axes and values, or numbers that do not match.

    Example:
        >>> read_concepts(["class:cat"], ["a dog"], {"class": ("cat", "cow")})[0].overwrite
        'a dog'
    """
    if len(overwrite) not in (0, 1, len(forget)):
        raise DataError(
            "VU-D075",
            f"There are {len(forget)} concepts to forget and {len(overwrite)} overwrites.",
            "Give one --overwrite for all concepts, or one for each.",
            where="data.overwrite",
        )
    partners = list(overwrite) * (len(forget) if len(overwrite) == 1 else 1) or [None] * len(forget)
    return tuple(_concept(text, partner, axes) for text, partner in zip(forget, partners, strict=True))


def offer(axes: Mapping[str, tuple[str, ...]]) -> str:
    """Return in words what can be named.

    Example:
        >>> offer({"class": ("cat", "dog")})
        'class:cat, class:dog'
    """
    every = [f"{axis}:{value}" for axis, values in axes.items() for value in values]
    rest = f" and {len(every) - _MANY} more" if len(every) > _MANY else ""
    return ", ".join(every[:_MANY]) + rest if every else "nothing"


def _concept(text: str, overwrite: str | None, axes: Mapping[str, tuple[str, ...]]) -> Concept:
    labels = _labels(text, axes, "data.forget")
    if overwrite is None:
        return Concept(text, labels)
    if not overwrite.strip():
        raise DataError("VU-D075", "The overwrite is empty.", "Name a concept.", where="data.overwrite")
    named = _labels(overwrite, axes, "data.overwrite") if overwrite.partition(":")[0] in axes else {}
    return Concept(text, labels, overwrite, named)


def _labels(text: str, axes: Mapping[str, tuple[str, ...]], where: str) -> dict[str, str]:
    names = "|".join(re.escape(axis) for axis in axes)
    labels: dict[str, str] = {}
    for part in re.split(rf"\+(?=(?:{names}):)", text) if names else [text]:
        axis, colon, value = part.partition(":")
        if not colon or axis not in axes:
            problem = f"{part!r} names no axis of this data." if colon else f"{part!r} is not of the form axis:value."
            near = did_you_mean(axis, axes) if colon else _by_value(part, axes)
            raise DataError("VU-D075", f"{problem}{near}", f"What can be named: {offer(axes)}.", where=where)
        if value not in axes[axis]:
            raise DataError(
                "VU-D075",
                f"The axis {axis!r} has no value {value!r}.{did_you_mean(value, axes[axis])}",
                f"What can be named: {offer({axis: axes[axis]})}.",
                where=where,
            )
        labels[axis] = value
    return labels


def _by_value(word: str, axes: Mapping[str, tuple[str, ...]]) -> str:
    exact = [f"{axis}:{value}" for axis, values in axes.items() for value in values if value == word]
    return f" Did you mean {' or '.join(map(repr, exact))}?" if exact else ""
