"""Entry point of the distribution: names only, nothing heavy is imported."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_models(register: Register) -> None:
    """Name the models."""
    register(
        "diffusers",
        "vu_diffusers.model:Diffusers",
        summary="Stable Diffusion 1.x / 2.x from a folder or a hub id",
    )


@hookimpl
def vu_register_exporters(register: Register) -> None:
    """Name the file formats."""
    register(
        "diffusers",
        "vu_diffusers.lora_file:DiffusersLora",
        summary="pytorch_lora_weights.safetensors that plain diffusers loads",
        needs=("denoise",),
    )
    register(
        "native",
        "vu_diffusers.native:Native",
        summary="edit.safetensors: the whole edit, masks included, as vu reads it",
    )
