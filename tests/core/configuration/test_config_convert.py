"""Strict types: what is not of the type is said to be not of the type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import pytest

from vu_core import setting
from vu_core.config.conversion import Mismatch, convert, type_words


class Colour(StrEnum):
    RED = "red"


class Size(Enum):
    SMALL = 1


@attrs.frozen
class Point:
    x: int = setting(help="x", ge=0)
    y: float = setting(0.0, help="y")

    def __attrs_post_init__(self) -> None:
        if self.x == self.y == 7:
            raise ValueError("x and y are the same.")


@pytest.mark.parametrize(
    ("value", "wanted", "result"),
    [
        (1, int, 1),
        (1, float, 1.0),
        (1e-3, float, 1e-3),
        ("x", str, "x"),
        (True, bool, True),
        (None, int | None, None),
        (3, int | None, 3),
        (3, int | str, 3),
        ("3", int | str, "3"),
        (3, float | int, 3),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([], tuple[str, ...], ()),
        (("a", 1), tuple[str, int], ("a", 1)),
        ([[1], [2]], tuple[tuple[int, ...], ...], ((1,), (2,))),
        ([1], list[int], [1]),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ("red", Colour, Colour.RED),
        (Colour.RED, Colour, Colour.RED),
        (1, Size, Size.SMALL),
        (None, float | str | None, None),
        (None, Point | None, None),
        ({"x": 1}, Point | None, Point(1)),
        ((Point(1),), tuple[Point, ...], (Point(1),)),
        ([1, 2.5], Sequence[float], (1.0, 2.5)),
        ("a", Literal["a", 1], "a"),
        ([{"x": 1}], tuple[Point, ...], (Point(1),)),
        (1, Annotated[int, "note"], 1),
        ({"any": [1]}, Any, {"any": [1]}),
    ],
)
def test_what_fits(value, wanted, result):
    got = convert(value, wanted)
    assert got == result
    assert type(got) is type(result)


@pytest.mark.parametrize(
    ("value", "wanted", "said", "suffix"),
    [
        ("7", int, "must be a whole number, but is '7' (text)", ""),
        (1.9, int, "(a number)", ""),
        (1.0, int, "must be a whole number", ""),
        (True, int, "(a truth value)", ""),
        (True, float, "must be a number", ""),
        ("1e-3", float, "must be a number, but is '1e-3' (text)", ""),
        ("false", bool, "must be true or false", ""),
        (0, bool, "must be true or false", ""),
        (5, str, 'write "5"', ""),
        (None, str, "must be text", ""),
        ("to_q", tuple[str, ...], "a list of texts, but is 'to_q' (text); write [\"to_q\"]", ""),
        (3, tuple[int, ...], "a list of whole numbers", ""),
        ([1, "x"], tuple[int, ...], "must be a whole number", "[1]"),
        ([[1], ["x"]], tuple[tuple[int, ...], ...], "must be a whole number", "[1][0]"),
        ([1], tuple[int, int], "has 1 elements", ""),
        ([1], Mapping[str, int], "must be a table of whole numbers", ""),
        ({"a": "x"}, Mapping[str, int], "must be a whole number", ".a"),
        (True, Size, "must be one of 1, but is True", ""),
        ("blue", Colour, "must be one of 'red', but is 'blue'", ""),
        (True, Literal[1, 2], "must be one of 1, 2, but is True", ""),
        (2.5, int | None, "must be a whole number", ""),
        (2.5, int | str, "must be a whole number or text", ""),
        (True, int | str, "must be a whole number or text", ""),
        ({"y": 1}, int | Point, "is required", ".x"),
        ([1, "x"], int | tuple[int, ...], "must be a whole number", "[1]"),
        ({"x": 1}, int | tuple[int, ...], "must be a whole number or a list of whole numbers", ""),
        ([{"x": 1, "z": 1}], tuple[Point, ...], "is unknown; known are x, y", "[0].z"),
        ([{"x": -1}], tuple[Point, ...], "must be >= 0, but is -1", "[0].x"),
        ([{"y": 1}], tuple[Point, ...], "is required", "[0].x"),
        ([{"x": 7, "y": 7}], tuple[Point, ...], "are the same", "[0]"),
        (10**400, float, "too large", ""),
        ([{"x": "s"}], tuple[Point, ...], "must be a whole number", "[0].x"),
        ([{"x": 1, "y": "s"}], tuple[Point, ...], "must be a number", "[0].y"),
    ],
)
def test_what_does_not_fit(value, wanted, said, suffix):
    with pytest.raises(Mismatch) as caught:
        convert(value, wanted)
    [(inside, text)] = caught.value.found
    assert said in text
    assert inside == suffix


def test_everything_that_does_not_fit_is_told():
    with pytest.raises(Mismatch) as caught:
        convert([{"x": "s", "y": -1, "z": 0}, {"x": -1}, {}], tuple[Point, ...])
    assert [inside for inside, _ in caught.value.found] == ["[0].x", "[0].z", "[1].x", "[2].x"]
    assert "[1].x must be >= 0, but is -1; [2].x is required" in str(caught.value)


@pytest.mark.parametrize("wanted", [complex, Path, bytes, date, set[str], list, tuple, dict])
@pytest.mark.parametrize("value", [1, "x", ["x"], {}])
def test_what_no_configuration_can_hold(value, wanted):
    with pytest.raises(TypeError, match="cannot hold"):
        convert(value, wanted)


def test_a_bug_in_a_validator_is_no_wrong_value():
    @attrs.frozen
    class Config:
        field: int = setting(help="x", check=lambda value: 1 // value)

    with pytest.raises(ZeroDivisionError):
        convert({"field": 0}, Config)


@attrs.frozen
class Between:
    low: int = setting(1, help="low", ge=0)
    high: int = setting(2, help="high", ge=0)

    @high.validator
    def _above_low(self, _attribute: Any, value: int) -> None:
        if value <= self.low:
            raise ValueError(f"high must be above low, {self.low}.")


def test_a_validator_may_look_at_other_fields():
    assert convert({"low": 3, "high": 4}, Between) == Between(3, 4)
    with pytest.raises(Mismatch) as caught:
        convert([{"low": 4, "high": 3}], tuple[Between, ...])
    assert caught.value.found == (("[0]", "high must be above low, 4"),)
    with pytest.raises(Mismatch) as caught:
        convert({"low": -4, "high": -3}, Between)
    assert [inside for inside, _ in caught.value.found] == [".low", ".high"], "what `setting` checks is told at once"


@attrs.frozen
class Foreign:
    colour: str = attrs.field(default="red", validator=attrs.validators.in_(("red", "blue")))
    size: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    either: int | str = attrs.field(default="x", validator=attrs.validators.instance_of(str))


@pytest.mark.parametrize(
    ("value", "inside", "said"),
    [
        ({"colour": "grey"}, ".colour", "'colour' must be in ('red', 'blue') (got 'grey')"),
        ({"size": 0}, "", "'size' must be >= 1: 0"),  # attrs tells this one without the field
        ({"either": 1}, ".either", "'either' must be <class 'str'> (got 1 that is a <class 'int'>)"),
    ],
)
def test_validators_of_attrs_say_which_field_and_what_and_no_more(value, inside, said):
    with pytest.raises(Mismatch) as caught:
        convert({"a": value}, dict[str, Foreign])
    assert caught.value.found == ((f".a{inside}", said),)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (int | None, "a whole number"),
        (tuple[int, int], "a list of 2 whole numbers"),
        (tuple[str, int], "a list of 2 values"),
        (Mapping[str, float], "a table of numbers"),
        (Literal["a"], "one of 'a'"),
        (Point, "a table"),
        (Annotated[str, 1], "text"),
    ],
)
def test_words(wanted, words):
    assert type_words(wanted) == words


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "said"),
    [
        ({"ge": 1}, 1, 0, ">= 1"),
        ({"gt": 0}, 0.1, 0, "> 0"),
        ({"le": 2}, 2, 3, "<= 2"),
        ({"lt": 2}, 1.9, 2, "< 2"),
        ({"ge": 0}, (1, 2), (1, -2), ">= 0"),
        ({"choices": ("a", "b")}, "a", "c", "one of 'a', 'b'"),
        ({"check": lambda value: None if value else "is empty"}, "x", "", "is empty"),
        ({}, 1.0, float("nan"), "finite"),
        ({}, (1.0,), (float("inf"),), "finite"),
    ],
)
def test_bounds(bounds, good, bad, said):
    @attrs.frozen
    class Config:
        field: Any = setting(help="x", **bounds)

    assert Config(good).field == good
    assert Config(None).field is None
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        Config(bad)
