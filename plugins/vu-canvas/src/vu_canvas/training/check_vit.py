"""Measure the classifier of the 100 identities on drawings that nobody trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vu_canvas.identities import IDENTITIES
from vu_canvas.render import STYLES
from vu_canvas.training.check import share
from vu_canvas.training.data import draw, to_signed
from vu_canvas.training.loop import TrainingError, read_record
from vu_canvas.vit import CanvasViT

TARGET = 0.97
"""Least share of unseen drawings that must be named right."""


@dataclass(frozen=True)
class Named:
    """How many drawings of each identity were named right, ``right[i]`` of ``each``."""

    right: Sequence[int]
    each: int

    @property
    def total(self) -> int:
        """Drawings of all identities."""
        return self.each * len(self.right)

    def text(self) -> str:
        """Return the accuracy over all drawings and the five weakest identities, as a Markdown table."""
        weakest = sorted(zip(self.right, IDENTITIES, strict=True))[:5]
        rows = [("**all identities**", sum(self.right), self.total)]
        rows += [(name, right, self.each) for right, name in weakest]
        lines = [f"| | named right (n = {self.total:,}) |", "|---|---|"]
        return "\n".join([*lines, *(f"| {name} | {share(right, count)} |" for name, right, count in rows)])

    def misses(self) -> list[str]:
        """Return a line for what is below its target."""
        reached = sum(self.right) / self.total
        return [] if reached >= TARGET else [f"test accuracy {reached:.2%} is below {TARGET:.0%}"]


@torch.no_grad()
def measure(weights: Path, per_identity: int, device: str = "cpu", batch: int = 500) -> Named:
    """Let the shipped classifier name drawings of the held-out split.

    Args:
        weights: The folder of the weights.
        per_identity: Drawings of each identity.
        device: Where to compute.
        batch: Images per pass.

    Raises:
        TrainingError: The folder holds no classifier.
    """
    path = weights / "vit.safetensors"
    if not path.is_file():
        raise TrainingError(f"there is no classifier {path}; write it: python -m vu_canvas.train export vit")
    model = CanvasViT()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(str(path)).items()})
    model.to(device).eval()
    renders = draw("held-out", per_identity)
    identities = renders.objects * len(STYLES) + renders.styles  # (N,)
    said = [model(to_signed(part).to(device)).argmax(1).cpu() for part in torch.split(renders.images, batch)]
    hits: Tensor = identities[torch.cat(said) == identities]
    return Named(torch.bincount(hits, minlength=len(IDENTITIES)).tolist(), per_identity)


def write_page(folder: Path, weights: Path, result: Named) -> None:
    """Write ``vit.md`` beside the weights: how they were made and what they reach."""
    from vu_canvas.training.vit import BATCH

    record = read_record(folder / "vit.json")
    made, minutes = record["schedule"], record["seconds"] / 60
    how = f"{record['step']} steps of {BATCH} drawings, learning rate {made['learning_rate']}, seed {made['seed']}"
    size = (weights / "vit.safetensors").stat().st_size
    lines = ["# Weights of canvas-vit", ""]
    lines += ["Written by `python -m vu_canvas.train check-vit --write`; do not edit.", ""]
    lines += ["Licence: Apache-2.0, like the rest of vu-canvas. The training images are drawn by the package itself."]
    commands = ("vit", "export vit", f"check-vit --per-identity {result.each} --write")
    lines += ["", "```", *(f"python -m vu_canvas.train {command}" for command in commands), "```", ""]
    lines += [f"{how}, {minutes:.0f} minutes on 2 cores, shared with other work. {size:,} bytes.", ""]
    lines += [f"On {result.each} drawings of each identity from the held-out split, with 95 % Wilson intervals; the"]
    lines += ["weakest identities below.", "", result.text(), ""]
    (weights / "vit.md").write_text("\n".join(lines), encoding="utf-8")
