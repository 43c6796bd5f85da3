"""SalUn: another method, within the weights that matter most for the forget set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from vu_core import Edit, ForgetRetain, Model, PlanError, Run, Source, setting
from vu_core.training import Training


def _not_itself(name: str) -> str | None:
    return "must be another method than salun" if name == "salun" else None


@attrs.frozen
class SalUnConfig:
    """Settings of `SalUn`."""

    training: Training = setting(
        Training(epochs=5, batch_size=8, lr=1e-5, schedule="constant", weight_decay=0.0),
        help="settings of the training loop, for the method inside",
    )
    base_method: str = setting("random-label", help="the method inside: what is learned", check=_not_itself)
    base: Mapping[str, Any] = setting(
        factory=dict,
        help="settings of the method inside, as `vu describe` lists them, without its training",
        settings_of="base_method",
    )


class SalUn:
    """Let another method change only the weights that are most salient for the forget set.

    With ``l`` the loss of a batch ``b`` of forget examples, taken at the untouched weights ``theta_0``, and ``k =
    floor(density * P)`` of the P trained parameters, biases and norms included::

        S     = |sum over b of d l(theta_0; b) / d theta|            signed sum first, then the absolute value
        M     = 1 for the k largest of S, else 0                     ties by (name, index)
        theta <- M * theta + (1 - M) * theta_0                       after every step of the method inside

    S comes from the run's attribution (by default `saliency` with ``reduce = "abs_sum"``), M and the last line from the
    regularizer `hard-mask`, which also clears the moments of the optimiser where M is 0. Masking gradients alone would
    not do: momentum and weight decay move masked weights.

    A classifier's ``l`` is its cross entropy. A diffusion model's is that of the guided answer, with ``w = 7.5``::

        l = mean(((1 + w) eps(z_t, t, c) - w eps(z_t, t, "") - y)^2)                y: noise or velocity

    Args:
        config: see `SalUnConfig`. The values are those for Stable Diffusion. The recipe for `torch-module` has those of
            the paper for classifiers: ``epochs = 10``, ``optimizer = "sgd"``, ``lr = 0.013``, ``weight_decay = 5e-4``,
            ``batch_size = 256`` and equal weights of both losses.

    Example:
        >>> SalUn(SalUnConfig(base_method="fade")).config.base_method
        'fade'

    Source:
        Fan et al. 2023, arXiv 2310.12508.

    Deviates:
        A batch that is not full weighs by its size (released code: as any other one). Exactly k weights may change. The
        mask is no file of its own: it lies bit-packed in the checkpoints, and ``run.toml`` gives the same one again.
    """

    Config: ClassVar[type[SalUnConfig]] = SalUnConfig
    source: ClassVar[Source] = Source(
        "SalUn: gradient-based weight saliency, Fan et al. 2023", "https://arxiv.org/abs/2310.12508", "paper+fixes"
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple", "forget_weight": 1.0, "retain_weight": 0.1},
        "parameters": {"name": "full"},
        "attribution": {
            "name": "saliency",
            "reduce": "abs_sum",
            "batch_size": 8,
            "guidance": 7.5,
            "weight_by_batch_size": True,
        },
        "regularizer": {"hard-mask": {"density": 0.5}},
    }

    def __init__(self, config: SalUnConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Run the method inside and return its edit; the mask is a regularizer of the run.

        Raises:
            PlanError: ``VU-L096`` when the method inside does not train, ``VU-L097`` when the run has no mask.
        """
        inside = run.unlearner(self.config.base_method, **self.config.base)
        if not hasattr(inside.Config, "training"):
            raise PlanError(
                "VU-L096",
                f"The method {self.config.base_method!r} takes no steps, so there is nothing to mask.",
                "Choose a method that trains, such as random-label.",
                where="unlearner.base_method",
            )
        if not run.regularizers:
            raise PlanError(
                "VU-L097",
                f"The run has no regularizer, and without its mask salun is {self.config.base_method!r}.",
                "Set regularizer.hard-mask.density; to train without a mask choose the method itself.",
                where="regularizer",
            )
        edit = inside.unlearn(model, data, run)
        return attrs.evolve(edit, facts={**edit.facts, "base_method": self.config.base_method})
