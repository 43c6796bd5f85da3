"""Values of a configuration file become values of a field's type; nothing is guessed."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs

_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    type(None): ("absent", "absent"),
    Any: ("any value", "any values"),
}


class Mismatch(ValueError):
    """A value does not have the type of its field.

    Args:
        text: what is wrong; suffix: where inside the value, such as ``[1]``.
    """

    def __init__(self, text: str, suffix: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.suffix = suffix


def convert(value: Any, wanted: Any) -> Any:
    """Return ``value`` as the type ``wanted``: whole numbers become floats and lists tuples, nothing else changes.

    Args:
        value: what TOML or JSON gives.
        wanted: the annotation of a field: bool, int, float, str, ``Literal``, an ``Enum``, a tuple, list or mapping of
            these, a frozen attrs class, or a union.

    Raises:
        Mismatch: the value has another type.
        TypeError: the annotation is none that a configuration can hold.

    Example:
        >>> convert([1, 2], tuple[float, ...])
        (1.0, 2.0)
        >>> convert("to_q", tuple[str, ...])
        Traceback (most recent call last):
        vu_core.convert.Mismatch: must be a list of texts, but is 'to_q' (text); write ["to_q"]
    """
    origin = get_origin(wanted)
    if wanted is Any:
        return value
    if origin is Annotated:
        return convert(value, get_args(wanted)[0])
    if origin in (Union, types.UnionType):
        return _union(value, wanted)
    if origin is Literal:
        return _one_of(value, get_args(wanted))
    if wanted in (int, float, bool, str, type(None)):
        return _scalar(value, wanted)
    if origin in (tuple, list, Sequence):
        return _sequence(value, wanted, origin)
    if origin in (dict, Mapping):
        return _mapping(value, wanted)
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return value if isinstance(value, wanted) else wanted(_one_of(value, tuple(each.value for each in wanted)))
    if isinstance(wanted, type) and attrs.has(wanted):
        return _record(value, wanted)
    raise TypeError(f"a configuration cannot hold {wanted!r}")


def type_words(wanted: Any, plural: bool = False) -> str:
    """Return what a type is called in messages and in ``vu describe``.

    Example:
        >>> type_words(tuple[str, ...]), type_words(int | None)
        ('a list of texts', 'a whole number')
    """
    origin, args = get_origin(wanted), get_args(wanted)
    if wanted in _WORDS:
        return _WORDS[wanted][plural]
    if origin is Annotated:
        return type_words(args[0], plural)
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(arg, plural) for arg in args if arg is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (tuple, list, Sequence):
        return _list_words(args, plural)
    if origin in (dict, Mapping):
        return f"{'tables' if plural else 'a table'} of {type_words(args[1], plural=True)}"
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return "one of " + ", ".join(repr(each.value) for each in wanted)
    return "tables" if plural else "a table"


def _list_words(args: tuple[Any, ...], plural: bool) -> str:
    fixed = len(args) > 1 and args[-1] is not Ellipsis
    kind = type_words(args[0], plural=True) if len({*args} - {Ellipsis}) == 1 else "values"
    return f"{'lists' if plural else 'a list'} of {f'{len(args)} ' if fixed else ''}{kind}"


def _mismatch(value: Any, wanted: Any, hint: str = "") -> Mismatch:
    kind = {
        bool: "a truth value",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a table",
    }
    return Mismatch(
        f"must be {type_words(wanted)}, but is {value!r} ({kind.get(type(value), type(value).__name__)}){hint}"
    )


def _scalar(value: Any, wanted: Any) -> Any:
    if wanted is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise Mismatch(f"is too large for a number: {value}") from None
    if type(value) is not wanted:
        raise _mismatch(value, wanted, f'; write "{value}"' if wanted is str and type(value) in (int, float) else "")
    return value


def _union(value: Any, wanted: Any) -> Any:
    """Try the members in the order written, but the exact type of the value first (an int is no float)."""
    members = sorted(get_args(wanted), key=lambda member: member is not type(value))
    reasons: list[Mismatch] = []
    for member in members:
        try:
            return convert(value, member)
        except Mismatch as reason:
            if member is not type(None):
                reasons.append(reason)
    if len(reasons) == 1:
        raise reasons[0]
    raise _mismatch(value, wanted)


def _one_of(value: Any, allowed: tuple[Any, ...]) -> Any:
    for each in allowed:
        if type(each) is type(value) and each == value:
            return each
    raise Mismatch(f"must be one of {', '.join(map(repr, allowed))}, but is {value!r}")


def _sequence(value: Any, wanted: Any, origin: Any) -> Any:
    if not isinstance(value, tuple | list):
        raise _mismatch(value, wanted, f'; write ["{value}"]' if isinstance(value, str) else "")
    args = get_args(wanted)
    if origin is tuple and args[-1:] != (Ellipsis,):
        if len(value) != len(args):
            raise Mismatch(f"must be {type_words(wanted)}, but has {len(value)} elements")
        members: Sequence[Any] = args
    else:
        members = [args[0]] * len(value)
    items = [_inside(f"[{i}]", item, member) for i, (item, member) in enumerate(zip(value, members, strict=True))]
    return items if origin is list else tuple(items)


def _mapping(value: Any, wanted: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _mismatch(value, wanted)
    key_type, item_type = get_args(wanted)
    return {convert(key, key_type): _inside(f".{key}", item, item_type) for key, item in value.items()}


def _record(value: Any, wanted: type[Any]) -> Any:
    """Build an attrs class that lies inside a list or table; as a field of its own it is merged instead."""
    if isinstance(value, wanted):
        return value
    if not isinstance(value, Mapping):
        raise _mismatch(value, wanted)
    known = {field.name: field for field in attrs.fields(attrs.resolve_types(wanted))}
    for name in value:
        if name not in known:
            raise Mismatch(f"is unknown; known are {', '.join(known)}", f".{name}")
    arguments = {name: _inside(f".{name}", item, known[name].type) for name, item in value.items()}
    try:
        return wanted(**arguments)
    except (TypeError, ValueError) as exc:
        raise Mismatch(str(exc)) from exc


def _inside(suffix: str, value: Any, wanted: Any) -> Any:
    try:
        return convert(value, wanted)
    except Mismatch as inner:
        raise Mismatch(inner.text, suffix + inner.suffix) from None
