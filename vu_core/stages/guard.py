"""Whatever a method does, the model and the process are afterwards as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vu_core.errors import UnlearnError

if TYPE_CHECKING:
    from torch import Tensor, nn


PORTION = 1 << 18
"""Numbers that `checksum` adds up at a time."""


@contextmanager
def untouched(network: nn.Module, who: str) -> Iterator[None]:
    """Check after the block that it left the network and the process as they were.

    The network: the same modules, the same tensors (objects, shapes, values), the same modes and ``requires_grad``. The
    process: gradient mode, random number generators (torch, numpy, Python), determinism flags, default dtype, thread
    count. The flags of the process are put back in any case.

    Args:
        network: the network of the model.
        who: name of the plugin, for the message.

    Raises:
        UnlearnError: ``VU-U050``, naming the plugin and what it left behind.
    """
    before = _network_state(network)
    flags = _flags()
    remembered = {name: read() for name, (read, _) in flags.items()}
    finished = False
    try:
        yield
        finished = True
    finally:
        left = [name for name, (read, _) in flags.items() if not _same(read(), remembered[name])]
        for name in left:
            flags[name][1](remembered[name])
        if finished:
            _complain(who, left + _differences(before, _network_state(network)))


def _complain(who: str, left: list[str]) -> None:
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise UnlearnError(
            "VU-U050",
            f"The plugin {who!r} did not leave things as they were: {shown}.",
            "Tell the authors of the plugin. Its result is not used: what follows would start from a changed model.",
            where=who,
        )


def _network_state(network: nn.Module) -> dict[str, tuple[Any, ...]]:
    state: dict[str, tuple[Any, ...]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        state[f"module {name or '(root)'}"] = (id(module), module.training)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        grown = (parameter.requires_grad, parameter.grad is None)
        state[f"parameter {name}"] = (id(parameter), *grown, checksum(parameter))
    for name, buffer in network.named_buffers(remove_duplicate=False):
        state[f"buffer {name}"] = (id(buffer), checksum(buffer))
    return state


def checksum(tensor: Tensor) -> tuple[str, tuple[int, ...], int]:
    """Return dtype, shape and the sum of the tensor's bits read as integers (modulo 2^64).

    It reads each byte once and copies next to nothing, so that a model of a billion numbers takes about a second; any
    change of a single number changes it.
    """
    import torch

    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    plain = tensor.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    bits = plain.view(whole[plain.element_size()]).flatten()
    # A sum in int64 makes an int64 copy of what it sums: in portions, this copy stays in the processor's cache.
    portions = [portion.sum(dtype=torch.int64) for portion in torch.split(bits, PORTION)]
    return str(tensor.dtype), tuple(tensor.shape), int(torch.stack(portions).sum()) if portions else 0


def _differences(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> list[str]:
    gone = [f"{name} is gone" for name in before if name not in after]
    new = [f"{name} was added" for name in after if name not in before]
    changed = [f"{name} changed" for name, state in before.items() if name in after and after[name] != state]
    return gone + new + changed


def _flags() -> dict[str, tuple[Callable[[], Any], Callable[[Any], object]]]:
    """Return how to read and to restore every global of the process that a plugin might forget about."""
    import torch

    def warn_only() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    def set_deterministic(value: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])

    cudnn: Any = torch.backends.cudnn

    def set_cudnn(value: tuple[bool, bool]) -> None:
        cudnn.deterministic, cudnn.benchmark = value

    flags: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
        "the gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
        "the random numbers of torch": (torch.get_rng_state, torch.set_rng_state),
        "the random numbers of Python": (random.getstate, random.setstate),
        "the determinism flag of torch": (warn_only, set_deterministic),
        "the flags of cudnn": (lambda: (cudnn.deterministic, cudnn.benchmark), set_cudnn),
        "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    }
    if "numpy" in sys.modules:
        import numpy as np

        flags["the random numbers of numpy"] = (lambda: np.random.get_state(legacy=True), np.random.set_state)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        flags["the random numbers of CUDA"] = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    return flags


def _same(left: Any, right: Any) -> bool:
    import torch

    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    if hasattr(left, "tobytes"):
        return bool(left.tobytes() == right.tobytes())
    return bool(left == right)
