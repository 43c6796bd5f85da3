"""Regularizer ``group-lasso``: most blocks do not change at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor

from vu_core import ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.training import From, Schedule, steps_per_epoch, value_at
from vu_gs_lora.grouping import KINDS, blocks_of, group_of

GS_LORA_URL = "https://arxiv.org/abs/2403.11530"


@attrs.frozen
class GroupLassoConfig:
    """Settings of `GroupLasso`."""

    weight: Schedule = setting(
        1e-4, help="alpha: one number, one per task, or {start_epoch, value}: 0 until that epoch", ge=0
    )
    structure: str = setting(
        "proximal",
        help="proximal: shrink after each step, gives exact zeros; subgradient: a penalty in the loss, as released",
        choices=("proximal", "subgradient"),
    )
    groups: str = setting(
        "block", help="block: all that is trained in a block; pair: per module; matrix: per tensor", choices=KINDS
    )
    size_weight: str = setting(
        "none",
        help="factor on the weight of a group: none, or sqrt of its number of elements",
        choices=("none", "sqrt"),
    )
    eps: float = setting(
        0.0, help="subgradient only: added to the sum of squares of a group, so that its root is smooth", ge=0
    )

    def __attrs_post_init__(self) -> None:
        if self.eps and self.structure == "proximal":
            raise ValueError("eps smooths the penalty of structure = 'subgradient'; the proximal update needs none")


class GroupLasso:
    """Shrink groups of trained tensors as a whole, until those that matter little are exactly zero.

    With ``n_g`` the norm of everything in group g and ``alpha_g = weight * sqrt(size_g)`` or just ``weight``::

        n_g       = sqrt(sum over M in g of ||M||_F^2)
        penalty   = sum_g alpha_g n_g                                        structure = "subgradient"
        theta_g  <- theta_g * max(0, 1 - lr * alpha_g / n_g)                 structure = "proximal", after each step

    The second is the proximal operator of the first. A subgradient never reaches zero, and under an optimiser that
    normalises its steps, such as AdamW, its weight acts only relative to the other gradients; the proximal update takes
    ``lr * alpha_g`` off every norm at every step. A training takes off ``alpha_g * (sum of all lr)`` at most, so a
    weight below ``n_g / (sum of all lr)`` leaves no group at zero.

    Where a group becomes zero, the moments of the optimiser are cleared in it, else momentum would wake it up. Both
    factors of a LoRA at zero have no gradient either, so such a group stays zero for the rest of the training.

    M is a factor of a low-rank change, or the change of a whole weight (``--parameters full``): a zero group is
    one that the edit leaves alone. Groups are those of the model's blocks; a tensor outside of all blocks, or of a
    model without any, belongs to the group of its module.

    Args:
        config: see `GroupLassoConfig`. An epoch of ``weight`` is one of `vu_core.training.fit`.

    Example:
        >>> GroupLasso(GroupLassoConfig(weight=0.01, groups="pair")).config.structure
        'proximal'

    Source:
        GS-LoRA, Zhao et al. 2024, arXiv 2403.11530, there with the subgradient; group lasso: Yuan and Lin 2006.

    Deviates:
        ``proximal`` is the default, since the ratio of zero groups is what the penalty is for. The released code counts
        six blocks, whatever the model has. The subgradient at zero is zero (there: NaN).
    """

    Config: ClassVar[type[GroupLassoConfig]] = GroupLassoConfig
    source: ClassVar[Source] = Source("GS-LoRA, Zhao et al. 2024, group lasso", GS_LORA_URL, "paper+fixes")
    side: Literal["retain", "forget", "outside"] = "outside"

    def __init__(self, config: GroupLassoConfig) -> None:
        self.config = config
        self._steps, self._per_epoch, self._task = 0, 1, 0
        self._tensors: list[Tensor] = []
        self._origins: list[Tensor | None] = []
        self._place = torch.zeros(0, dtype=torch.int64)
        self._sizes = torch.zeros(0)

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Look up the groups, and how many steps an epoch has.

        Raises:
            ConfigError: ``VU-C054`` when ``weight`` lists no number for the task of the run.
        """
        self._steps, self._task = 0, run.task
        self._per_epoch = steps_per_epoch(data, run) if isinstance(self.config.weight, From) else 1
        self._weight()
        self._bind(theta)

    def _bind(self, theta: Theta) -> None:
        """Pair every trained tensor with its group and with the value that counts as zero."""
        blocks = blocks_of(theta.model)
        modules = {id(tensor): module for module, tensors in theta.groups().items() for tensor in tensors}
        with theta.base():
            weights = dict(theta.model.network.named_parameters())
        self._tensors, self._origins = [], []
        places: list[int] = []
        sizes: dict[str, int] = {}
        for name, tensor in theta.named_parameters():
            group = group_of(self.config.groups, modules[id(tensor)], name, blocks)
            sizes[group] = sizes.get(group, 0) + tensor.numel()
            places.append(list(sizes).index(group))
            self._tensors.append(tensor)
            self._origins.append(weights[name].detach() if name in weights else None)
        device = self._tensors[0].device
        self._place = torch.tensor(places, device=device)
        root = torch.tensor([float(size) for size in sizes.values()], device=device).sqrt()
        self._sizes = root if self.config.size_weight == "sqrt" else torch.ones_like(root)

    def _weight(self) -> float:
        """Return alpha of the step that comes next, or is being taken."""
        epoch = self._steps // self._per_epoch
        return value_at(self.config.weight, task=self._task, epoch=epoch, name="regularizer.group-lasso.weight")

    def _changes(self) -> list[Tensor]:
        """Return what counts as zero when nothing was learned: factors themselves, weights less the untouched ones."""
        pairs = zip(self._tensors, self._origins, strict=True)
        return [t if origin is None else t - origin.to(t.dtype) for t, origin in pairs]

    def _norms(self, changes: Sequence[Tensor]) -> Tensor:
        """Return n_g of all groups, ``(G,)`` float32; the gradient of a norm of zero is zero."""
        norms = torch.stack(list(torch._foreach_norm(list(changes)))).float()  # (tensors,)
        squares = torch.zeros_like(self._sizes).index_add(0, self._place, norms.square()) + self.config.eps  # (G,)
        positive = squares > 0
        return torch.where(positive, squares, 1.0).sqrt() * positive

    def penalty(self) -> Tensor | None:
        """Return ``sum_g alpha_g n_g``; nothing for the proximal update, and while alpha is 0."""
        alpha = self._weight()
        if self.config.structure == "proximal" or alpha == 0:
            return None
        return alpha * (self._sizes * self._norms(self._changes())).sum()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take ``lr * alpha_g`` off the norm of every group; nothing is copied to the host."""
        shrink = optimizer.param_groups[0]["lr"] * self._weight()
        if self.config.structure == "proximal" and shrink > 0:
            self._shrink(shrink, optimizer)
        self._steps += 1

    @torch.no_grad()
    def _shrink(self, shrink: float, optimizer: torch.optim.Optimizer) -> None:
        changes = self._changes()
        factors = (1 - shrink * self._sizes / self._norms(changes)).clamp(min=0)[self._place]  # (tensors,)
        torch._foreach_mul_(changes, list(factors.unbind()))
        for tensor, origin, change in zip(self._tensors, self._origins, changes, strict=True):
            if origin is not None:
                tensor.copy_(origin + change)
        moments, alive = [], []
        for tensor, factor in zip(self._tensors, (factors > 0).float().unbind(), strict=True):
            own = [m for m in optimizer.state.get(tensor, {}).values() if isinstance(m, Tensor) and m.dim() > 0]
            moments += own
            alive += [factor] * len(own)
        if moments:
            torch._foreach_mul_(moments, alive)

    def state(self) -> Mapping[str, Tensor]:
        """Return the number of finished steps, steps per epoch and the task, int64 ``(3,)``."""
        return {"progress": torch.tensor([self._steps, self._per_epoch, self._task])}

    def load_state(self, state: Mapping[str, Any], theta: Theta) -> None:
        """Put them back and look up the groups."""
        self._steps, self._per_epoch, self._task = state["progress"].tolist()
        self._bind(theta)
