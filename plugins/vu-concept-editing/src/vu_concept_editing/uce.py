"""UCE: cross-attention reads the forgotten words as other ones, solved in closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import attrs
import torch
from torch import Tensor, nn

from vu_concept_editing.closed_form import Columns, Scales, as_part, change_of, erasing_rows
from vu_concept_editing.columns import read_columns
from vu_concept_editing.prompts import TEMPLATES, TOKENS
from vu_core import Denoiser, Edit, ForgetRetain, LowRank, Model, PlanError, Replace, Run, Source, did_you_mean, setting


@attrs.frozen
class UceConfig:
    """Settings of `Uce`."""

    concepts: tuple[str, ...] = setting(
        (), help="words to forget, such as ['cat']; those of the data when empty", check=lambda v: _named_once(v)
    )
    guides: tuple[str, ...] = setting(
        (), help="what is read instead: one for all or one each; '' = no words, and 'art' with expand = 'art'"
    )
    preserve: tuple[str, ...] = setting(
        (), help="words that keep their meaning; with the concepts of the data its retain captions when empty"
    )
    erase_scale: float = setting(1.0, help="e: weight of what is forgotten", gt=0)
    preserve_scale: float = setting(1.0, help="q: weight of what is preserved", ge=0)
    regularization: float = setting(0.5, help="lambda: weight of staying close to the base", gt=0)
    tokens: str = setting(
        "last", help="rows of the text: its last token, those of the subject, or these and all behind", choices=TOKENS
    )
    expand: str = setting("none", help="also edit prompts such as 'painting by X'", choices=tuple(TEMPLATES))
    layers: tuple[str, ...] = setting(
        ("attn2.to_k", "attn2.to_v"), help="ends of the names of the linear maps that read the text"
    )


def _named_once(texts: Sequence[str]) -> str | None:
    return None


class Uce:
    """Unified concept editing."""

    Config: ClassVar[type[UceConfig]] = UceConfig
    source: ClassVar[Source] = Source(
        "Unified Concept Editing in Diffusion Models, Gandikota et al. 2024",
        "https://arxiv.org/abs/2308.14761",
        "paper+fixes",
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    uses_images: ClassVar[bool] = False

    def __init__(self, config: UceConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        config = self.config
        layers = text_layers(model, config.layers)
        columns = read_columns(model, data, config)
        return solved(layers, columns, Scales(config.erase_scale, config.preserve_scale, config.regularization))


def solved(layers: Mapping[str, Tensor], columns: Columns, scales: Scales) -> Edit:
    with torch.no_grad():
        rows = erasing_rows(columns, scales)
        parts: dict[str, LowRank | Replace] = {}
        residuals: dict[str, dict[str, float]] = {}
        for name, weight in layers.items():
            left, right = change_of(weight, columns, rows, scales.erase)
            parts[name] = as_part(weight, left, right)
    return Edit(parts)


def text_layers(model: Model, ends: Sequence[str]) -> dict[str, Tensor]:
    home = cast(Denoiser, model).denoiser
    return {
        f"{n}.weight": m.weight
        for n, m in model.network.named_modules()
        if n.startswith(home) and isinstance(m, nn.Linear) and any(f".{n}".endswith(f".{e}") for e in ends)
    }
