"""A CLIP tokenizer in which every word of the prompts is one token."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from vu_canvas.render import OBJECTS, STYLES

MAX_LENGTH = 16
"""Tokens of a prompt, start and end included."""

WORDS: tuple[str, ...] = ("a", "an", "image", "in", "style", "picture", "of", "the", *OBJECTS, *STYLES)
"""Words that become one token; any other text falls back to letters."""

END = "</w>"


def merge_once(symbols: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
    """Return byte-pair encoded symbols: the known merges applied in the order of their rank."""
    while len(symbols) > 1:
        pairs = list(pairwise(symbols))
        best = min(pairs, key=lambda pair: merges.get(pair, len(merges)))
        if best not in merges:
            break
        at = pairs.index(best)
        symbols = [*symbols[:at], "".join(best), *symbols[at + 2 :]]
    return symbols


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the merges.

    A merge that is appended has the lowest rank, so it can never change how an earlier word is split.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + END for letter in letters]
    merges: dict[tuple[str, str], int] = {}
    for word in WORDS:
        symbols = merge_once([*word[:-1], word[-1] + END], merges)
        while len(symbols) > 1:
            merges[(symbols[0], symbols[1])] = len(merges)
            tokens.append(symbols[0] + symbols[1])
            symbols = merge_once([*word[:-1], word[-1] + END], merges)
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return {token: row for row, token in enumerate(tokens)}, list(merges)


def build_tokenizer() -> Any:
    """Return the CLIPTokenizer."""
    from transformers import CLIPTokenizer

    vocab, merges = vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
