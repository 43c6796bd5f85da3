"""What may follow ``--forget`` and ``--overwrite``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import permutations

from vu_core import Concept, DataError, did_you_mean

_MANY = 8
_LABEL = re.compile(r"[\w-]+:\S")  # meant as axis:value
_SHARE = re.compile(r"random:(\d+|\d*\.\d+)(%?)")


def read_concepts(
    forget: Sequence[str],
    overwrite: Sequence[str],
    axes: Mapping[str, tuple[str, ...]],
    overwrite_axes: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Concept, ...]:
    """Understand ``axis:value`` and ``axis:value+axis:value``; one overwrite for all concepts, or one each.

    An overwrite is one ``axis:value``, or free text; what looks like ``word:value`` is no free text.

    Args:
        forget: what follows ``--forget``.
        overwrite: what follows ``--overwrite``.
        axes: values per axis.
        overwrite_axes: the same for overwrites; ``axes`` when absent.

    Raises:
        DataError: VU-D075 for unknown axes and values, an axis named twice in one concept, concepts of which one
            contains another, an overwrite of several values, or numbers that do not match.

    Example:
        >>> read_concepts(["class:cat"], ["a dog"], {"class": ("cat", "cow")})[0].overwrite
        'a dog'
    """
    if len(overwrite) not in (0, 1, len(forget)):
        raise _refused(
            f"There are {len(forget)} concepts to forget and {len(overwrite)} overwrites.",
            "Give one --overwrite for all concepts, or one for each.",
            "data.overwrite",
        )
    partners: list[str | None] = [*overwrite] * (len(forget) if len(overwrite) == 1 else 1) or [None] * len(forget)
    places = axes if overwrite_axes is None else overwrite_axes
    concepts = tuple(_concept(text, partner, axes, places) for text, partner in zip(forget, partners, strict=True))
    for one, other in permutations(concepts, 2):
        if one.labels.items() <= other.labels.items():
            raise _refused(
                f"{other.text!r} is part of {one.text!r}, or the same.",
                f"Leave --forget {other.text} out: its images are forgotten already.",
                "data.forget",
            )
    return concepts


def read_share(forget: Sequence[str], overwrite: Sequence[str]) -> Concept | None:
    """Understand ``random:0.1`` or ``random:10%``, a share of the training images; ``None`` where nothing is random.

    Raises:
        DataError: VU-D075 when it is no share, or does not stand alone.

    Example:
        >>> read_share(["random:10%"], []).labels
        {'random': '0.1'}
    """
    named = next((text for text in forget if text.startswith("random:")), None)
    if named is None:
        return None
    if len(forget) > 1 or overwrite:
        raise _refused(
            f"{named!r} cannot stand with other concepts or an overwrite.", "Name the share alone.", "data.forget"
        )
    match = _SHARE.fullmatch(named)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share < 1:
        raise _refused(
            f"{named!r} is no share of the training images.",
            "Write random:0.1 or random:10%, between 0 and 1.",
            "data.forget",
        )
    return Concept(named, {"random": str(share)})


def offer(axes: Mapping[str, tuple[str, ...]]) -> str:
    """Return in words what can be named.

    Example:
        >>> offer({"class": ("cat", "dog")})
        'class:cat, class:dog'
    """
    every = [f"{axis}:{value}" for axis, values in axes.items() for value in values]
    rest = f" and {len(every) - _MANY} more" if len(every) > _MANY else ""
    return ", ".join(every[:_MANY]) + rest if every else "nothing"


def _concept(
    text: str, overwrite: str | None, axes: Mapping[str, tuple[str, ...]], places: Mapping[str, tuple[str, ...]]
) -> Concept:
    labels = _labels(text, axes, "data.forget")
    if overwrite is None:
        return Concept(text, labels)
    if not overwrite.strip():
        raise _refused("The overwrite is empty.", "Name a concept.", "data.overwrite")
    axis, colon, _ = overwrite.partition(":")
    looks_like_a_label = colon and (axis in places or _LABEL.match(overwrite))
    named = _labels(overwrite, places, "data.overwrite") if looks_like_a_label else {}
    if len(named) > 1:
        raise _refused(
            f"The overwrite {overwrite!r} names several values; a caption is made of one.",
            "Name one value, or write free text, such as --overwrite 'a dog in a garden'.",
            "data.overwrite",
        )
    return Concept(text, labels, overwrite, named)


def _labels(text: str, axes: Mapping[str, tuple[str, ...]], where: str) -> dict[str, str]:
    names = "|".join(re.escape(axis) for axis in axes)
    labels: dict[str, str] = {}
    for part in re.split(rf"\+(?=(?:{names}):)", text) if names else [text]:
        axis, colon, value = part.partition(":")
        if not colon or axis not in axes:
            problem = f"{part!r} names no axis of this data." if colon else f"{part!r} is not of the form axis:value."
            near = did_you_mean(axis, axes) if colon else _by_value(part, axes)
            free = " Free text has a space after a colon." if where == "data.overwrite" else ""
            raise _refused(f"{problem}{near}", f"What can be named: {offer(axes)}.{free}", where)
        if value not in axes[axis]:
            raise _refused(
                f"The axis {axis!r} has no value {value!r}.{did_you_mean(value, axes[axis])}",
                f"What can be named: {offer({axis: axes[axis]})}.",
                where,
            )
        if axis in labels:
            raise _refused(
                f"{text!r} names the axis {axis!r} twice; `+` means images that are both.",
                "Name several concepts with a flag each: --forget A --forget B.",
                where,
            )
        labels[axis] = value
    return labels


def _refused(problem: str, remedy: str, where: str) -> DataError:
    return DataError("VU-D075", problem, remedy, where=where)


def _by_value(word: str, axes: Mapping[str, tuple[str, ...]]) -> str:
    exact = [f"{axis}:{value}" for axis, values in axes.items() for value in values if value == word]
    return f" Did you mean {' or '.join(map(repr, exact))}?" if exact else ""
