"""The data plugin ``prompts``: words that are only written down, without any image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from vu_core import (
    Concept,
    DataError,
    Evaluation,
    EvaluationItem,
    Examples,
    ForgetRetain,
    Manifest,
    Selection,
    Side,
    Source,
    Split,
    digest,
    setting,
)
from vu_folders.assembly import spread_samples
from vu_folders.columns import read_text
from vu_folders.settings import one_gap

if TYPE_CHECKING:
    from vu_core import Plan, Run

AXIS = "concept"
_LABEL = re.compile(r"[\w-]+:\S")  # what other data call axis:value


def _gaps(templates: tuple[str, ...]) -> str | None:
    if not templates:
        return "must hold at least one template"
    return next((f"has the template {text!r}, which {wrong}" for text in templates if (wrong := one_gap(text))), None)


@attrs.frozen
class Config:
    """Settings of the data ``prompts``, the table ``[data]``."""

    templates: tuple[str, ...] = setting(
        ("a photo of {}", "{}"), help="prompts of a word, put in place of {}, that methods work on", check=_gaps
    )
    evaluation_templates: tuple[str, ...] = setting(
        ("an image of {}",), help="prompts of a word that measure asks", check=_gaps
    )
    retain: tuple[str, ...] = setting((), help="words to keep, such as those near the forgotten ones")
    retain_file: str | None = setting(None, help="a text file of further words to keep, one per line", path=True)


class Prompts:
    """Name what to forget by words alone; there are no images.

    ``--forget cat`` forgets the word *cat*: each template makes one example of it, with the caption ``a photo of cat``.
    The overwrite caption is the same with the overwrite's word; without ``--overwrite`` it is the empty prompt. The
    words to retain come from the settings; there may be none.

    The examples have captions and no pixels, so only methods that look at no image can use them (``uses_images =
    False``, such as ``uce``). All are trained on; `evaluation` asks other prompts of the same words.

    Args:
        ref: empty, since nothing is read; config: see `Config`.
    """

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source(
        "Prompts for concept editing, as in UCE, arXiv 2308.14761", "https://arxiv.org/abs/2308.14761", "own"
    )
    metrics: ClassVar[tuple[str, ...]] = ("edit-size",)
    has_images: ClassVar[bool] = False

    def __init__(self, ref: str, config: Config) -> None:
        if ref:
            raise DataError(
                "VU-D096",
                f"The data 'prompts' are written down, not read, so they take no place: {ref!r}.",
                "Write `--data prompts`; name words with --forget, data.retain and data.retain_file.",
                where="data.ref",
            )
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: any text file could be words."""
        return False

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``--forget`` and ``--overwrite``: a word or a few, as they stand in a prompt.

        One overwrite for all concepts, or one each; none means the empty prompt.

        Raises:
            DataError: VU-D097 for nothing to forget, empty words, words named twice, what looks like ``axis:value``
                of other data, and numbers that do not match; VU-D074 for an overwrite that is forgotten itself.

        Example:
            >>> Prompts("", Config()).parse(["cat", "lion"], ["dog"]).concepts[1].overwrite
            'dog'
        """
        if not forget:
            raise _refused("It is not said what to forget.", "Name a word: --forget cat.", "data.forget")
        if len(overwrite) not in (0, 1, len(forget)):
            raise _refused(
                f"There are {len(forget)} concepts to forget and {len(overwrite)} overwrites.",
                "Give one --overwrite for all concepts, one for each, or none for the empty prompt.",
                "data.overwrite",
            )
        words = _distinct([_word(text, "data.forget") for text in forget], "data.forget")
        partners = [_word(text, "data.overwrite") for text in overwrite]
        partners = partners * len(words) if len(partners) == 1 else partners
        named = {word.casefold() for word in words}
        for partner in partners:
            if partner.casefold() in named:
                raise DataError(
                    "VU-D074",
                    f"The overwrite {partner!r} is to be forgotten itself.",
                    "Name another word to take its place, or leave --overwrite out for the empty prompt.",
                    where="data.overwrite",
                )
        if partners:
            pairs = zip(words, partners, strict=True)
            return Selection(tuple(Concept(word, {AXIS: word}, place, {AXIS: place}) for word, place in pairs))
        note = "No overwrite was named, so the empty prompt takes the place of what is forgotten."
        return Selection(tuple(Concept(word, {AXIS: word}) for word in words), (note,))

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the prompts. Raises: DataError VU-D070, VU-D071, VU-D097 for the words to retain."""
        built, config = self._tables(selection), self.config
        asked = len(config.evaluation_templates) * (len(selection.concepts) + len(self._retained(selection)))
        seen = [
            "\0".join((table.side, *table.captions, *(table.overwrites or ())))
            for table in (built.forget, built.retain)
        ]
        return Manifest(
            name="prompts",
            ref="",
            digest=digest("prompts 1", *seen, "\0".join(config.evaluation_templates)),
            counts={
                "train/forget": len(built.forget),
                "train/retain": len(built.retain),
                **{f"{split}/{side}": 0 for split in ("validation", "held-out") for side in ("forget", "retain")},
                "evaluation/items": asked,
            },
            split="by template: the method sees data.templates, measure asks data.evaluation_templates",
            axes={AXIS: self._values(selection)},
        )

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return training examples without images; there are none for validation."""
        return self._tables(selection)

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Return every word in every evaluation template with every seed; half of the samples, rounded up, forget."""
        words = {"forget": [concept.text for concept in selection.concepts], "retain": self._retained(selection)}
        forget, retain = (
            [
                EvaluationItem(template.format(word), seed, {AXIS: word}, side == "forget")
                for word in words[side]
                for template in self.config.evaluation_templates
                for seed in seeds
            ]
            for side in ("forget", "retain")
        )
        return Evaluation(
            split=split,
            items=(*forget, *retain),
            axes={AXIS: self._values(selection)},
            samples=spread_samples(forget, retain, len(seeds), samples),
            concepts=selection.concepts,
        )

    def _tables(self, selection: Selection) -> ForgetRetain:
        templates = self.config.templates
        pairs = [(concept.text, concept.overwrite) for concept in selection.concepts]
        rows = [(word, place, template) for word, place in pairs for template in templates]
        kept = [(word, template) for word in self._retained(selection) for template in templates]
        forget = Examples(
            side="forget",
            captions=tuple(template.format(word) for word, _, template in rows),
            overwrites=tuple("" if place is None else template.format(place) for _, place, template in rows),
            labels={AXIS: tuple(word for word, _, _ in rows)},
        )
        retain = Examples(
            side="retain",
            captions=tuple(template.format(word) for word, template in kept),
            labels={AXIS: tuple(word for word, _ in kept)},
        )
        return ForgetRetain(forget, retain, _none_of("forget"), _none_of("retain"))

    def _values(self, selection: Selection) -> tuple[str, ...]:
        return (*(concept.text for concept in selection.concepts), *self._retained(selection))

    def _retained(self, selection: Selection) -> list[str]:
        forgotten = {concept.text.casefold() for concept in selection.concepts}
        for word in self._kept:
            if word.casefold() in forgotten:
                raise _refused(
                    f"{word!r} is to be forgotten and to be retained.",
                    "Take it out of --forget, or out of the words to retain.",
                    "data.retain",
                )
        return self._kept

    @cached_property
    def _kept(self) -> list[str]:
        words = [_word(text, "data.retain") for text in self.config.retain]
        return _distinct([*words, *self._lines()], "data.retain")

    def _lines(self) -> Iterator[str]:
        """Yield the words of the file; empty lines are no words."""
        if self.config.retain_file is None:
            return
        path = Path(self.config.retain_file).expanduser()
        if not path.is_file():
            raise DataError(
                "VU-D070",
                f"There is no file {self.config.retain_file!r}.",
                "Name a text file with one word to retain per line.",
                where="data.retain_file",
            )
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.strip():
                yield _word(line, f"{path}:{number}")


def check_images(plan: Plan) -> None:
    """Object to a method that looks at images when the data have none.

    Raises:
        DataError: VU-D098.
    """
    method, data = plan.config.unlearner, plan.config.data
    plugin = method.entry.load()
    looks = getattr(plugin, "uses_examples", True) and getattr(plugin, "uses_images", True)
    if looks and not getattr(data.entry.load(), "has_images", True):
        raise DataError(
            "VU-D098",
            f"The method {method.name!r} looks at images, and the data {data.name!r} have none.",
            "Choose a method that works on words alone, such as uce, or data with images: --data FOLDER.",
            where="data.name",
        )


def _word(text: str, where: str) -> str:
    """Return a word as it stands in a prompt, with single spaces. Raises: DataError VU-D097."""
    word = " ".join(text.split())
    if not word:
        raise _refused("A word is empty.", "Write it as it stands in a prompt.", where)
    if _LABEL.match(word):
        raise _refused(
            f"{word!r} looks like the axis and the value of other data.",
            "Write the word as it stands in a prompt: --forget cat. Text may hold a colon with a space behind it.",
            where,
        )
    return word


def _distinct(words: list[str], where: str) -> list[str]:
    seen: set[str] = set()
    for word in words:
        if word.casefold() in seen:
            raise _refused(f"{word!r} is named twice.", "Name every word once.", where)
        seen.add(word.casefold())
    return words


def _none_of(side: Side) -> Examples:
    return Examples(side=side, captions=(), overwrites=() if side == "forget" else None, labels={AXIS: ()})


def _refused(problem: str, remedy: str, where: str) -> DataError:
    return DataError("VU-D097", problem, remedy, where=where)
