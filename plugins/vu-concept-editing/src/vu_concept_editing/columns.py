"""What UCE reads from the text encoder: the columns of concepts, guides and what is preserved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from vu_concept_editing.closed_form import Columns
from vu_concept_editing.prompts import TEMPLATES, Prompt, filled, kept_rows, pairs, told_apart, whole
from vu_core import ConfigError, Denoiser, ForgetRetain, Model, Tokens

if TYPE_CHECKING:
    from vu_concept_editing.uce import UceConfig

SAME = 1e-6
"""Rows that differ by less, as a share of their length, are the same."""

Edited = tuple[Prompt, Prompt]  # a concept and what is read instead


def read_columns(model: Model, data: ForgetRetain, config: UceConfig) -> Columns:
    """Embed everything that a configuration names, and pick the rows that count.

    A row that several preserved captions share, such as that of the start token, counts once per caption.

    Args:
        model: embeds and names tokens.
        data: gives captions where the configuration names no concepts.
        config: which texts, and which of their tokens.

    Raises:
        ConfigError: ``VU-C105`` when a concept and its guide are the same to the text encoder; ``VU-C106`` when it cuts
            one off; ``VU-C107`` when nothing is named to forget.
    """
    edited = _edited(cast(Tokens, model), data, config)
    kept = [whole(cast(Tokens, model), text) for text in preserved_texts(data, config)]
    read = _embed(model, [concept for concept, _ in edited])  # (prompts, L, d)
    instead = _embed(model, [guide for _, guide in edited])  # (prompts, L, d)
    concepts, guides, preserved = [], [], []
    for (concept, guide), c, g in zip(edited, read, instead, strict=True):
        rows = list(pairs(concept, guide, config.tokens, len(c)))
        ours, theirs = c[[row for row, _ in rows]], g[[row for _, row in rows]]  # (rows, d)
        if float((ours - theirs).norm()) <= SAME * float(theirs.norm()):
            raise _no_effect(concept, guide, config)
        concepts.append(ours)
        guides.append(theirs)
        if config.tokens == "after":
            preserved.append(c[: concept.first])
    for prompt, p in zip(kept, _embed(model, kept), strict=True):
        preserved.append(p[list(kept_rows(prompt, config.tokens, len(p)))])
    nothing = read.new_zeros(0, read.shape[2])
    return Columns(torch.cat(concepts).T, torch.cat(guides).T, torch.cat([nothing, *preserved]).T)


def preserved_texts(data: ForgetRetain, config: UceConfig) -> tuple[str, ...]:
    """Return what keeps its meaning: the texts that are named, or with the concepts of the data its retain captions."""
    if config.preserve or config.concepts:
        return config.preserve
    return tuple(dict.fromkeys(data.retain.captions))


def _edited(model: Tokens, data: ForgetRetain, config: UceConfig) -> list[Edited]:
    """Return what is erased and what is read instead, each prompt once."""
    if config.concepts:
        named = zip(config.concepts, config.guides_each(), strict=True)
        templates = TEMPLATES[config.expand]
        return [(filled(model, t, concept), filled(model, t, guide)) for concept, guide in named for t in templates]
    forget = data.forget
    both = zip(forget.captions, forget.overwrites or (), strict=False)
    captions = dict.fromkeys((caption, overwrite) for caption, overwrite in both if caption.strip())
    if not captions:
        raise ConfigError(
            "VU-C107",
            "UCE is told nothing to forget: it edits how texts are read, and neither unlearner.concepts nor the "
            "captions and overwrite captions of the data name any.",
            'Name concepts and guides, such as unlearner.concepts = ["cat"] and unlearner.guides = ["dog"].',
            where="unlearner.concepts",
        )
    return [told_apart(model, caption, overwrite) for caption, overwrite in captions]


def _embed(model: Model, prompts: Sequence[Prompt]) -> Tensor:
    """Return the embeddings of prompts, ``(B, L, d)`` float64 on the CPU, where every device has that precision."""
    if not prompts:
        return torch.zeros(0, 0, 0, dtype=torch.float64)
    with torch.no_grad():
        return cast(Denoiser, model).embed([prompt.text for prompt in prompts]).cpu().double()


def _no_effect(concept: Prompt, guide: Prompt, config: UceConfig) -> ConfigError:
    return ConfigError(
        "VU-C105",
        f"Reading {concept.text!r} as {guide.text!r} has no effect: the text encoder gives both the same embedding in "
        f"the rows of tokens = {config.tokens!r}.",
        "Name another guide (or --overwrite), or let unlearner.tokens take more rows: 'subject', 'after'.",
        where="unlearner.guides" if config.concepts else "data.overwrite",
    )
