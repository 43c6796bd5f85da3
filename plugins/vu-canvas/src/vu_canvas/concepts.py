"""The grammar of canvas: ``style:neon``, ``object:star``, ``object:star+style:neon``, and what takes their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vu_canvas.render import OBJECTS, STYLES, prompt
from vu_core import Concept, DataError, Selection, did_you_mean, together

AXES: Mapping[str, tuple[str, ...]] = {"object": OBJECTS, "style": STYLES}
"""What may be named before the colon, and the words that may follow it."""

SUPPLIED = {"object": ("circle", "square"), "style": ("flat", "outline")}
"""Overwrites that are supplied when none is named: the first of them that is not forgotten itself."""

SHOWPIECE = "style:neon"
"""What is forgotten when nothing is named."""

Pair = tuple[str, str]  # object, style


def select(forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
    """Understand what is forgotten and what takes its place; see `vu_canvas.dataset.Canvas.parse`."""
    if not forget:
        supplied = select([SHOWPIECE], overwrite)
        return Selection(supplied.concepts, (f"Nothing was named to forget: {SHOWPIECE} it is.", *supplied.notes))
    refuse_unknown(forget, overwrite)
    labels = [parse_concept(text, "data.forget") for text in forget]
    refuse_overlap(forget, labels)
    if len(overwrite) not in (0, 1, len(forget)):
        raise DataError(
            "VU-D093",
            f"There are {len(overwrite)} overwrites for {len(forget)} forgotten concepts.",
            "Name none, one for all, or one for each in the same order.",
            where="data.overwrite",
        )
    if overwrite:
        given = list(overwrite) * (len(forget) if len(overwrite) == 1 else 1)
        rows = zip(forget, labels, given, strict=True)
        named = tuple(with_overwrite(text, concept, over, labels) for text, concept, over in rows)
        refuse_forgotten_captions(named)
        return Selection(named)
    concepts, notes = [], []
    for text, concept in zip(forget, labels, strict=True):
        over = supplied_overwrite(concept, labels)
        concepts.append(with_overwrite(text, concept, over, labels))
        notes.append(f"No overwrite was named for {text}: {over} takes its place.")
    return Selection(tuple(concepts), tuple(notes))


def refuse_unknown(forget: Sequence[str], overwrite: Sequence[str]) -> None:
    """Raise one DataError that tells everything that names no concept."""
    wrong = []
    for where, texts in (("data.forget", forget), ("data.overwrite", overwrite)):
        for text in texts:
            try:
                parse_concept(text, where)
            except DataError as error:
                wrong.append(error)
    if wrong:
        raise together(wrong)


def parse_concept(text: str, where: str) -> dict[str, str]:
    """Return the labels behind ``axis:word`` or ``axis:word+axis:word``. Raises: DataError with near misses."""
    labels: dict[str, str] = {}
    for part in text.split("+"):
        axis, colon, word = part.strip().partition(":")
        if not colon:
            raise unknown_concept(text, part.strip(), where)
        if axis not in AXES:
            raise DataError(
                "VU-D092",
                f"Canvas has no axis {axis!r} (in {text!r}).{did_you_mean(axis, AXES)}",
                "Write `style:WORD`, `object:WORD`, or both with a plus.",
                where=where,
            )
        if word not in AXES[axis]:
            raise DataError(
                "VU-D092",
                f"Canvas has no {axis} {word!r} (in {text!r}).{did_you_mean(word, AXES[axis])}",
                f"Choose one of: {', '.join(AXES[axis])}.",
                where=where,
            )
        if axis in labels:
            raise DataError(
                "VU-D092",
                f"{text!r} names two {axis}s; no drawing has both.",
                f"Repeat the flag to forget several: `--forget {axis}:{labels[axis]} --forget {axis}:{word}`.",
                where=where,
            )
        labels[axis] = word
    return labels


def unknown_concept(text: str, word: str, where: str) -> DataError:
    """Return the error for a part without a colon; a known word says which axis it belongs to."""
    home = [axis for axis, words in AXES.items() if word in words]
    words = [f"{axis}:{known}" for axis, known_words in AXES.items() for known in known_words]
    guess = f" Did you mean '{home[0]}:{word}'?" if home else did_you_mean(word, [*words, *OBJECTS, *STYLES])
    return DataError(
        "VU-D092",
        f"{text!r} is no concept of canvas: it needs an axis and a word, such as 'style:neon'.{guess}",
        f"Objects: {', '.join(OBJECTS)}. Styles: {', '.join(STYLES)}.",
        where=where,
    )


def refuse_overlap(forget: Sequence[str], labels: Sequence[Mapping[str, str]]) -> None:
    """Raise DataError when a concept is named twice, or beside a wider one that contains it."""
    for i, narrow in enumerate(labels):
        for j, wide in enumerate(labels):
            if i != j and wide.items() <= narrow.items():
                raise DataError(
                    "VU-D092",
                    f"{forget[i]!r} is already forgotten with {forget[j]!r}.",
                    "Name every concept once.",
                    where="data.forget",
                )


def with_overwrite(
    text: str, labels: Mapping[str, str], overwrite: str, forgotten: Sequence[Mapping[str, str]]
) -> Concept:
    """Return the concept with its overwrite. Raises: DataError when the overwrite cannot take its place."""
    over = parse_concept(overwrite, "data.overwrite")
    problem = ""
    if not over.keys() <= labels.keys():
        problem = f"names another axis than {text!r}"
    elif over.items() <= labels.items():
        problem = f"is what {text!r} forgets"
    if problem:
        raise refused(text, overwrite, problem, suggestion(labels, forgotten))
    return Concept(text, dict(labels), overwrite, over)


def refuse_forgotten_captions(concepts: Sequence[Concept]) -> None:
    """Raise DataError when the caption that takes the place of a forgotten one shows a forgotten concept itself.

    The whole captions are compared: with ``style:neon`` and ``object:star+style:flat`` forgotten, flat stands for neon
    in every caption but that of the star.
    """
    forgotten = [concept.labels for concept in concepts]
    for concept in concepts:
        for pair in all_pairs():
            place = overwritten(pair, concepts)
            if shows(pair, concept.labels) and any(shows(place, labels) for labels in forgotten):
                problem = f"would turn {prompt(*pair)!r} into {prompt(*place)!r}, which is forgotten itself"
                raise refused(concept.text, str(concept.overwrite), problem, suggestion(concept.labels, forgotten))


def refused(text: str, overwrite: str, problem: str, better: str) -> DataError:
    """Return the error for a named overwrite."""
    return DataError(
        "VU-D093",
        f"The overwrite {overwrite!r} cannot take the place of {text!r}: it {problem}.",
        f"Name another word{better}.",
        where="data.overwrite",
    )


def suggestion(labels: Mapping[str, str], forgotten: Sequence[Mapping[str, str]]) -> str:
    """Return the end of a sentence that proposes an overwrite, where one can be supplied."""
    try:
        return f" of the same axis, such as {supplied_overwrite(labels, forgotten)}"
    except DataError:
        return ""


def supplied_overwrite(labels: Mapping[str, str], forgotten: Sequence[Mapping[str, str]]) -> str:
    """Return the overwrite for a concept when none is named; a pair changes the style only, where that is possible.

    A word serves when no image that shows the concept, and no other one, would show a forgotten concept with that word
    in its place. Images that show a second concept need no look of their own: their other word is overwritten too, by
    one that is in no forgotten concept. A pair whose object is forgotten in every style becomes the first retained
    pair.

    Raises:
        DataError: no word of the axis serves, so that nothing can take the place.
    """
    axis = "style" if "style" in labels else "object"
    alone = [pair for pair in all_pairs() if [c for c in forgotten if shows(pair, c)] == [labels]]
    for word in dict.fromkeys([*SUPPLIED[axis], *AXES[axis]]):
        places = [(pair[0], word) if axis == "style" else (word, pair[1]) for pair in alone]
        if places and not any(shows(place, concept) for place in places for concept in forgotten):
            return f"{axis}:{word}"
    kept = [pair for pair in all_pairs() if not any(shows(pair, concept) for concept in forgotten)]
    if len(labels) > 1 and kept:
        return described(dict(zip(AXES, kept[0], strict=True)))
    raise DataError(
        "VU-D093",
        f"No {axis} can take the place of {described(labels)}: with every other one, something is forgotten, too.",
        f"Leave a concept out of --forget, so that at least one {axis} stays untouched.",
        where="data.forget",
    )


def described(labels: Mapping[str, str]) -> str:
    """Return labels as they are written on the command line."""
    return "+".join(f"{axis}:{word}" for axis, word in labels.items())


def shows(pair: Pair, labels: Mapping[str, str]) -> bool:
    """Tell whether an image of the pair shows the concept."""
    return labels.items() <= {"object": pair[0], "style": pair[1]}.items()


def all_pairs() -> list[Pair]:
    """Return the 100 (object, style) pairs, object by object."""
    return [(word, style) for word in OBJECTS for style in STYLES]


def forgotten_pairs(selection: Selection) -> list[Pair]:
    """Return the pairs that show a forgotten concept."""
    return [pair for pair in all_pairs() if any(shows(pair, concept.labels) for concept in selection.concepts)]


def overwritten(pair: Pair, concepts: Sequence[Concept]) -> Pair:
    """Return the pair in which every concept that it shows is overwritten."""
    words = {"object": pair[0], "style": pair[1]}
    for concept in concepts:
        if shows(pair, concept.labels):
            words.update(concept.overwrite_labels)
    return words["object"], words["style"]


def overwrite_caption(pair: Pair, selection: Selection) -> str:
    """Return the caption in which every forgotten concept that the pair shows is overwritten."""
    return prompt(*overwritten(pair, selection.concepts))
