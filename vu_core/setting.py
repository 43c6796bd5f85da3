"""One field of a plugin's ``Config``: default, range, help."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs


def setting(
    default: Any = attrs.NOTHING,
    *,
    help: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[Any] | None = None,
    check: Callable[[Any], str | None] | None = None,
    factory: Callable[[], Any] | None = None,
    speed_only: bool = False,
    path: bool = False,
    settings_of: str = "",
) -> Any:
    """Declare a field of a frozen attrs ``Config`` with its range and its line of help.

    What is wrong with the value alone is told together with what is wrong elsewhere in a configuration. A condition on
    several fields belongs to ``@field.validator`` or ``__attrs_post_init__``, which run once every value is right.

    Args:
        default: value when nothing is said; without one the field is required.
        help: one line for ``vu describe`` and ``--help``.
        ge: least value of a number, of every number in a tuple, or of the ``numbers`` that a value says it stands for.
        gt: bound that a number exceeds.
        le: greatest value of a number.
        lt: bound that a number stays below.
        choices: the only values allowed.
        check: returns what is wrong with a value, or ``None``.
        factory: makes the default, for values that must not be shared.
        speed_only: the field changes time or memory, never the result.
        path: the text names a file or folder. One that exists is kept as an absolute path, and the name of a run does
            not depend on it: what lies there must be part of a hash.
        settings_of: the field is a table, ``Mapping[str, Any]``, of settings of the method that the field of this name
            names; they are checked as that method's own.

    Raises:
        ValueError: from the generated validator, with the field, the bound and the value.

    Example:
        >>> @attrs.frozen
        ... class Config:
        ...     rank: int = setting(4, help="rank of the low-rank factors", ge=1)
        >>> Config().rank
        4
        >>> Config(rank=0)
        Traceback (most recent call last):
        ValueError: must be >= 1, but is 0
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}

    def validate(_instance: Any, _attribute: Any, value: Any) -> None:
        if value is None:
            return
        for number in _numbers(value):
            _check_bounds(number, bounds)
        if choices is not None and value not in choices:
            raise ValueError(f"must be one of {', '.join(map(repr, choices))}, but is {value!r}")
        problem = check(value) if check is not None else None
        if problem:
            raise ValueError(problem)

    marks = {"speed_only": speed_only, "path": path, "settings_of": settings_of, "validate": validate}
    metadata = {"help": help, "choices": tuple(choices) if choices else None, **marks, **bounds}
    if factory is not None:
        return attrs.field(factory=factory, validator=validate, metadata=metadata)
    return attrs.field(default=default, validator=validate, metadata=metadata)


def _numbers(value: Any) -> Sequence[Any]:
    numbers: Sequence[Any] = value if isinstance(value, tuple) else getattr(value, "numbers", (value,))
    return numbers


_SYMBOL = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _check_bounds(number: Any, bounds: dict[str, float | None]) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"must be a finite number, but is {number!r}")
    fits = {"ge": lambda a, b: a >= b, "gt": lambda a, b: a > b, "le": lambda a, b: a <= b, "lt": lambda a, b: a < b}
    for name, bound in bounds.items():
        if bound is not None and not fits[name](number, bound):
            raise ValueError(f"must be {_SYMBOL[name]} {bound}, but is {number!r}")


def allowed_range(attribute: attrs.Attribute[Any]) -> str:
    """Return the range of a field in words: ``>= 1``, ``one of 'a', 'b'``, or nothing."""
    metadata = attribute.metadata
    if metadata.get("choices"):
        return "one of " + ", ".join(map(repr, metadata["choices"]))
    return ", ".join(f"{sign} {metadata[name]}" for name, sign in _SYMBOL.items() if metadata.get(name) is not None)
