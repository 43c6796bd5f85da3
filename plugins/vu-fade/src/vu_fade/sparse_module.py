"""FADE per module: train only the modules that matter most for the forget examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import attrs
from torch import Tensor

from vu_core import Edit, ForgetRetain, Model, Run, Source, setting
from vu_core.ops import kept
from vu_core.training import timestep_range
from vu_fade.fade import FADE_SOURCE, FADE_WEIGHTING, FadeConfig, distil


@attrs.frozen
class FadeSparseModuleConfig(FadeConfig):
    """Settings of `FadeSparseModule`: those of FADE and the share of modules."""

    sparsity_inclusiveness: float = setting(
        0.5, help="share p of the candidate modules that are tuned; 1 = all, 0 would leave nothing", gt=0, le=1
    )


class FadeSparseModule:
    """Train FADE's objective on the modules with the highest mean attribution only.

    The candidates are the weights of linear maps, convolutions and embeddings that the run's parameters may train;
    biases and norms are none and keep their values, also with the parameters ``full``. With the scores S of the run's
    attribution::

        s(module) = mean(S of its weight)        k = max(1, floor(p * N))

    the ``k`` modules of ``N`` with the largest ``s`` are tuned, ties going to the smaller name. Every other weight
    keeps its value exactly.

    Args:
        config: see `FadeSparseModuleConfig`.

    Example:
        >>> FadeSparseModule(FadeSparseModuleConfig(sparsity_inclusiveness=0.25)).config.sparsity_inclusiveness
        0.25

    Source:
        arXiv 2602.07058.

    Deviates:
        ``parameters.targets`` restricts the candidates (the released code discards it); any number of candidates is
        accepted.
    """

    Config: ClassVar[type[FadeSparseModuleConfig]] = FadeSparseModuleConfig
    source: ClassVar[Source] = FADE_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": FADE_WEIGHTING,
        "parameters": {"name": "lora", "rank": 4, "alpha": 4.0},
        "attribution": {"name": "saliency"},
    }

    def __init__(self, config: FadeSparseModuleConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Choose the modules, train them and return the edit; its facts name the selected modules.

        Raises:
            ConfigError: ``VU-C090`` when the range of timesteps does not fit the model.
            UnlearnError: when a loss or a gradient is not finite.
        """
        timestep_range(model, self.config)  # an error must come before the attribution, which takes long
        p = self.config.sparsity_inclusiveness
        scores = run.attribute(model, data, candidates=module_weights(model, run.candidates(model)))
        selected = top_modules(scores, p)
        run.emit("note", text=f"{len(selected)} of {len(scores)} modules are tuned (p = {p:g}).")
        facts: dict[str, Any] = {
            "sparsity_inclusiveness": p,
            "candidate_modules": len(scores),
            "selected_modules": [module_of(name) for name in selected],
        }
        return distil(model, data, run, run.parameterise(model, targets=selected), self.config, **facts)


def module_weights(model: Model, candidates: Collection[str]) -> list[str]:
    """Return the candidates that are weights of a map: tensors called ``weight`` with inputs and outputs.

    Biases have another name, and the weight of a norm has one dimension.
    """
    return [name for name in candidates if name.endswith(".weight") and model.network.get_parameter(name).dim() > 1]


def top_modules(scores: Mapping[str, Tensor], p: float) -> tuple[str, ...]:
    """Return the names of the ``max(1, floor(p N))`` weights with the largest mean score, best first.

    Args:
        scores: per weight name a score per element.
        p: share in (0, 1].

    Example:
        >>> import torch
        >>> top_modules({"b.weight": torch.ones(2), "a.weight": torch.ones(2), "c.weight": torch.zeros(2)}, 0.34)
        ('a.weight',)
    """
    means = {name: s.double().mean().item() for name, s in scores.items()}
    order = sorted(means, key=lambda name: (-means[name], name))
    return tuple(order[: max(1, kept(len(order), p))])


def module_of(weight: str) -> str:
    """Return the module that owns a weight: its name without the last part."""
    return weight.rpartition(".")[0] or weight
