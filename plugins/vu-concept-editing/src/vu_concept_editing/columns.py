"""The columns of UCE: what it reads from the text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from vu_concept_editing.closed_form import Columns
from vu_concept_editing.prompts import TEMPLATES, Prompt, filled, kept_rows, pairs, told_apart
from vu_core import ConfigError, DataError, Denoiser, ForgetRetain, Model, Tokens

if TYPE_CHECKING:
    from vu_concept_editing.uce import UceConfig


def read_columns(model: Model, data: ForgetRetain, config: UceConfig) -> Columns:
    tokens = cast(Tokens, model)
    if config.concepts:
        guides = config.guides or ("art" if config.expand == "art" else "",)
        guides = guides * len(config.concepts) if len(guides) == 1 else guides
        edited = [
            (filled(tokens, t, c), filled(tokens, t, g))
            for c, g in zip(config.concepts, guides, strict=True)
            for t in TEMPLATES[config.expand]
        ]
    else:
        f = data.forget
        edited = [told_apart(tokens, a, b) for a, b in dict.fromkeys(zip(f.captions, f.overwrites or (), strict=True))]
    kept = config.preserve or (() if config.concepts else tuple(dict.fromkeys(data.retain.captions)))
    with torch.no_grad():
        embed = cast(Denoiser, model).embed
        a = embed([c.text for c, _ in edited]).cpu().double()
        b = embed([g.text for _, g in edited]).cpu().double()
        rows = a.shape[1]
        cs, gs, ps = [], [], []
        for i, (c, g) in enumerate(edited):
            for x, y in pairs(c, g, config.tokens, rows):
                cs.append(a[i, x]); gs.append(b[i, y])
            if config.tokens == "after":
                ps.extend(a[i, :c.first])
        for text, e in zip(kept, embed(kept).cpu().double() if kept else (), strict=True):
            ids = tokens.tokens([text])[0]
            ps.extend(e[r] for r in kept_rows(Prompt(text, len(ids), 1, len(ids) - 1), config.tokens, rows))
    return Columns(torch.stack(cs, 1), torch.stack(gs, 1), torch.stack(ps, 1) if ps else torch.zeros(a.shape[2], 0).double())
