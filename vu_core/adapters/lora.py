"""Parameters ``lora`` and ``masked-lora``: low-rank factors beside frozen weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from vu_core.adapters.layers import Factors, LoraLayer, Switch, chain, holders
from vu_core.adapters.state import load_tensors
from vu_core.adapters.targets import chosen, matching_modules
from vu_core.contracts.model import Model
from vu_core.edit import Edit, LowRank
from vu_core.errors import PlanError, UnlearnError
from vu_core.run import Run
from vu_core.setting import setting
from vu_core.source import Source

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Maps of the attention of a denoiser."""


@attrs.frozen
class LoraConfig:
    """Settings of ``lora`` and ``masked-lora``."""

    rank: int = setting(4, help="rows of A and columns of B", ge=1)
    alpha: float = setting(4.0, help="strength: the change is (alpha / rank) * B A", gt=0)
    dropout: float = setting(0.0, help="share of the inputs of the change dropped in training", ge=0, lt=1)
    init: str = setting(
        "normal",
        help="how A is drawn: normal with deviation 1 / rank, or kaiming: uniform in +-1 / sqrt(in)",
        choices=("normal", "kaiming"),
    )
    targets: tuple[str, ...] = setting(
        ATTENTION,
        help="ends of module names; a component in front reaches other components; the default means every linear map "
        "and convolution of a model without a denoiser",
    )


class Lora:
    """Train a low-rank change of linear maps and convolutions: ``W + (alpha / rank) * B A``.

    A is drawn from a normal distribution with standard deviation ``1 / rank``, or uniformly in ``+-1 / sqrt(in)`` with
    ``init = "kaiming"`` (per module its own generator of the run), B is zero, so that the untouched adapter changes
    nothing, bit for bit. Factors are float32, whatever the base is.

    Source:
        LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685.
    """

    Config: ClassVar[type[LoraConfig]] = LoraConfig
    source: ClassVar[Source] = Source("LoRA, Hu et al. 2021", "https://arxiv.org/abs/2106.09685", "paper")
    honours_masks: ClassVar[bool] = False

    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def candidates(self, model: Model) -> tuple[str, ...]:
        """Return the names of the weights of all supported modules that the targets match.

        Raises:
            PlanError: ``VU-L030`` when a target matches no linear map and no convolution.
        """
        targets = self.config.targets
        if targets == ATTENTION and not hasattr(model, "denoiser"):
            targets = ()  # modules of these names are a denoiser's
        matched = matching_modules(model, targets, LoraLayer.supports)
        return tuple(f"{name}.weight" for name, _ in matched)

    def attach(
        self,
        model: Model,
        run: Run,
        *,
        targets: Collection[str] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> LoraTheta:
        """Put a `LoraLayer` around each chosen module; see `vu_core.contracts.Parameters.attach`.

        A mask of ones is no mask, and a weight whose mask is empty is not trained at all.

        Raises:
            PlanError: ``VU-L031`` a target or mask that fits nothing; ``VU-L032`` masks that cannot be honoured;
                ``VU-L034`` a weight that another module shares.
            UnlearnError: ``VU-U030`` when nothing is left to train.
        """
        if masks is not None and not self.honours_masks:
            raise PlanError(
                "VU-L032",
                "The method limits the change per weight element, but the parameters 'lora' cannot honour masks.",
                "Use --parameters masked-lora.",
                where="unlearner.parameters.name",
            )
        names = chosen(self.candidates(model), targets, masks)
        _refuse_tied(model.network, names)
        switch, layers = Switch(), {}
        for weight_name in names:
            module = model.network.get_submodule(weight_name.removesuffix(".weight"))
            weight = module.get_parameter("weight")
            mask = None if masks is None or weight_name not in masks else _matrix_mask(weight_name, masks, weight)
            if mask is not None and not bool(mask.any()):
                continue
            factors = self._draw(weight_name, weight, None if mask is None or bool(mask.all()) else mask, run)
            layers[weight_name] = LoraLayer(module, factors, switch)
        if not layers:
            raise UnlearnError(
                "VU-U030",
                "Nothing is left to train: no target was chosen, or all masks are empty.",
                "Choose a larger share to train, or other targets.",
                where="unlearner.parameters",
            )
        return LoraTheta(model, layers, self.config.alpha, switch)

    def _draw(self, name: str, weight: Tensor, mask: Tensor | None, run: Run) -> Factors:
        rank, generator = self.config.rank, run.generator("lora", name)
        width = weight[0].numel()
        if self.config.init == "kaiming":  # kaiming-uniform with a = sqrt(5)
            a = (2 * torch.rand(rank, width, generator=generator) - 1) / width**0.5  # (rank, in)
        else:
            a = torch.randn(rank, width, generator=generator) / rank  # (rank, in)
        b = torch.zeros(weight.shape[0], rank)  # (out, rank)
        device, precision = weight.device, torch.promote_types(weight.dtype, torch.float32)
        return Factors(
            A=a.to(device, precision).requires_grad_(),
            B=b.to(device, precision).requires_grad_(),
            scale=self.config.alpha / rank,
            dropout=self.config.dropout,
            mask=None if mask is None else mask.to(device),
        )


class MaskedLora(Lora):
    """Train a low-rank change that is zero outside of a mask: ``W + (alpha / rank) * (B A) * M``.

    The mask acts on the product, in training as in the edit, while A and B stay dense. Costs one product ``(out, in)``
    per layer and step. A method that gives no masks trains a plain LoRA.

    Source:
        FADE / SPARE, https://arxiv.org/abs/2602.07058, per-weight variant.
    """

    source: ClassVar[Source] = Source("FADE / SPARE 2026, per-weight sparse LoRA", "https://arxiv.org/abs/2602.07058")
    honours_masks: ClassVar[bool] = True


def _matrix_mask(name: str, masks: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    mask = masks[name]
    matrix = (weight.shape[0], weight[0].numel())
    if mask.dtype != torch.bool or tuple(mask.shape) not in (tuple(weight.shape), matrix):
        raise PlanError(
            "VU-L031",
            f"The mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}, but must be boolean of shape "
            f"{tuple(weight.shape)} or {matrix}.",
            "Report this to the author of the method.",
        )
    return mask.reshape(matrix)


def _refuse_tied(network: nn.Module, names: Collection[str]) -> None:
    """Refuse a weight that other modules hold too: beside one of them it would change, in an edit in all of them."""
    held = holders(network)
    paths = {module: path for path, module in network.named_modules()}
    for name in names:
        module = network.get_submodule(name.removesuffix(".weight"))
        others = [other for other, _ in held[id(module.get_parameter("weight"))] if other not in chain(module)]
        if others:
            raise PlanError(
                "VU-L034",
                f"The weight {name!r} is shared with {paths.get(others[0], 'a wrapped module')!r}, so a low-rank "
                "change beside one of them would not be the change that the edit makes.",
                "Choose other targets, or train it with --parameters full.",
                where="unlearner.parameters.targets",
            )


class LoraTheta:
    """The factors of all layers, attached to a network; see `vu_core.contracts.Theta`.

    Args:
        model: whose modules are replaced until `detach`.
        layers: layer per weight name, in the order of the network.
        alpha: numerator of the scale, kept in the edit.
        switch: the flag that the layers share.
    """

    def __init__(self, model: Model, layers: Mapping[str, LoraLayer], alpha: float, switch: Switch) -> None:
        self.layers = dict(layers)
        # The whole factors: a layer may compute with a part of them meanwhile, as elastic adapters do.
        self.factors = {name: layer.factors for name, layer in layers.items()}
        self.alpha = alpha
        self.switch = switch
        self.model = model
        self._attached = True
        # A module that is used in several places is replaced in all of them.
        everywhere: dict[nn.Module, list[str]] = {}
        for path, module in model.network.named_modules(remove_duplicate=False):
            everywhere.setdefault(module, []).append(path)
        self._places = {name: everywhere[layer.wrapped[0]] for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            for path in self._places[name]:
                model.network.set_submodule(path, layer)

    def parameters(self) -> list[Tensor]:
        """Return A and B of every layer, in the order of the network."""
        return [tensor for _, tensor in self.named_parameters()]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ``<weight name>.A`` and ``<weight name>.B``."""
        for name, factors in self.factors.items():
            yield f"{name}.A", factors.A
            yield f"{name}.B", factors.B

    def named_deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (weight name, differentiable change in the shape of the weight), as the layers compute it now."""
        for name, layer in self.layers.items():
            yield name, layer.factors.delta().reshape(layer.weight.shape)

    def groups(self) -> Mapping[str, list[Tensor]]:
        """Return A and B per module."""
        return {name.removesuffix(".weight"): [factors.A, factors.B] for name, factors in self.factors.items()}

    @contextmanager
    def base(self) -> Iterator[None]:
        """Switch all layers off while entered."""
        self.switch.depth += 1
        self.switch.on = False
        try:
            yield
        finally:
            self.switch.depth -= 1
            self.switch.on = self.switch.depth == 0

    def passes(self, step: int, phase: str = "main") -> Sequence[AbstractContextManager[None]]:
        """Return one pass, with the whole change: no part of a LoRA is drawn per step."""
        return (nullcontext(),)

    def state(self) -> Mapping[str, Tensor]:
        """Return A and B by name."""
        return {name: tensor.detach() for name, tensor in self.named_parameters()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put A and B back. Raises: RecordError ``VU-R030`` when names or shapes differ."""
        load_tensors(dict(self.named_parameters()), state)

    def edit(self) -> Edit:
        """Return one low-rank part per layer, with copies of the factors on the CPU."""
        parts = {
            name: LowRank(
                A=_copy(factors.A),
                B=_copy(factors.B),
                alpha=self.alpha,
                mask=None if factors.mask is None else _copy(factors.mask),
            )
            for name, factors in self.factors.items()
        }
        return Edit(parts)

    def detach(self) -> None:
        """Put the wrapped modules back into their places."""
        if not self._attached:
            return
        for name, layer in self.layers.items():
            for path in self._places[name]:
                self.model.network.set_submodule(path, layer.wrapped[0])
        self._attached = False


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
