"""Stage 4: write the trained models into a folder that plain diffusers loads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from vu_canvas.training import diffusion, judge, vae
from vu_canvas.training.diffusion import SCHEDULER
from vu_canvas.training.loop import Say, write_json, write_tensors
from vu_canvas.training.tokenizer import build_tokenizer

WEIGHTS = Path(__file__).parent.parent / "weights"
"""Where the package keeps its weights."""


def quieten() -> None:
    """Silence what diffusers and transformers say while they load; for command lines and tests only."""
    logging.getLogger("transformers.utils.import_utils").addFilter(
        lambda record: "requires torchvision" not in record.getMessage()
    )
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def assemble(folder: Path) -> Any:
    """Return the StableDiffusionPipeline made of the checkpoints in `folder`, in float32."""
    quieten()
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    networks = diffusion.load(folder)
    pipeline = StableDiffusionPipeline(
        vae=vae.load(folder),
        text_encoder=networks.text,
        tokenizer=build_tokenizer(),
        unet=networks.unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_pipeline(folder: Path, target: Path, say: Say) -> None:
    """Write ``target/diffusion`` from the checkpoints in `folder`, in half precision.

    Args:
        folder: Where checkpoints live.
        target: The folder of the weights.
        say: Where progress lines go.
    """
    pipeline = assemble(folder)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(target / "diffusion", safe_serialization=True)
    # transformers loads in the precision that the file names, diffusers in float32: say float32 for both
    config = target / "diffusion" / "text_encoder" / "config.json"
    write_json(config, json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"})
    say(f"wrote {target / 'diffusion'}, {size_of(target / 'diffusion') / 1e6:.2f} MB")


def export_judge(folder: Path, target: Path, say: Say) -> None:
    """Write ``target/judge.safetensors`` from the checkpoint in `folder`, in half precision."""
    state = judge.load(folder).state_dict()
    target.mkdir(parents=True, exist_ok=True)
    path = target / "judge.safetensors"
    write_tensors(path, {k: v.half() if v.is_floating_point() else v for k, v in state.items()})
    say(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB")


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_readme(folder: Path, target: Path, how: str, tables: str) -> None:
    """Write ``target/README.md``: how the weights were made and what they reach.

    Args:
        folder: Where checkpoints live; stages without one are left out.
        target: The folder of the weights.
        how: How it was measured.
        tables: What was measured, in Markdown.
    """
    lines = ["# Weights", "", "Written by `python -m vu_canvas.train check`; do not edit.", ""]
    lines += ["## Made by", "", "```", *(f"python -m vu_canvas.train {s}" for s in ("vae", "judge", "diffusion"))]
    lines += ["python -m vu_canvas.train export", "python -m vu_canvas.train check --images 1000", "```", ""]
    lines += ["| checkpoint | steps | batch | learning rate | seed | minutes |", "|---|---|---|---|---|---|"]
    batches = {"vae": vae.BATCH, "judge": judge.BATCH}
    for name in ("vae", "judge", "diffusion-first", "diffusion"):
        batch = batches.get(name, diffusion.BATCH)
        path = folder / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            made = record["schedule"]
            minutes = record["seconds"] / 60
            row = f"| {name} | {record['step']} | {batch} | {made['learning_rate']} | {made['seed']} | {minutes:.0f} |"
            lines.append(row)
    lines += ["", "Minutes are wall-clock time on 2 cores, shared with other work; idle cores are faster."]
    lines += ["", f"Bytes of all weights: {size_of(target):,}.", "", "## Measured", "", how, "", tables, ""]
    (target / "README.md").write_text("\n".join(lines), encoding="utf-8")
