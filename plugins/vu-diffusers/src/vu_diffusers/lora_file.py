"""The exporter ``diffusers``: a LoRA file that ``pipe.load_lora_weights`` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vu_core import Check, Edit, Model, Run, Source
from vu_diffusers.export_files import borrowed, check_complete, check_there, read_by, unreadable, write_all
from vu_diffusers.loading import as_pipeline
from vu_diffusers.lora_layers import Factors, LoraConfig, adapter_check, lora_factors, require_pipeline
from vu_diffusers.probe import answers, coarser, comparison, wanted_of
from vu_diffusers.quiet import quiet

FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "vu_export"


class DiffusersLora:
    """Write low-rank edits as ``pytorch_lora_weights.safetensors``.

    Readers take alpha for r when a file says nothing, so the scale ``gamma = alpha / r`` is multiplied into B and
    alpha = r is written beside it: ``B' = gamma B``, ``A' = A``. An edit with a mask per weight is not of low rank, and
    a changed tensor is no product of factors: both are refused, never approximated.

    Args:
        config: see `LoraConfig`.

    Source: keys and metadata as diffusers' ``save_lora_weights`` writes them.
    """

    Config: ClassVar[type[LoraConfig]] = LoraConfig
    source: ClassVar[Source] = Source("LoRA, Hu et al. 2021", "https://arxiv.org/abs/2106.09685", "code")

    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write the file into ``folder``.

        Raises:
            EditError: VU-E070 when the format cannot express the edit, VU-E054 when the model is another.
        """
        from safetensors.torch import save_file

        layers = lora_factors(edit, model, "diffusers")
        tensors: dict[str, Tensor] = {}
        for layer in layers:
            scaled = layer.up * (layer.alpha / layer.rank)
            down, up = _keys(layer)
            tensors[down] = layer.down.to(self.config.dtype).contiguous()
            tensors[up] = scaled.to(self.config.dtype).contiguous()
        return write_all(folder, lambda place: save_file(tensors, str(place / FILE), metadata=_metadata(layers)))

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> tuple[Check, ...]:
        """Load the file with diffusers' own loader and compare what the model computes.

        Returns:
            ``denoiser``, ``image``, and ``factors``: the products of the factors that diffusers has read.

        Raises:
            EditError: VU-E071 when diffusers cannot read the file, or finds no adapter in it.
        """
        return checks_through_diffusers(files[0], edit, model, self.config.dtype)

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        """Return three lines of diffusers."""
        return (
            "from diffusers import StableDiffusionPipeline\n\n"
            f"pipe = StableDiffusionPipeline.from_pretrained({base!r})\n"
            f'pipe.load_lora_weights(".", weight_name={FILE!r})\n'
        )


def checks_through_diffusers(path: Path, edit: Edit, model: Model, stored: torch.dtype) -> tuple[Check, ...]:
    """Load a LoRA file with diffusers into the model's networks, compare, and take it off again.

    Args:
        path: the file.
        edit: what it is compared with.
        model: the loaded pipeline.
        stored: precision of the factors in the file.

    Raises:
        EditError: VU-E071 when diffusers cannot read the file, or finds no adapter in it.
    """
    base = require_pipeline(model, "a LoRA file")
    layers = lora_factors(edit, model, "diffusers")
    check_there("diffusers", (path,))
    wanted = wanted_of(model, edit)
    precision = coarser(base.dtype, stored)
    before = len(list(model.network.modules()))
    pipeline = as_pipeline(base.network, base.tokenizer, base.scheduler)
    with quiet(), borrowed(base.network):
        with read_by("diffusers", path):
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=ADAPTER)
        if len(list(model.network.modules())) == before:
            raise unreadable("diffusers", path, "it finds no adapter in it")
        check_complete("diffusers", path, base.network)
        factors = adapter_check(model.network, ADAPTER, layers, precision)
        return (*comparison(answers(model), wanted, precision), factors)


def _keys(layer: Factors) -> tuple[str, str]:
    """Return the names of A and B; layers of the text encoder have names that every version reads for every layer."""
    key = f"{layer.component}.{layer.clip_path}"
    if layer.component == "unet":
        return f"{key}.lora_A.weight", f"{key}.lora_B.weight"
    return f"{key}.lora_linear_layer.down.weight", f"{key}.lora_linear_layer.up.weight"


def _metadata(layers: Sequence[Factors]) -> dict[str, str] | None:
    """Return the adapter's configuration, alpha = r; one key, since several are written in random order.

    With layers of the text encoder it is left out: their names differ between versions of the reader, and the factors
    alone say the same.
    """
    if any(layer.component != "unet" for layer in layers):
        return None
    ranks = {layer.path: layer.rank for layer in layers}
    usual = max(ranks.values())
    pattern = {path: rank for path, rank in ranks.items() if rank != usual}
    config = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
    return {
        "lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)
    }
