"""Parameters ``full``: copies of the weights themselves are trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from vu_core.adapters.layers import holders
from vu_core.adapters.state import load_tensors
from vu_core.adapters.targets import chosen, matching_modules
from vu_core.contracts.model import Model
from vu_core.edit import Edit, Part, Replace, Sparse
from vu_core.errors import PlanError, UnlearnError
from vu_core.run import Run
from vu_core.setting import setting
from vu_core.source import Source


@attrs.frozen
class FullConfig:
    """Settings of ``full``."""

    targets: tuple[str, ...] = setting(
        (), help="ends of module names, with everything below them; empty = the denoiser, or the whole network"
    )


class Full:
    """Train every parameter of the targeted modules: weights, biases, norms.

    Copies in float32 take the places of the base parameters; the base parameters themselves stay untouched and are
    swapped in for `base`. Buffers such as batch-norm statistics are not trained. Needs the memory of one copy, of its
    gradient and of two moments.

    Source:
        Ordinary fine-tuning.
    """

    Config: ClassVar[type[FullConfig]] = FullConfig
    source: ClassVar[Source] = Source("Ordinary fine-tuning of all weights", "https://pytorch.org", "own")

    def __init__(self, config: FullConfig) -> None:
        self.config = config

    def candidates(self, model: Model) -> tuple[str, ...]:
        """Return the names of all floating-point parameters of the matching modules; a tied one has its first name.

        Raises:
            PlanError: ``VU-L030`` when a target matches no module with parameters.
        """
        matched = matching_modules(model, self.config.targets, lambda module: any(_own_parameters(module)))
        names: dict[nn.Parameter, str] = {}
        for path, module in matched:
            for leaf in _own_parameters(module):
                names.setdefault(module.get_parameter(leaf), f"{path}.{leaf}")
        return tuple(names.values())

    def attach(
        self,
        model: Model,
        run: Run,
        *,
        targets: Collection[str] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> FullTheta:
        """Swap trainable copies in; see `vu_core.contracts.Parameters.attach`."""
        names = chosen(self.candidates(model), targets, masks)
        base = {name: model.network.get_parameter(name) for name in names}
        shaped = {name: _shaped_mask(name, mask, base[name]) for name, mask in (masks or {}).items()}
        empty = {name for name, mask in shaped.items() if not bool(mask.any())}
        base = {name: tensor for name, tensor in base.items() if name not in empty}
        if not base:
            raise UnlearnError(
                "VU-U030",
                "Nothing is left to train: no target was chosen, or all masks are empty.",
                "Choose a larger share to train, or other targets.",
                where="unlearner.parameters",
            )
        limits = {n: m for n, m in shaped.items() if n in base and not bool(m.all())}
        return FullTheta(model, base, limits, lambda text: run.emit("note", text=text))


def _own_parameters(module: nn.Module) -> list[str]:
    return [leaf for leaf, tensor in module.named_parameters(recurse=False) if tensor.is_floating_point()]


def _shaped_mask(name: str, mask: Tensor, weight: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.numel() != weight.numel():
        raise PlanError(
            "VU-L031",
            f"The mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}, but must be boolean of shape "
            f"{tuple(weight.shape)}.",
            "Report this to the author of the method.",
        )
    return mask.reshape(weight.shape).to(weight.device)


class FullTheta:
    """Trainable copies in the places of base parameters; see `vu_core.contracts.Theta`.

    Outside of a mask the gradient is zero, and what weight decay moves there is put back before the next step and
    before anything is read, so that a masked element never differs from the base.

    Args:
        model: whose parameters are swapped until `detach`.
        base: the original parameters by name.
        masks: boolean, for the names whose change is limited.
        tell: is told one sentence when `edit` loses changes to the precision of the base.
    """

    def __init__(
        self,
        model: Model,
        base: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model = model
        self._tell = tell
        self._attached = True
        self._base = dict(base)
        self._masks = dict(masks)
        held = holders(model.network)
        self._holders = {name: held[id(tensor)] for name, tensor in base.items()}
        self._depth = 0
        self._trained = {name: _master_copy(tensor) for name, tensor in base.items()}
        for name, mask in self._masks.items():
            self._trained[name].register_hook(partial(torch.mul, mask))  # type: ignore[no-untyped-call]
        self._swap(self._trained)

    def _swap(self, tensors: Mapping[str, nn.Parameter]) -> None:
        for name, places in self._holders.items():
            for module, leaf in places:
                setattr(module, leaf, tensors[name])

    def _restore_masked(self) -> None:
        with torch.no_grad():
            for name, mask in self._masks.items():
                trained = self._trained[name]
                trained.copy_(torch.where(mask, trained, self._base[name].to(trained.dtype)))

    def parameters(self) -> list[Tensor]:
        """Return the trainable copies."""
        return list(self._trained.values())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name of the base weight, trainable copy)."""
        yield from self._trained.items()

    def named_deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, copy minus base), differentiable."""
        for name, trained in self._trained.items():
            delta = trained - self._base[name].detach().to(trained.dtype)
            yield name, delta * self._masks[name] if name in self._masks else delta

    def groups(self) -> Mapping[str, list[Tensor]]:
        """Return the copies per module."""
        groups: dict[str, list[Tensor]] = {}
        for name, trained in self._trained.items():
            groups.setdefault(name.rpartition(".")[0], []).append(trained)
        return groups

    @contextmanager
    def base(self) -> Iterator[None]:
        """Swap the original parameters in while entered."""
        self._depth += 1
        if self._depth == 1:
            self._swap(self._base)
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._attached:
                self._swap(self._trained)

    def passes(self, step: int, phase: str = "main") -> Sequence[AbstractContextManager[None]]:
        """Put back what weight decay moved outside of the masks; return one pass."""
        self._restore_masked()
        return (nullcontext(),)

    def state(self) -> Mapping[str, Tensor]:
        """Return the copies by name."""
        self._restore_masked()
        return {name: tensor.detach() for name, tensor in self._trained.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the copies back. Raises: RecordError ``VU-R030`` when names or shapes differ."""
        load_tensors(self._trained, state)

    def edit(self) -> Edit:
        """Return a part for every tensor that differs from the base in the base's own precision.

        Few changed elements give a sparse part, else the whole tensor is kept; both are exact in that precision. What
        it cannot express is rounded, and a note tells how many changes of a half-precision base were lost by that.
        """
        self._restore_masked()
        self._tell_rounding()
        parts = {}
        for name, trained in self._trained.items():
            part = difference(self._base[name].detach(), trained.detach())
            if part is not None:
                parts[name] = part
        return Edit(parts)

    def _tell_rounding(self) -> None:
        moved = lost = 0
        for name, trained in self._trained.items():
            base = self._base[name].detach()
            if base.dtype.itemsize < trained.dtype.itemsize:
                changed = trained.detach() != base
                moved += int(changed.sum())
                lost += int((changed & (trained.detach().to(base.dtype) == base)).sum())
        if moved:
            half = next(t.dtype for t in self._base.values() if t.dtype.itemsize < 4)
            self._tell(
                f"The weights are kept in {str(half).removeprefix('torch.')}, so the trained float32 values were "
                f"rounded to it: {lost} of {moved} changes were too small for it and are lost."
            )

    def detach(self) -> None:
        """Put the original parameters back into their places."""
        if self._attached:
            self._swap(self._base)
            self._attached = False


def _master_copy(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True))


def difference(base: Tensor, new: Tensor) -> Part | None:
    """Return the part that turns ``base`` into ``new``, exactly in the precision of ``base``.

    Args:
        base: the stored tensor.
        new: tensor of the same shape; rounded to the precision of ``base``.

    Returns:
        `Sparse` when it takes less room than the tensor, else `Replace`, on the CPU; ``None`` when they are equal.

    Example:
        >>> difference(torch.zeros(8), torch.tensor([0, 0, 0, 1.5, 0, 0, 0, 0])).indices.tolist()
        [3]
    """
    base, new = base.to("cpu").contiguous(), new.to("cpu", base.dtype).contiguous()
    changed = (base != new).flatten().nonzero().flatten()
    if len(changed) == 0:
        return None
    old = base.flatten()[changed].double()
    exact = new.flatten()[changed].double() - old
    values = exact.float()
    if not torch.equal((old + values.double()).to(base.dtype), new.flatten()[changed]):
        values = exact
    sparse_bytes = len(changed) * (4 + values.element_size())
    if sparse_bytes < new.numel() * new.element_size():
        return Sparse(changed, values, tuple(base.shape))
    return Replace(new.clone())
