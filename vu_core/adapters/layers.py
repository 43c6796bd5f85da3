"""Layers that add a low-rank change to a frozen linear map or convolution.

    plain:   y = W x + b + gamma * B (A x)                      gamma = alpha / rank
    masked:  y = (W + gamma * (B A) * M) x + b                  M boolean, constant

The mask acts on the product; A and B stay dense, so ``dL/dB = gamma (G*M) A^T`` and ``dL/dA = gamma B^T (G*M)``.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@attrs.define
class Switch:
    """One flag that all adapter layers of a model look at; ``depth`` counts how often the base was entered."""

    on: bool = True
    depth: int = 0


@attrs.frozen(eq=False)
class Factors:
    """The low-rank change of one weight.

    Args:
        A: ``(rank, in)``; B: ``(out, rank)``; float32, trainable or not.
        scale: gamma = alpha / rank.
        dropout: probability with which an input of the change is dropped while the layer is in training mode.
        mask: boolean ``(out, in)``, or ``None``.
    """

    A: Tensor
    B: Tensor
    scale: float
    dropout: float = 0.0
    mask: Tensor | None = None

    def delta(self) -> Tensor:
        """Return ``gamma * (B A) * M``, ``(out, in)``, differentiable."""
        product = (self.B * self.scale) @ self.A
        return product if self.mask is None else product * self.mask


class LoraLayer(nn.Module):
    """A `torch.nn.Linear` or convolution with a low-rank change beside it.

    Weight and bias are the very parameters of the wrapped module, under the same names, so that the names and tensors
    of the model's state stay what they were. The factors are plain tensors: they appear in no state of the model, and
    moving or freezing the model leaves them alone.

    With a float32 base the masked form is one product with the changed weight. A half-precision base would round a
    small change of its weight away, so there the change is computed beside it: in the precision of autocast where that
    is on (as `vu_core.training.fit` does for bf16 and fp16), else in float32. Either way the sum with the base output
    is rounded to the precision of that output.

    Args:
        module: what is wrapped; see `supports`.
        factors: the change; factors without mask and with a zero ``B`` leave the output bitwise as it was.
        switch: shared flag; while it is off, the layer is the wrapped module.

    Example:
        >>> module = nn.Linear(3, 2)
        >>> layer = LoraLayer(module, Factors(torch.randn(1, 3), torch.zeros(2, 1), 1.0), Switch())
        >>> x = torch.randn(4, 3)
        >>> torch.equal(layer(x), module(x))
        True

    Source:
        LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685; masked product: SparsePEFT, and FADE 2602.07058.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, module: nn.Module, factors: Factors, switch: Switch) -> None:
        super().__init__()
        self.register_parameter("weight", module.get_parameter("weight"))
        self.register_parameter("bias", dict(module.named_parameters(recurse=False)).get("bias"))
        # In tuples, because a module as attribute would be registered as a child and rename its tensors.
        self.wrapped = (module,)
        self.innermost = (chain(module)[-1],)
        self.factors = factors
        self.switch = switch
        self.train(factors.dropout > 0)

    @staticmethod
    def supports(module: nn.Module) -> bool:
        """Tell whether a module can be wrapped: exactly a Linear, Conv1d, Conv2d or Conv3d, or another such layer."""
        return type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, LoraLayer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the wrapped module plus that of the change."""
        module, factors = self.wrapped[0], self.factors
        if not self.switch.on:
            return module(x)  # type: ignore[no-any-return]
        dropping = self.training and factors.dropout > 0
        one_product = factors.mask is not None and self.weight.dtype.itemsize >= 4
        if one_product and not dropping and not isinstance(module, LoraLayer):
            return _call(module, x, self.weight + factors.delta().reshape(self.weight.shape), self.bias)
        y: Tensor = module(x)
        inner = F.dropout(x, factors.dropout) if dropping else x
        # Autocast would turn a float32 copy of the input into half precision again.
        autocast = torch.is_autocast_enabled(x.device.type)
        return self._add_change(y, inner if autocast else inner.to(factors.A.dtype))

    def _add_change(self, y: Tensor, x: Tensor) -> Tensor:
        module, factors, shape = self.innermost[0], self.factors, self.weight.shape
        if factors.mask is not None or not _is_two_step(module):
            change = _call(module, x, factors.delta().reshape(shape), None)
            return torch.add(y, change).to(y.dtype)
        if isinstance(module, nn.Linear):
            change = F.linear(F.linear(x, factors.A), factors.B)
        else:
            inner = _call(module, x, factors.A.reshape(-1, *shape[1:]), None)
            change = _CONV[len(shape)](inner, factors.B.reshape(*factors.B.shape, *[1] * (len(shape) - 2)))
        return torch.add(y, change, alpha=factors.scale).to(y.dtype)


def chain(module: nn.Module) -> list[nn.Module]:
    """Return a module and everything it wraps, from the outside in; all of them hold the same weight and bias."""
    found = [module]
    while isinstance(found[-1], LoraLayer):
        found.append(found[-1].wrapped[0])
    return found


def holders(network: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return per ``id`` of a parameter or buffer all (module, name in it) that hold it.

    Tied tensors have several holders, and so has the tensor of a module that a layer wraps.
    """
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for outer in network.modules():
        for module in chain(outer):
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for leaf, tensor in own:
                if (module, leaf) not in found.setdefault(id(tensor), []):
                    found[id(tensor)].append((module, leaf))
    return found


_CONV: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
"""Convolution per number of dimensions of its weight."""


def _is_two_step(module: nn.Module) -> bool:
    """Tell whether the change of a module is a small map followed by a pointwise one (no groups)."""
    settings: Any = module
    return isinstance(module, nn.Linear) or bool(settings.groups == 1)


def _call(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the module would return with another weight and bias."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    settings: Any = module
    if settings.padding_mode == "zeros":
        sizes = (settings.stride, settings.padding, settings.dilation, settings.groups)
        return _CONV[weight.dim()](x, weight, bias, *sizes)  # type: ignore[no-any-return]
    change = {"weight": weight, "bias": bias if bias is not None else torch.zeros_like(weight[:, 0].flatten(1)[:, 0])}
    return torch.func.functional_call(module, change, (x,))  # type: ignore[no-any-return]
