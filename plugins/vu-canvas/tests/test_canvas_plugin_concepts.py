"""The grammar of canvas: what may be forgotten, what takes its place, and what every mistake says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vu_canvas.concepts import AXES, all_pairs, forgotten_pairs, overwrite_caption, overwritten, select
from vu_canvas.render import OBJECTS, STYLES, prompt
from vu_core import DataError, Selection


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
        (["style:neon", "object:star+style:flat"], ["style:outline", "style:outline"]),
        (["object:star", "object:circle+style:neon"], ["object:square", "style:flat"]),
        (
            ["object:star", "style:neon", "object:circle+style:flat"],
            ["object:square", "style:outline", "style:outline"],
        ),
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
        (["style:neon", "style:flat"], ["style:flat"], "is what 'style:flat' forgets"),
        (["style:neon", "style:flat"], ["style:flat", "style:dots"], "forgotten itself"),
        (["style:neon", "style:dots"], ["style:flat"] * 3, "3 overwrites for 2"),
        ([f"style:{style}" for style in STYLES], [], "No style can take the place of style:flat"),
        (
            ["style:neon", *(f"object:star+style:{s}" for s in STYLES if s != "neon")],
            [],
            "No style can take the place",
        ),
        (
            ["style:neon", "object:star+style:flat"],
            ["style:flat", "style:dots"],
            "turn 'A star image in neon style.' into 'A star image in flat style.', which is forgotten itself",
        ),
        (
            ["style:neon", "object:star", "object:moon+style:flat"],
            ["style:flat", "object:moon", "style:dots"],
            "itself",
        ),
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


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(DataError) as caught:
        select(["style:nean", "style:neon", "objct:star"], ["style:fat"])
    assert caught.value.code == "VU-D092"
    assert [part.where for part in caught.value.parts] == ["data.forget", "data.forget", "data.overwrite"]
    for said in ("'style:nean'). Did you mean 'neon'?", "no axis 'objct'", "'style:fat'). Did you mean 'flat'?"):
        assert said in caught.value.problem


def test_overwrite_captions() -> None:
    assert overwrite_caption(("star", "neon"), select(["style:neon"], [])) == "A star image in flat style."
    assert overwrite_caption(("star", "neon"), select(["object:star"], [])) == "A circle image in neon style."
    both = select(["style:neon", "object:star"], [])
    assert overwrite_caption(("star", "neon"), both) == "A circle image in flat style."
    assert overwrite_caption(("moon", "neon"), both) == "A moon image in flat style."
    pair = select(["object:star+style:neon"], ["object:moon+style:dots"])
    assert overwrite_caption(("star", "neon"), pair) == "A moon image in dots style."


def test_ninety_of_the_hundred_pairs_at_once() -> None:
    texts = [f"object:{word}+style:{style}" for word in OBJECTS for style in STYLES]
    selection = select(texts[5:95], [])
    assert {concept.overwrite for concept in selection.concepts[:5]} == {"style:flat"}
    assert {concept.overwrite for concept in selection.concepts[5:85]} == {"object:circle+style:flat"}
    check_places(texts[5:95], selection)
    with pytest.raises(DataError, match="No style can take the place"):
        select(texts, [])


CONCEPTS = st.one_of(
    st.builds("style:{}".format, st.sampled_from(STYLES)),
    st.builds("object:{}".format, st.sampled_from(OBJECTS)),
    st.builds("object:{}+style:{}".format, st.sampled_from(OBJECTS), st.sampled_from(STYLES)),
)


def shown(text: str) -> set[tuple[str, str]]:
    """The pairs that a concept names, by another way than the plugin's."""
    words = dict(part.split(":") for part in text.split("+"))
    return {(o, s) for o in OBJECTS for s in STYLES if words.get("object", o) == o and words.get("style", s) == s}


def apart(forget: list[str]) -> bool:
    return not any(a != b and shown(a) <= shown(b) for a in forget for b in forget)


def check_places(forget: list[str], selection: Selection) -> None:
    gone = set().union(*map(shown, forget))
    assert set(forgotten_pairs(selection)) == gone
    for pair in gone:
        place = overwritten(pair, selection.concepts)
        assert place not in gone
        assert overwrite_caption(pair, selection) == prompt(*place)


def attempt(forget: list[str], overwrite: list[str]) -> Selection | DataError:
    try:
        return select(forget, overwrite)
    except DataError as error:
        return error


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(CONCEPTS, min_size=1, max_size=12, unique=True).filter(apart))
def test_no_supplied_overwrite_leads_to_what_is_forgotten(forget: list[str]) -> None:
    outcome = attempt(forget, [])
    if isinstance(outcome, Selection):
        check_places(forget, outcome)
        return
    assert outcome.code == "VU-D093"
    gone = set().union(*map(shown, forget))
    assert not all(any_word_serves(text, gone) for text in forget), "there was an overwrite for each"


def any_word_serves(text: str, gone: set[tuple[str, str]]) -> bool:
    """Whether some word of the axis keeps every image that shows this concept alone out of what is forgotten.

    A pair may become any other.
    """
    if "+" in text:
        return len(gone) < len(OBJECTS) * len(STYLES)
    style = "style" in text
    across = [f"object:{o}" for o in OBJECTS] if style else [f"style:{s}" for s in STYLES]
    alone = shown(text).difference(*(shown(other) for other in across if shown(other) <= gone))
    words = STYLES if style else OBJECTS
    return any(bool(alone) and not any(((o, word) if style else (word, s)) in gone for o, s in alone) for word in words)


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.lists(CONCEPTS, min_size=1, max_size=5, unique=True).filter(apart),
    st.lists(CONCEPTS, min_size=5, max_size=5),
)
def test_no_named_overwrite_leads_to_what_is_forgotten(forget: list[str], named: list[str]) -> None:
    outcome = attempt(forget, named[: len(forget)])
    if isinstance(outcome, Selection):
        assert [concept.overwrite for concept in outcome.concepts] == named[: len(forget)]
        check_places(forget, outcome)
    else:
        assert outcome.code == "VU-D093"
