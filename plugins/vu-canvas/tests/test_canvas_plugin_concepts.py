"""The grammar of canvas: what may be forgotten, what takes its place, and what every mistake says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vu_canvas.concepts import AXES, all_pairs, forgotten_pairs, overwrite_caption, select
from vu_canvas.render import OBJECTS, STYLES
from vu_core import DataError


@pytest.mark.parametrize(
    ("forget", "supplied"),
    [
        (["style:neon"], ["style:flat"]),
        (["style:flat"], ["style:outline"]),
        (["object:star"], ["object:circle"]),
        (["object:circle"], ["object:square"]),
        (["object:star+style:neon"], ["style:flat"]),
        (["style:flat+object:circle"], ["style:outline"]),
        (["style:neon", "style:flat"], ["style:outline", "style:outline"]),
        (["style:neon", "object:star"], ["style:flat", "object:circle"]),
    ],
)
def test_supplied_overwrites(forget: list[str], supplied: list[str]) -> None:
    selection = select(forget, [])
    assert [concept.overwrite for concept in selection.concepts] == supplied
    assert len(selection.notes) == len(forget)
    for note, over in zip(selection.notes, supplied, strict=True):
        assert over in note


def test_named_overwrites_need_no_note() -> None:
    one_for_all = select(["style:neon", "style:dots"], ["style:sketch"])
    assert [concept.overwrite for concept in one_for_all.concepts] == ["style:sketch", "style:sketch"]
    one_each = select(["style:neon", "object:star"], ["style:sketch", "object:moon"])
    assert [concept.overwrite for concept in one_each.concepts] == ["style:sketch", "object:moon"]
    assert one_for_all.notes == one_each.notes == ()


def test_nothing_named_forgets_the_showpiece_and_says_so() -> None:
    selection = select([], [])
    assert [concept.text for concept in selection.concepts] == ["style:neon"]
    assert "style:neon" in selection.notes[0]


@pytest.mark.parametrize(
    ("forget", "overwrite", "says"),
    [
        (["neon"], [], "Did you mean 'style:neon'"),
        (["star"], [], "Did you mean 'object:star'"),
        (["neom"], [], "Did you mean"),
        (["style:neonn"], [], "Did you mean 'neon'"),
        (["styl:neon"], [], "Did you mean 'style'"),
        (["style:"], [], "no style ''"),
        (["style:neon+style:flat"], [], "names two styles"),
        (["style:neon", "style:neon"], [], "already forgotten"),
        (["style:neon", "object:star+style:neon"], [], "already forgotten with 'style:neon'"),
        (["style:neon"], ["object:star"], "names another axis"),
        (["style:neon"], ["style:neon"], "is what 'style:neon' forgets"),
        (["style:neon", "style:flat"], ["style:flat"], "forgotten itself"),
        (["style:neon", "style:dots"], ["style:flat"] * 3, "3 overwrites for 2"),
        ([f"style:{style}" for style in STYLES], [], "Every style is forgotten"),
    ],
)
def test_mistakes(forget: Sequence[str], overwrite: Sequence[str], says: str) -> None:
    with pytest.raises(DataError) as caught:
        select(forget, overwrite)
    assert says in caught.value.problem
    assert caught.value.remedy
    assert caught.value.where in ("data.forget", "data.overwrite")


def test_every_concept_can_be_forgotten_with_its_supplied_overwrite() -> None:
    for axis, words in AXES.items():
        for word in words:
            (concept,) = select([f"{axis}:{word}"], []).concepts
            assert concept.overwrite_labels[axis] != word
    for thing in OBJECTS:
        for style in STYLES:
            (concept,) = select([f"object:{thing}+style:{style}"], []).concepts
            assert set(concept.overwrite_labels) == {"style"}


def test_which_pairs_are_forgotten() -> None:
    assert len(all_pairs()) == 100
    assert len(forgotten_pairs(select(["style:neon"], []))) == 10
    assert forgotten_pairs(select(["object:star+style:neon"], [])) == [("star", "neon")]
    assert len(forgotten_pairs(select(["style:neon", "object:star"], []))) == 19


def test_overwrite_captions() -> None:
    assert overwrite_caption(("star", "neon"), select(["style:neon"], [])) == "A star image in flat style."
    assert overwrite_caption(("star", "neon"), select(["object:star"], [])) == "A circle image in neon style."
    both = select(["style:neon", "object:star"], [])
    assert overwrite_caption(("star", "neon"), both) == "A circle image in flat style."
    assert overwrite_caption(("moon", "neon"), both) == "A moon image in flat style."
    pair = select(["object:star+style:neon"], ["object:moon+style:dots"])
    assert overwrite_caption(("star", "neon"), pair) == "A moon image in dots style."
