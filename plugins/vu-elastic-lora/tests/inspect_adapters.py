"""One small adapter, written by hand in the style of every tool; its numbers were worked out on paper."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from vu_core import Edit, LowRank
from vu_core.adapters import save_edit

BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1"
OUT, CONV = f"unet.{BLOCK}.to_out.0", "unet.conv_in"

# Delta of OUT: 2 * [[1, 0, 2], [0, 0, 0], [0, 2, 0], [1, -1, 2]]; six zeros of twelve, |Delta|^2 = 4 * 15.
OUT_A = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
OUT_B = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [1.0, -1.0]])
# Delta of CONV: [[0, 1, 2, 3, 4, 1, 2, 3], [0, ...], [0, 2, 4, 6, 8, 2, 4, 6]]; ten zeros of 24, |Delta|^2 = 5 * 44.
CONV_A = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0]).reshape(1, 2, 2, 2)
CONV_B = torch.tensor([2.0, 0.0, 4.0]).reshape(3, 1, 1, 1)

GOLDEN = {
    "out": {"rank": 2, "alpha": 4.0, "gamma": 2.0, "zero_percent": 50.0, "norm": math.sqrt(60)},
    "conv": {"rank": 1, "alpha": 0.5, "gamma": 0.5, "zero_percent": 1000 / 24, "norm": math.sqrt(220)},
}
TOTAL = {
    "delta_zero_fraction": 16 / 36,
    "zero_percent overall": 1600 / 36,
    "zero_percent overall_unweighted": (50 + 1000 / 24) / 2,
    "tuned parameters": 2 * 3 + 4 * 2 + 8 + 3,
    "modules": 2,
}


def save(path: Path, tensors: dict, metadata: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def golden_edit() -> Edit:
    parts = {
        f"{OUT}.weight": LowRank(OUT_A, OUT_B, 4.0),
        f"{CONV}.weight": LowRank(CONV_A.flatten(1), CONV_B.flatten(1), 0.5),
    }
    return Edit(parts, base="f" * 64, method="fade", facts={"base_model": "canvas-diffusion"})


def configuration(prefix: str = "", **others) -> dict:
    values = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {"conv_in": 1},
        "alpha_pattern": {"conv_in": 0.5},
        "target_modules": ["conv_in", "to_out.0"],
        "use_rslora": False,
        **others,
    }
    return {f"{prefix}{key}": value for key, value in values.items()}


def vu(folder: Path) -> Path:
    save_edit(golden_edit(), folder / "edit.safetensors")
    return folder


def vu_run(folder: Path) -> Path:
    (folder / "run.toml").write_text("")
    return vu(folder)


def diffusers(folder: Path) -> Path:
    factors = {"A": (OUT_A, CONV_A), "B": (OUT_B, CONV_B)}
    keys = {
        f"{name}.lora_{side}.weight": factors[side][place] for place, name in enumerate((OUT, CONV)) for side in "AB"
    }
    metadata = {"lora_adapter_metadata": json.dumps(configuration("unet."))}
    return save(folder / "pytorch_lora_weights.safetensors", keys, metadata)


def diffusers_old(folder: Path) -> Path:
    """Factors in attention processors, and alpha as a tensor."""
    processor = f"unet.{BLOCK}.processor.to_out"
    keys = {
        f"{processor}_lora.down.weight": OUT_A,
        f"{processor}_lora.up.weight": OUT_B,
        f"{processor}_lora.alpha": torch.tensor(4.0),
        f"{CONV}.lora.down.weight": CONV_A,
        f"{CONV}.lora.up.weight": CONV_B,
        f"{CONV}.alpha": torch.tensor(0.5),
    }
    return save(folder / "old.safetensors", keys)


def dotted(folder: Path) -> Path:
    keys = {
        f"{OUT}.lora_down.weight": OUT_A,
        f"{OUT}.lora_up.weight": OUT_B,
        f"{OUT}.alpha": torch.tensor([4.0]),
        f"{CONV}.lora_down.weight": CONV_A,
        f"{CONV}.lora_up.weight": CONV_B,
        f"{CONV}.alpha": torch.tensor(0.5, dtype=torch.float16),
    }
    return save(folder / "dotted.safetensors", keys)


def peft(folder: Path, name: str = "", **others) -> Path:
    infix = f".{name}" if name else ""
    keys = {}
    for module, a, b in ((OUT, OUT_A, OUT_B), (CONV, CONV_A, CONV_B)):
        inner = module.removeprefix("unet.")
        keys[f"base_model.model.{inner}.lora_A{infix}.weight"] = a
        keys[f"base_model.model.{inner}.lora_B{infix}.weight"] = b
    save(folder / "adapter_model.safetensors", keys, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(configuration(**others)))
    return folder


def peft_named(folder: Path) -> Path:
    return peft(folder, "default")


def kohya(folder: Path) -> Path:
    keys = {}
    for module, a, b, alpha in ((OUT, OUT_A, OUT_B, 4.0), (CONV, CONV_A, CONV_B, 0.5)):
        name = f"lora_{module.replace('.', '_')}"
        keys |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(alpha)}
    return save(folder / "style.safetensors", keys)


STYLES = {writer.__name__: writer for writer in (vu, vu_run, diffusers, diffusers_old, dotted, peft, peft_named, kohya)}
