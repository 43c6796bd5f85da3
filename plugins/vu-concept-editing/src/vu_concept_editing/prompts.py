"""Which rows of which text embeddings UCE is about: prompts, their subjects, and how two prompts are aligned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from vu_core import ConfigError, Tokens

TOKENS = ("last", "subject", "after")
"""Which rows of a prompt are edited; see `pairs`."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "none": ("{}",),
    "art": ("{}", "painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    "object": (
        "{}",
        "image of {}",
        "photo of {}",
        "portrait of {}",
        "picture of {}",
        "painting of {}",
        "picture of {} doing something",
    ),
}
"""Prompts that are made of a concept, and alike of its guide."""


@attrs.frozen
class Prompt:
    """A text and where its subject stands.

    Args:
        text: what the text encoder reads; length: number of its tokens, start and end included.
        first: row of the first token of the subject; end: one more than the row of its last one. A subject without
            words has ``first == end``.
    """

    text: str
    length: int
    first: int
    end: int


def whole(model: Tokens, text: str) -> Prompt:
    """Return a text that is its own subject."""
    length = len(model.tokens([text])[0])
    return Prompt(text, length, 1, length - 1)


def filled(model: Tokens, template: str, subject: str) -> Prompt:
    """Return a template with a subject in the place of its ``{}``.

    Raises:
        ConfigError: ``VU-C106`` when the tokens of the subject do not stand there: the text encoder has cut them off.
    """
    before, _, after = template.partition("{}")
    text = " ".join(" ".join([before, subject, after]).split())
    ids, left, own, *words = model.tokens([text, before.strip(), subject, *subject.split()])
    first = len(left) - 1
    end = first + len(own) - 2
    cut = sum(len(word) - 2 for word in words) > end - first
    if cut or ids[first:end] != own[1:-1]:
        raise ConfigError(
            "VU-C106",
            f"The text encoder does not read {subject!r} as a whole in {text!r}, of which it reads {len(ids)} tokens.",
            "Name concepts and guides by fewer words, or set unlearner.expand to 'none'.",
            where="unlearner.concepts, unlearner.guides",
        )
    return Prompt(text, len(ids), first, end)


def told_apart(model: Tokens, text: str, other: str) -> tuple[Prompt, Prompt]:
    """Return two captions with the subject of each: the tokens between what they begin and what they end with alike.

    Where one caption only has words more than the other, a token beside them belongs to both subjects. Captions that
    are no different to the tokenizer are subjects as a whole.

    Example:
        >>> from vu_core.testing import ToyDenoiser
        >>> [(prompt.first, prompt.end) for prompt in told_apart(ToyDenoiser(), "cat", "dog")]
        [(1, 2), (1, 2)]
    """
    a, b = model.tokens([text, other])
    if a == b:
        return tuple(Prompt(t, len(a), 1, max(len(a) - 1, 1)) for t in (text, other))  # type: ignore[return-value]
    shorter = min(len(a), len(b))
    head = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    tail = next((i for i in range(shorter - head) if a[-1 - i] != b[-1 - i]), shorter - head)
    if head + tail == shorter:  # one is the other with words put in
        head, tail = (head, tail - 1) if tail > 1 else (head - 1, tail)
    return Prompt(text, len(a), head, len(a) - tail), Prompt(other, len(b), head, len(b) - tail)


def pairs(concept: Prompt, guide: Prompt, tokens: str, rows: int) -> Iterator[tuple[int, int]]:
    """Yield (row of the concept's embedding, row of the guide's that takes its place).

    - ``last``: the last token before the end token of both.
    - ``subject``: the tokens of the subject, the last with the last and backwards from there; where the guide has
      fewer, its first one serves for the rest; a guide without words is the token before it.
    - ``after``: these, and every row behind the subject with the row as far behind that of the guide: further words,
      end token and padding.

    Args:
        concept: what is erased.
        guide: what takes its place.
        tokens: one of `TOKENS`.
        rows: L.

    Example:
        >>> list(pairs(Prompt("van gogh", 4, 1, 3), Prompt("art", 3, 1, 2), "after", 6))
        [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4)]
    """
    if tokens == "last":
        yield concept.length - 2, guide.length - 2
        return
    least = min(guide.first, guide.end - 1)
    for row in range(concept.first, concept.end):
        yield row, max(guide.end - (concept.end - row), least)
    if tokens == "after":
        for row in range(concept.end, rows):
            yield row, min(guide.end + row - concept.end, rows - 1)


def kept_rows(prompt: Prompt, tokens: str, rows: int) -> Sequence[int]:
    """Return the rows of a preserved prompt that ``tokens`` names: the last token, all tokens, or all rows."""
    if tokens == "last":
        return (prompt.length - 2,)
    return range(1, prompt.length - 1) if tokens == "subject" else range(rows)
