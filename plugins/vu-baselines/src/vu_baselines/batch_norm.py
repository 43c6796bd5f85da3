"""Batch norm whose statistics move while a network trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vu_core import Edit, Model, Run, Theta
from vu_core.adapters import difference

PREFIX = "buffer."
"""Of the names of buffers in a checkpoint."""


@attrs.frozen(eq=False)
class _Buffer:
    """One buffer of the network.

    Args:
        module: that holds it under the name ``leaf``; base: the stored tensor; trained: the copy that moves.
    """

    module: nn.Module
    leaf: str
    base: Tensor
    trained: Tensor


class MovingStatistics:
    """Trainable parameters together with the running statistics of batch norm; a `vu_core.Theta` around another one.

    With batch statistics m (mean) and v (variance, unbiased) and the momentum ``a`` of the layer::

        running mean     <- (1 - a) * running mean     + a * m
        running variance <- (1 - a) * running variance + a * v

    Copies of the buffers take the places of the stored ones, as trained weights do. Layers normalise by the batch, and
    average, inside the passes of a step only; `base`, and whatever looks at the network between steps, sees stored
    statistics. What moved is part of checkpoints and of the edit, and `detach` puts the very objects of before back.

    Args:
        theta: what is trained besides; attached already.
        buffers: by name.
        norms: the layers that average; empty when they keep the statistics of the copies.
    """

    def __init__(self, theta: Theta, buffers: Mapping[str, _Buffer], norms: Sequence[_BatchNorm]) -> None:
        self.model: Model = theta.model
        self._theta = theta
        self._buffers = dict(buffers)
        self._norms = list(norms)
        self._depth = 0
        self._attached = True
        self._swap(trained=True)

    @classmethod
    def of(cls, theta: Theta, run: Run, start: Mapping[str, Tensor] | None = None, *, moving: bool = True) -> Theta:
        """Wrap ``theta``, or return it as it is where the network has no such buffers.

        Args:
            theta: attached to the model.
            run: takes it off again when a method fails.
            start: values that buffers begin with, by name; the stored ones where none is given.
            moving: batch norm averages; else the copies keep what they begin with.
        """
        network = theta.model.network
        norms = {name: m for name, m in network.named_modules() if isinstance(m, _BatchNorm)}
        norms = {name: m for name, m in norms.items() if m.track_running_stats and m.running_mean is not None}
        averaged = {f"{name}.{leaf}" for name, m in norms.items() for leaf, _ in m.named_buffers(recurse=False)}
        wanted = {**(start or {}), **({name: network.get_buffer(name) for name in averaged - set(start or {})})}
        if not moving:
            wanted = dict(start or {})
        if not wanted:
            return theta
        buffers = {}
        for name, value in wanted.items():
            path, _, leaf = name.rpartition(".")
            base = network.get_buffer(name)
            buffers[name] = _Buffer(network.get_submodule(path), leaf, base, value.detach().to(base, copy=True))
        found = cls(theta, buffers, list(norms.values()) if moving else [])
        run.attached.append(found)
        return found

    def _swap(self, *, trained: bool) -> None:
        for buffer in self._buffers.values():
            setattr(buffer.module, buffer.leaf, buffer.trained if trained else buffer.base)

    @contextmanager
    def _averaging(self, wanted: bool) -> Iterator[None]:
        """Set the mode of the layers, and put it back."""
        before = [norm.training for norm in self._norms]
        for norm in self._norms:
            norm.training = wanted
        try:
            yield
        finally:
            for norm, mode in zip(self._norms, before, strict=True):
                norm.training = mode

    def parameters(self) -> list[Tensor]:
        """Return the trainable tensors; statistics are none of them."""
        return self._theta.parameters()

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (stable name, trainable tensor)."""
        return self._theta.named_parameters()

    def named_deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name of the base tensor, differentiable change of it)."""
        return self._theta.named_deltas()

    def groups(self) -> Mapping[str, list[Tensor]]:
        """Return the trainable tensors by module."""
        return self._theta.groups()

    @contextmanager
    def base(self) -> Iterator[None]:
        """Let the model compute with stored weights and stored statistics while entered."""
        self._depth += 1
        if self._depth == 1:
            self._swap(trained=False)
        try:
            with self._averaging(False), self._theta.base():
                yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._attached:
                self._swap(trained=True)

    def passes(self, step: int, phase: str = "main") -> Sequence[AbstractContextManager[None]]:
        """Return the passes of what is inside; batch norm averages while one is entered."""
        return [self._within(inner) for inner in self._theta.passes(step, phase)]

    @contextmanager
    def _within(self, inner: AbstractContextManager[None]) -> Iterator[None]:
        with inner, self._averaging(True):
            yield

    def state(self) -> Mapping[str, Tensor]:
        """Return the state of what is inside and the statistics."""
        return {**self._theta.state(), **{PREFIX + name: buffer.trained for name, buffer in self._buffers.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned. Raises: RecordError ``VU-R030`` when names or shapes differ."""
        self._theta.load_state({name: value for name, value in state.items() if not name.startswith(PREFIX)})
        with torch.no_grad():
            for name, buffer in self._buffers.items():
                buffer.trained.copy_(state[PREFIX + name])

    def edit(self) -> Edit:
        """Return the change of the parameters, with a part for every statistic that differs from the stored one.

        How many batches were averaged is no part: nothing that the network answers depends on it.
        """
        edit, parts = self._theta.edit(), {}
        for name, buffer in self._buffers.items():
            part = difference(buffer.base, buffer.trained) if buffer.base.is_floating_point() else None
            if part is not None:
                parts[name] = part
        return attrs.evolve(edit, parts={**edit.parts, **parts})

    def detach(self) -> None:
        """Put the stored statistics back into their places, and take off what is inside."""
        if self._attached:
            self._swap(trained=False)
            self._attached = False
        self._theta.detach()
