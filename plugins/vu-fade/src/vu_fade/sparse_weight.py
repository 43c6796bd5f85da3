"""FADE per weight: change only the weights that matter most for the forget examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, cast

import attrs
from torch import Tensor

from vu_core import Denoiser, Edit, ForgetRetain, Model, Run, Source, setting
from vu_core.ops import top_masks
from vu_core.training import timestep_range
from vu_fade.fade import FADE_SOURCE, FADE_WEIGHTING, FadeConfig, distil
from vu_fade.sparse_module import module_of


@attrs.frozen
class FadeSparseWeightConfig(FadeConfig):
    """Settings of `FadeSparseWeight`: those of FADE and how the mask is made."""

    sparsity_inclusiveness: float = setting(
        0.5, help="share p of the weights that may change; 1 = all, 0 would leave nothing", gt=0, le=1
    )
    mask_scope: str = setting(
        "targets",
        help="what the share is of: targets = all targets together; per_module = each; global = denoiser and targets",
        choices=("targets", "per_module", "global"),
    )
    ties: str = setting(
        "exact",
        help="exact: k ones, equal scores go by (name, index); inclusive: every score that reaches the k-th largest",
        choices=("exact", "inclusive"),
    )


class FadeSparseWeight:
    """Train FADE's objective with a low-rank change that is masked to the most salient weights.

    With the scores S of the run's attribution over ``n`` elements, ``k = floor(p * n)`` and ``c`` the k-th largest::

        M = 1 where S >= c, else 0        change of W = (alpha / rank) * (B A) * M        (* M elementwise)

    The mask acts on the product, in every forward pass and in the merged weight; A and B stay dense. Weights outside
    the mask keep their value exactly.

    Args:
        config: see `FadeSparseWeightConfig`.

    Example:
        >>> FadeSparseWeight(FadeSparseWeightConfig(mask_scope="per_module")).config.ties
        'exact'

    Source:
        arXiv 2602.07058.

    Deviates:
        The share is taken of the target weights (the released code: of all parameters of the denoiser, ``mask_scope =
        "global"``), and exactly ``k`` weights may change (there: all ties, ``ties = "inclusive"``). The mask is stored
        with the edit.
    """

    Config: ClassVar[type[FadeSparseWeightConfig]] = FadeSparseWeightConfig
    source: ClassVar[Source] = FADE_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": FADE_WEIGHTING,
        "parameters": {"name": "masked-lora", "rank": 4, "alpha": 4.0, "targets": ("to_k", "to_q", "to_v")},
        "attribution": {"name": "saliency"},
    }

    def __init__(self, config: FadeSparseWeightConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Make the masks, train within them and return the edit; its facts hold the density of each mask.

        Raises:
            ConfigError: ``VU-C090`` when the range of timesteps does not fit the model.
            PlanError: when the run's parameters cannot honour masks.
            UnlearnError: when a loss or a gradient is not finite, or no target weight is left by a global mask.
        """
        timestep_range(model, self.config)  # an error must come before the attribution, which takes long
        candidates = run.candidates(model)
        masks, facts = self._masks(model, data, run, candidates)
        run.emit("note", text=f"{facts['mask_ones']} of {facts['mask_weights']} target weights may change.")
        theta = run.parameterise(model, targets=candidates, masks=masks)
        return distil(model, data, run, theta, self.config, **facts)

    def _masks(
        self, model: Model, data: ForgetRetain, run: Run, candidates: Collection[str]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        p, scope = self.config.sparsity_inclusiveness, self.config.mask_scope
        scores = run.attribute(model, data, candidates=_ranked(model, candidates) if scope == "global" else candidates)
        ranked = top_masks(
            scores,
            p,
            scope="per_tensor" if scope == "per_module" else "joint",
            ties="inclusive" if self.config.ties == "inclusive" else "exact",
        )
        masks = {name: ranked[name] for name in candidates}
        facts = {
            "sparsity_inclusiveness": p,
            "mask_scope": scope,
            "ranked_weights": sum(s.numel() for s in scores.values()),
            "mask_weights": sum(m.numel() for m in masks.values()),
            "mask_ones": sum(int(m.sum()) for m in masks.values()),
            "mask_density": {module_of(name): m.double().mean().item() for name, m in masks.items()},
        }
        return masks, facts


def _ranked(model: Model, candidates: Collection[str]) -> Collection[str] | None:
    """Return what a global mask ranks, of which only the part that belongs to targets is kept.

    That is every parameter of the denoiser, biases and norms too (``None`` says so), and targets in other components.
    """
    denoiser = f"{cast(Denoiser, model).denoiser}."
    outside = [name for name in candidates if not name.startswith(denoiser)]
    if not outside:
        return None
    inside = (name for name, _ in model.network.named_parameters() if name.startswith(denoiser))
    return (*inside, *outside)
