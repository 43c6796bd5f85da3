"""Stage 4: write the trained models into a folder that plain diffusers loads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from vu_canvas.training import diffusion, judge, vae, vit
from vu_canvas.training.diffusion import SCHEDULER
from vu_canvas.training.loop import Say, read_record, write_json, write_tensors
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


def export_vit(folder: Path, target: Path, say: Say) -> None:
    """Write ``target/vit.safetensors`` from the checkpoint in `folder`, in half precision."""
    target.mkdir(parents=True, exist_ok=True)
    path = target / "vit.safetensors"
    write_tensors(path, {k: v.half() for k, v in vit.load(folder).state_dict().items()})
    say(f"wrote {path}, {path.stat().st_size / 1e6:.2f} MB")


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_readme(folder: Path, target: Path, images: int, how: str, tables: str) -> None:
    """Write ``target/README.md``: how the weights were made and what they reach.

    Args:
        folder: Where checkpoints live. What the page said about a stage without a checkpoint here is kept.
        target: The folder of the weights.
        images: How many images were generated to measure them.
        how: How it was measured.
        tables: What was measured, in Markdown.
    """
    page = target / "README.md"
    known = page.read_text(encoding="utf-8").splitlines() if page.is_file() else []
    stages = ("vae", "judge", "diffusion", "export", f"check --images {images} --write")
    lines = ["# Weights", "", "Written by `python -m vu_canvas.train check --write`; do not edit.", ""]
    lines += ["Licence: Apache-2.0, like the rest of vu-canvas. The training images are drawn by the package itself."]
    lines += ["", "## Made by", "", "```", *(f"python -m vu_canvas.train {stage}" for stage in stages), "```", ""]
    lines += ["| checkpoint | steps | batch | learning rate | seed | minutes |", "|---|---|---|---|---|---|"]
    for name in ("vae", "judge", "diffusion-first", "diffusion"):
        record = folder / f"{name}.json"
        lines += [made_by(name, record)] if record.is_file() else [x for x in known if x.startswith(f"| {name} |")]
    lines += ["", "Minutes are wall-clock time on 2 cores, shared with other work; idle cores are faster."]
    others = (page, target / "vit.md", target / "vit.safetensors")  # the classifier has a page of its own
    size = size_of(target) - sum(other.stat().st_size for other in others if other.is_file())
    lines += ["", f"Bytes of these weights: {size:,}.", "", "## Measured", "", how, "", tables, ""]
    page.write_text("\n".join(lines), encoding="utf-8")


def made_by(name: str, path: Path) -> str:
    """Return the row of the table of checkpoints. Raises: TrainingError when the record is damaged."""
    record = read_record(path)
    made, minutes = record["schedule"], record["seconds"] / 60
    batch = {"vae": vae.BATCH, "judge": judge.BATCH}.get(name, diffusion.BATCH)
    return f"| {name} | {record['step']} | {batch} | {made['learning_rate']} | {made['seed']} | {minutes:.0f} |"
