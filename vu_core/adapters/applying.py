"""Looking at a network through an edit: tensors are swapped in and out, never computed back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vu_core.adapters.layers import Factors, LoraLayer, Switch, chain, holders
from vu_core.edit import Edit, LowRank, Part, Replace, Sparse
from vu_core.errors import EditError, did_you_mean


@contextmanager
def apply_edit(network: nn.Module, *edits: Edit) -> Iterator[nn.Module]:
    """Let the network compute with the edits applied while entered; afterwards it is bit-identical to before.

    A tensor that is tied to others changes in all its places. Several edits lie on each other in the order given. Their
    changes are added up in float64 onto the base tensor and rounded once; a `Replace` part starts anew. New tensors are
    swapped in, and the very objects of before are swapped back, also when an error is raised inside. On a weight in
    half precision a low-rank change is computed beside the weight, as in training, because rounding the sum would lose
    most of it.

    Args:
        network: ``model.network``; names of parts are names of its parameters and buffers.
        edits: from the oldest to the newest.

    Yields:
        The same network.

    Raises:
        EditError: ``VU-E054`` when a part names no tensor of the network or has another shape; nothing is changed then.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2))
        >>> with apply_edit(network, Edit({"0.bias": Replace(torch.ones(2))})):
        ...     network[0].bias.tolist()
        [1.0, 1.0]
    """
    stacked: dict[str, list[Part]] = {}
    for edit in edits:
        for name, part in edit:
            check_fits(network, name, part)
            stacked.setdefault(name, []).append(part)
    held = holders(network)
    with ExitStack() as changes:
        for name, parts in stacked.items():
            changes.enter_context(_changed(network, name, parts, held))
        yield network


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def tensor_of(network: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of that name. Raises: EditError ``VU-E054`` with near misses."""
    path, _, leaf = name.rpartition(".")
    try:
        value = getattr(network.get_submodule(path), leaf)
    except AttributeError:
        value = None
    if not isinstance(value, Tensor):
        raise EditError(
            "VU-E054",
            f"The edit changes {name!r}, but the model has no such tensor.{did_you_mean(name, _tensors(network))}",
            "Apply the edit to the model it was made for.",
        )
    return value


def check_fits(network: nn.Module, name: str, part: Part) -> None:
    """Object to a part that names no tensor of the network or has another shape. Raises: EditError ``VU-E054``."""
    shape = tuple(tensor_of(network, name).shape)
    match part:
        case LowRank():
            fits = (part.B.shape[0], part.A.shape[1]) == (shape[0] if shape else 0, math.prod(shape[1:]))
            has: tuple[int, ...] = (part.B.shape[0], part.A.shape[1])
        case Sparse():
            fits, has = part.shape == shape, part.shape
        case Replace():
            has = tuple(part.tensor.shape)
            fits = has == shape
    if not fits:
        raise EditError(
            "VU-E054",
            f"The edit changes {name!r} of shape {has}, but in the model it has the shape {shape}.",
            "Apply the edit to the model it was made for.",
        )


@contextmanager
def _changed(
    network: nn.Module, name: str, parts: Sequence[Part], held: Mapping[int, Sequence[tuple[nn.Module, str]]]
) -> Iterator[None]:
    path, _, leaf = name.rpartition(".")
    base, module = tensor_of(network, name), network.get_submodule(path)
    # A tensor that another name of the edit has swapped in already is held here alone.
    places = held.get(id(base), [(inner, leaf) for inner in chain(module)])
    half = base.dtype in (torch.bfloat16, torch.float16)
    beside = half and leaf == "weight" and LoraLayer.supports(module) and not _has_replace(parts)
    low_rank = [part for part in parts if isinstance(part, LowRank)] if beside else []
    merged = [part for part in parts if part not in low_rank]
    # A module that is used in several places is wrapped in all of them, as in training.
    paths = [at for at, inner in network.named_modules(remove_duplicate=False) if inner is module] if low_rank else []
    try:
        if merged:
            new = compose(base, merged)
            swapped = nn.Parameter(new, requires_grad=False) if isinstance(base, nn.Parameter) else new
            _put(swapped, places)
        if low_rank:
            layer = module
            for part in low_rank:
                layer = LoraLayer(layer, _factors(part, base.device), Switch())
            _set_everywhere(network, paths, layer)
        yield
    finally:
        if low_rank:
            _set_everywhere(network, paths, module)
        if merged:
            _put(base, places)


def _put(tensor: Tensor, places: Sequence[tuple[nn.Module, str]]) -> None:
    for module, leaf in places:
        setattr(module, leaf, tensor)


def _set_everywhere(network: nn.Module, paths: Sequence[str], module: nn.Module) -> None:
    for path in paths:
        network.set_submodule(path, module)


def _has_replace(parts: Sequence[Part]) -> bool:
    return any(isinstance(part, Replace) for part in parts)


def _factors(part: LowRank, device: torch.device) -> Factors:
    mask = None if part.mask is None else part.mask.to(device)
    return Factors(part.A.to(device), part.B.to(device), part.alpha / part.rank, mask=mask)


def compose(base: Tensor, parts: Sequence[Part]) -> Tensor:
    """Return the tensor with all parts applied in order: summed in float64, rounded once.

    Args:
        base: the stored tensor, any precision.
        parts: from the oldest to the newest.

    Returns:
        A new tensor in the shape, precision and place of ``base``.

    Example:
        >>> compose(torch.zeros(2), [Sparse(torch.tensor([1]), torch.tensor([2.0]), (2,))]).tolist()
        [0.0, 2.0]
    """
    place = "cpu" if base.device.type == "mps" else base.device
    total = base.detach().to(place).double()
    for part in parts:
        match part:
            case Replace(tensor=tensor):
                total = tensor.to(place).double()
            case Sparse(indices=indices, values=values):
                total = total.flatten().index_add(0, indices.to(place), values.to(place).double()).reshape(base.shape)
            case LowRank():
                total = total + _in_float64(part, place).delta(tuple(base.shape))
    return total.to(base.device, base.dtype)


def _in_float64(part: LowRank, place: torch.device | str) -> LowRank:
    mask = None if part.mask is None else part.mask.to(place)
    return LowRank(part.A.to(place).double(), part.B.to(place).double(), part.alpha, mask)
