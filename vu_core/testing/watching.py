"""Looking at a network and at the process before and after a plugin had them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from vu_core.data import digest


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and bytes."""
    parts: list[str | bytes] = []
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), raw]
    return digest(*parts)


@attrs.frozen(eq=False)
class Snapshot:
    """What a network was: its very modules and tensors, their content, and what may change silently."""

    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, Tensor]
    contents: Mapping[str, Tensor]
    trainable: Mapping[str, bool]
    training: Mapping[str, bool]
    gradients: Mapping[str, Tensor | None]

    @classmethod
    def of(cls, network: nn.Module) -> Snapshot:
        """Look at the network now."""
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        modules = dict(network.named_modules())
        return cls(
            modules=modules,
            tensors=tensors,
            contents={name: tensor.detach().clone() for name, tensor in tensors.items()},
            trainable={name: tensor.requires_grad for name, tensor in tensors.items()},
            training={name: module.training for name, module in modules.items()},
            gradients={name: parameter.grad for name, parameter in network.named_parameters()},
        )

    def differences(self, network: nn.Module) -> list[str]:
        """Return what is different now, in words; an empty list when the network came back as it was."""
        now = Snapshot.of(network)
        found = [f"module {n!r} was added" for n in now.modules.keys() - self.modules.keys()]
        found += [f"module {n!r} is gone" for n in self.modules.keys() - now.modules.keys()]
        found += [f"module {n!r} is another" for n, m in self.modules.items() if now.modules.get(n, m) is not m]
        found += [f"tensor {n!r} was added" for n in now.tensors.keys() - self.tensors.keys()]
        for name, tensor in self.tensors.items():
            if now.tensors.get(name) is not tensor:
                found.append(f"tensor {name!r} is another object or gone")
            elif not _same_bits(now.contents[name], self.contents[name]):
                found.append(f"tensor {name!r} has other numbers")
            elif now.trainable[name] != self.trainable[name]:
                found.append(f"tensor {name!r} has another requires_grad")
            elif now.gradients.get(name) is not self.gradients.get(name):
                found.append(f"tensor {name!r} has another gradient")
        found += [f"module {n!r} is in another mode" for n, t in self.training.items() if now.training.get(n, t) != t]
        return sorted(found)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return tensor_digest({"": a}) == tensor_digest({"": b})


def global_state() -> dict[str, Any]:
    """Return everything of the process that a plugin must leave as it was."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch grad mode": torch.is_grad_enabled(),
        "torch inference mode": torch.is_inference_mode_enabled(),
        "torch random numbers": torch.get_rng_state().numpy().tobytes(),
        "torch default dtype": torch.get_default_dtype(),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch threads": torch.get_num_threads(),
        "torch autocast": torch.is_autocast_enabled("cpu"),
        "cudnn flags": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "python random numbers": random.getstate(),
        "numpy random numbers": (name, np.asarray(keys).tobytes(), position, has_gauss, gauss),
    }


@contextmanager
def nothing_global_changes() -> Iterator[None]:
    """Fail when what runs inside leaves the state of the process changed."""
    before = global_state()
    yield
    after = global_state()
    changed = [key for key, value in before.items() if after[key] != value]
    assert not changed, f"changed and not put back: {', '.join(changed)}"
