"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_models(register: Register) -> None:
    """Name the models."""
    register(
        "torch-module",
        "vu_classifiers.torch_module:TorchModule",
        summary="any torch.nn.Module that maps images to logits: module:factory, and its weights as safetensors",
    )
