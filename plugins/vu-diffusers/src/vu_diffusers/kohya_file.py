"""The exporter ``kohya``: a LoRA file in the layout of kohya's sd-scripts, which AUTOMATIC1111 and ComfyUI read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vu_core import Check, Edit, Model, Run, Source
from vu_diffusers.export_files import check_there, read_by, write_all
from vu_diffusers.lora_file import checks_through_diffusers
from vu_diffusers.lora_layers import FACTOR_TOLERANCE, Factors, LoraConfig, inexpressible, largest, lora_factors

FILE = "kohya_lora.safetensors"
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}


class Kohya:
    """Write low-rank edits with kohya's keys, such as ``lora_unet_mid_block_attentions_0_proj_in.lora_down.weight``.

    A (``lora_down``), B (``lora_up``) and ``alpha`` stand in the file as they were trained; every reader computes
    ``(alpha / r) B A``. Where layers have different alphas, the file has the most frequent one, a, for all of them, and
    ``B' = (alpha / a) B``: the converter of diffusers gives attention layers that one, whatever stands beside them.
    A negative alpha becomes a negative B.

    Args:
        config: see `LoraConfig`.

    Source: keys as ``networks/lora.py`` of sd-scripts writes them for the UNet of diffusers.
    """

    Config: ClassVar[type[LoraConfig]] = LoraConfig
    source: ClassVar[Source] = Source("kohya-ss sd-scripts", "https://github.com/kohya-ss/sd-scripts", "code")

    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write the file into ``folder``.

        Raises:
            EditError: VU-E070 when the format cannot express the edit, VU-E054 when the model is another.
        """
        from safetensors.torch import save_file

        tensors = self._tensors(lora_factors(edit, model, "kohya"))
        return write_all(folder, lambda place: save_file(tensors, str(place / FILE)))

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> tuple[Check, ...]:
        """Compare every key and tensor with the edit, and what the model computes with the file read by diffusers.

        Returns:
            ``denoiser``, ``image`` and ``factors`` through the converter of diffusers; ``keys``: how many keys of the
            file are missing or too many; ``tensors``: the largest error of a product of factors that stand in the file.

        Raises:
            EditError: VU-E071 when diffusers cannot read the file, or finds no adapter in it.
        """
        from safetensors.torch import load_file

        check_there("safetensors", files)
        with read_by("safetensors", files[0]):
            stored = load_file(str(files[0]))
        layers = lora_factors(edit, model, "kohya")
        checks = checks_through_diffusers(files[0], edit, model, self.config.dtype)
        return (*checks, *self._stored_checks(stored, layers))

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        """Return three lines of diffusers, and where other programs look for the file."""
        return (
            "# AUTOMATIC1111: put the file into models/Lora and write <lora:kohya_lora:1> into the prompt.\n"
            "# ComfyUI: put it into models/loras and add the node Load LoRA.\n"
            "from diffusers import StableDiffusionPipeline\n\n"
            f"pipe = StableDiffusionPipeline.from_pretrained({base!r})\n"
            f'pipe.load_lora_weights(".", weight_name={FILE!r})\n'
        )

    def _tensors(self, layers: Sequence[Factors]) -> dict[str, Tensor]:
        _check_attention(layers)
        alphas = Counter(abs(layer.alpha) for layer in layers if layer.alpha)
        alpha = alphas.most_common(1)[0][0] if alphas else 1.0
        tensors: dict[str, Tensor] = {}
        for layer in layers:
            down, up, scale = _keys(layer)
            tensors[down] = layer.down.to(self.config.dtype).contiguous()
            tensors[up] = (layer.up * (layer.alpha / alpha)).to(self.config.dtype).contiguous()
            tensors[scale] = torch.tensor(alpha, dtype=torch.float32)
        return tensors

    def _stored_checks(self, stored: dict[str, Tensor], layers: Sequence[Factors]) -> tuple[Check, Check]:
        named = {layer: _keys(layer) for layer in layers}
        other = stored.keys() ^ {key for keys in named.values() for key in keys}
        errors = [
            layer.error_of(_change(*(stored[key] for key in keys)))
            for layer, keys in named.items()
            if not other.intersection(keys)
        ]
        limit = FACTOR_TOLERANCE[self.config.dtype]
        return Check("keys", float(len(other)), 0.0), Check("tensors", largest(errors), limit)


def _keys(layer: Factors) -> tuple[str, str, str]:
    """Return the names of A, B and alpha."""
    key = f"{PREFIXES[layer.component]}_{layer.clip_path.replace('.', '_')}"
    return f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha"


def _change(down: Tensor, up: Tensor, alpha: Tensor) -> Tensor:
    """Return what readers of the format compute: ``(alpha / r) B A``; nothing when the shapes do not fit."""
    a, b = down.double().flatten(1), up.double().flatten(1)
    if a.shape[0] != b.shape[1] or alpha.dim():
        return torch.empty(0)
    return (float(alpha) / a.shape[0]) * (b @ a)


def _check_attention(layers: Sequence[Factors]) -> None:
    """Refuse attention of the text encoder without its last map: the converter of diffusers would drop it silently.

    Raises:
        EditError: VU-E070.
    """
    ends = {layer.path.rpartition(".")[2]: layer for layer in layers if layer.component == "text_encoder"}
    lone = [layer for end, layer in ends.items() if end in ("q_proj", "k_proj", "v_proj")]
    if lone and "out_proj" not in ends:
        problem = (
            f"{lone[0].module!r} is changed, but no 'out_proj' of the text encoder, and readers tell one by the other"
        )
        remedy = "Choose the format diffusers or peft, or one that holds every edit exactly: native, delta or merged."
        raise inexpressible("The LoRA format of kohya", problem, f"{lone[0].module}.weight", remedy)
