"""Values of a configuration file become values of a field's type; nothing is guessed.

cattrs walks through lists, tables and attrs classes and collects what is wrong. By itself it also coerces (``"7"`` to
7, ``"to_q"`` to four letters), so a hook for every kind of type says what it takes.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs
from cattrs import BaseConverter, Converter, cols, errors, gen, override

_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    type(None): ("absent", "absent"),
    Any: ("any value", "any values"),
}
_UNIONS, _LISTS, _TABLES = (Union, types.UnionType), (tuple, list, Sequence), (dict, Mapping)
_WALKS: dict[Any, Any] = {
    **dict.fromkeys(_TABLES, cols.mapping_structure_factory),
    **dict.fromkeys(_LISTS, cols.homogenous_tuple_structure_factory),
    list: cols.list_structure_factory,
}
_KINDS = {bool: "a truth value", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}


class Mismatch(ValueError):
    """A value does not have the type of its field.

    Args:
        found: of everything that does not fit, where inside the value (``[1]``, ``.lr`` or nothing) and what is wrong.
    """

    def __init__(self, found: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{inside} {text}".lstrip() for inside, text in found))
        self.found = tuple(found)


def convert(value: Any, wanted: Any) -> Any:
    """Return ``value`` as the type ``wanted``: whole numbers become floats and lists tuples, nothing else changes.

    Args:
        value: what TOML or JSON gives.
        wanted: the annotation of a field: bool, int, float, str, ``Literal``, an ``Enum``, a tuple, list or mapping of
            these, a frozen attrs class, or a union.

    Raises:
        Mismatch: the value has another type, or a validator of an attrs class refuses it.
        TypeError: the annotation is none that a configuration can hold.

    Example:
        >>> convert([1, 2], tuple[float, ...])
        (1.0, 2.0)
        >>> convert("to_q", tuple[str, ...])
        Traceback (most recent call last):
        vu_core.config.conversion.Mismatch: must be a list of texts, but is 'to_q' (text); write ["to_q"]
    """
    try:
        return _converter().structure(value, wanted)
    except (ValueError, errors.BaseValidationError) as error:
        raise Mismatch(list(_leaves(error))) from None


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
    if origin in _UNIONS:
        return " or ".join(type_words(arg, plural) for arg in args if arg is not type(None))
    if origin is Literal or _is_enum(wanted):
        return f"one of {', '.join(map(repr, args or [each.value for each in wanted]))}"
    if origin in _LISTS:
        fixed = f"{len(args)} " if _is_fixed(wanted) else ""
        items = type_words(args[0], plural=True) if len({*args} - {Ellipsis}) == 1 else "values"
        return f"{'lists' if plural else 'a list'} of {fixed}{items}"
    if origin in _TABLES:
        return f"{'tables' if plural else 'a table'} of {type_words(args[1], plural=True)}"
    return "tables" if plural else "a table"


def _leaves(error: Exception, inside: str = "") -> Iterator[tuple[str, str]]:
    """Yield where and what of every error in the groups of cattrs; notes say the way down."""
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, errors.AttributeValidationNote):
            inside += f".{note.name}"
        elif isinstance(note, errors.IterableValidationNote):
            inside += f"[{note.index}]" if isinstance(note.index, int) else f".{note.index}"
    if isinstance(error, errors.BaseValidationError):
        for inner in error.exceptions:
            yield from _leaves(inner, inside)
    elif isinstance(error, errors.ForbiddenExtraKeysError):
        known = ", ".join(attrs.fields_dict(error.cl))
        yield from ((f"{inside}.{name}", f"is unknown; known are {known}") for name in sorted(error.extra_fields))
    elif isinstance(error, KeyError) and inside.rpartition(".")[2] in error.args:
        yield inside, "is required"
    elif isinstance(error, ValueError | TypeError):
        field = next((each for each in error.args if isinstance(each, attrs.Attribute)), None)
        if field is None:
            yield inside, str(error).rstrip(".")
        else:  # a validator of attrs itself: text, field, what was allowed, value
            yield f"{inside}.{field.name}", str(error.args[0]).rstrip(".")
    else:
        raise error  # a bug in somebody's validator, not a wrong value


@cache
def _converter() -> Converter:
    """Return cattrs with strict hooks; any value and annotated types stay with its own."""
    made = Converter(forbid_extra_keys=True, detailed_validation=True)
    made.register_structure_hook_factory(_has_own_hook, _hook)
    for kind in (int, float, str, bytes, Path):  # found by class, in front of every factory
        made.register_structure_hook(kind, _scalar)
    return made


def _has_own_hook(wanted: Any) -> bool:
    return wanted is not Any and get_origin(wanted) is not Annotated


def _hook(wanted: Any, converter: BaseConverter) -> Any:
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return lambda value, _: _one_of(value, args)
    if origin in _UNIONS:
        return _union
    several = gen.make_hetero_tuple_structure_fn if _is_fixed(wanted) else _WALKS.get(origin)
    factory = _record if attrs.has(wanted) else several
    return _scalar if factory is None else partial(_parts, factory(wanted, converter))


def _is_fixed(wanted: Any) -> bool:
    return get_origin(wanted) is tuple and get_args(wanted)[-1] is not Ellipsis


def _is_enum(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, Enum)


def _mismatch(value: Any, wanted: Any) -> ValueError:
    kind = _KINDS.get(type(value), type(value).__name__)
    hint = f'; write "{value}"' if wanted is str and type(value) in (int, float) else ""
    hint = f'; write ["{value}"]' if get_origin(wanted) in _LISTS and type(value) is str else hint
    return ValueError(f"must be {type_words(wanted)}, but is {value!r} ({kind}){hint}")


def _scalar(value: Any, wanted: Any) -> Any:
    if _is_enum(wanted):
        return value if isinstance(value, wanted) else wanted(_one_of(value, [each.value for each in wanted]))
    if wanted not in _WORDS:
        raise TypeError(f"a configuration cannot hold {wanted!r}")
    if type(value) is int and wanted is float:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"is too large for a number: {value}") from None
    if type(value) is not wanted:
        raise _mismatch(value, wanted)
    return value


def _one_of(value: Any, allowed: Sequence[Any]) -> Any:
    for each in allowed:
        if type(each) is type(value) and each == value:
            return each
    raise ValueError(f"must be one of {', '.join(map(repr, allowed))}, but is {value!r}")


def _union(value: Any, wanted: Any) -> Any:
    """Try the members in the order written, but the exact type of the value first (an int is no float).

    Of a table or list that suits none, the only member of its shape says what is wrong inside.
    """
    reasons: dict[Any, Exception] = {}
    for member in sorted(get_args(wanted), key=lambda member: member is not type(value)):
        try:
            return _converter().structure(value, member)
        except (ValueError, errors.BaseValidationError) as reason:
            reasons |= {} if member is type(None) else {member: reason}
    alike = [reason for member, reason in reasons.items() if _is_shape_of(member, value)]
    for candidates in (alike, list(reasons.values())):
        if len(candidates) == 1:
            raise candidates[0]
    raise _mismatch(value, wanted)


def _is_shape_of(wanted: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        return attrs.has(wanted) or get_origin(wanted) in _TABLES
    return isinstance(value, list | tuple) and get_origin(wanted) in _LISTS


def _parts(walk: Any, value: Any, wanted: Any) -> Any:
    """Look at the value first: cattrs takes whatever can be walked through."""
    if type(value) is wanted:  # an object among the defaults
        return value
    if not isinstance(value, tuple | list if get_origin(wanted) in _LISTS else Mapping):
        raise _mismatch(value, wanted)
    if _is_fixed(wanted) and len(value) != len(get_args(wanted)):
        raise ValueError(f"must be {type_words(wanted)}, but has {len(value)} elements")
    return walk(value, wanted)


def _record(wanted: Any, converter: BaseConverter) -> Any:
    """Check each field of `setting` where it is converted: then all are heard, and not only the first.

    Validators that somebody else wrote may look at other fields, and run in the class's own ``__init__``.
    """

    def checked(field: attrs.Attribute[Any], value: Any, kind: Any) -> Any:
        converted = converter.structure(value, kind)
        validate = field.metadata.get("validate")
        if validate is not None:
            validate(None, field, converted)
        return converted

    fields = attrs.fields(attrs.resolve_types(wanted))
    hooks: dict[str, Any] = {field.name: override(struct_hook=partial(checked, field)) for field in fields}
    return gen.make_dict_structure_fn(wanted, converter, **hooks)
