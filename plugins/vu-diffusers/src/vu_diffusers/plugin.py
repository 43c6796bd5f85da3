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
        "native",
        "vu_diffusers.native:Native",
        summary="edit.safetensors: the whole edit, masks included, as vu reads it",
    )
    register(
        "delta",
        "vu_diffusers.delta_file:Delta",
        summary="delta.safetensors: the change of every weight as plain numbers, exact, without factors and base",
    )
    register(
        "diffusers",
        "vu_diffusers.lora_file:DiffusersLora",
        summary="pytorch_lora_weights.safetensors that plain diffusers loads",
        needs=("denoise",),
    )
    register(
        "peft",
        "vu_diffusers.peft_folder:Peft",
        summary="adapter_config.json and adapter_model.safetensors that PeftModel.from_pretrained loads",
        needs=("denoise",),
    )
    register(
        "kohya",
        "vu_diffusers.kohya_file:Kohya",
        summary="kohya_lora.safetensors for AUTOMATIC1111 and ComfyUI",
        needs=("denoise",),
    )
    register(
        "merged",
        "vu_diffusers.merged:Merged",
        summary="a whole pipeline folder with the edit in its weights",
        needs=("denoise",),
    )


@hookimpl
def vu_register_commands(register: Register) -> None:
    """Name the commands."""
    register("push", "vu_diffusers.push:push", summary="Put the edit of a run on the hub, exported and proven.")
