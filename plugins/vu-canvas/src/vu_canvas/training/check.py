"""Stage 5: measure the judge, the autoencoder and the generator against their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vu_canvas.judge import Judge, read_judge
from vu_canvas.render import OBJECTS, STYLES, prompt
from vu_canvas.training.data import Renders, draw
from vu_canvas.training.loop import Say, TrainingError
from vu_canvas.training.vae import reconstruct

STEPS = 10
GUIDANCE = 2.5
HELD_OUT_SEED = 10_000
"""Generation seeds below are for validation, from here on for measuring."""


@dataclass(frozen=True)
class Target:
    """What a measurement must reach: each head over all images, and every class."""

    head: float
    label: float


TARGETS = {
    "renders": Target(0.998, 0.98),
    "reconstructions": Target(0.99, 0.98),
    "generated": Target(0.97, 0.90),
}
"""Measurement to its target."""


@dataclass(frozen=True)
class Accuracy:
    """Right answers of both heads, per class."""

    name: str
    hits: dict[str, int]  # "object:star" -> right answers
    totals: dict[str, int]

    def head(self, kind: str) -> tuple[int, int]:
        """Return right answers and images of one head, ``object`` or ``style``."""
        keys = [key for key in self.hits if key.startswith(kind)]
        return sum(self.hits[key] for key in keys), sum(self.totals[key] for key in keys)

    def misses(self) -> list[str]:
        """Return a line for everything below target."""
        target, lines = TARGETS[self.name], []
        for kind in ("object", "style"):
            right, count = self.head(kind)
            if right < target.head * count:
                lines.append(f"{self.name}: {kind} {right / count:.2%} is below {target.head:.1%}")
        for key, right in self.hits.items():
            if right < target.label * self.totals[key]:
                lines.append(f"{self.name}: {key} {right / self.totals[key]:.2%} is below {target.label:.0%}")
        return lines


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share."""
    z = 1.959963984540054
    share, shrink = right / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / shrink
    reach = z / shrink * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def judge_images(judge: Judge, name: str, renders: Renders) -> Accuracy:
    """Return how often the judge names the labels of the images."""
    objects, styles = judge.classify(renders.images)
    hits: dict[str, int] = {}
    totals: dict[str, int] = {}
    heads = (("object", OBJECTS, objects, renders.objects), ("style", STYLES, styles, renders.styles))
    for kind, words, said, meant in heads:
        for label, word in enumerate(words):
            rows = meant == label
            hits[f"{kind}:{word}"] = int((said[rows] == label).sum())
            totals[f"{kind}:{word}"] = int(rows.sum())
    return Accuracy(name, hits, totals)


def generate(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], batch: int = 50) -> torch.Tensor:
    """Generate one image per prompt and seed with plain diffusers, as uint8 (N, 64, 64, 3).

    Every image has its own generator, so that it does not depend on the batch it is made in.
    """
    rows = []
    for start in range(0, len(prompts), batch):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        images = pipeline(
            list(prompts[start : start + batch]),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="pt",
        ).images
        rows.append(images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(rows)


def generate_pairs(pipeline: Any, per_pair: int, first_seed: int) -> Renders:
    """Generate `per_pair` images of each of the 100 prompts on consecutive seeds, no seed twice."""
    pairs = [(o, s) for _ in range(per_pair) for o in range(len(OBJECTS)) for s in range(len(STYLES))]
    prompts = [prompt(OBJECTS[o], STYLES[s]) for o, s in pairs]
    images = generate(pipeline, prompts, range(first_seed, first_seed + len(pairs)))
    return Renders(images, torch.tensor([o for o, _ in pairs]), torch.tensor([s for _, s in pairs]))


def table(results: Sequence[Accuracy]) -> str:
    """Return the accuracies as a Markdown table with 95 % Wilson intervals."""
    lines = ["| | " + " | ".join(f"{r.name} (n = {r.head('object')[1]:,})" for r in results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    rows = [(f"**{kind}**", [r.head(kind) for r in results]) for kind in ("object", "style")]
    rows += [(key, [(r.hits[key], r.totals[key]) for r in results]) for key in results[0].hits]
    lines += [f"| {name} | " + " | ".join(share(*counts) for counts in row) + " |" for name, row in rows]
    return "\n".join(lines)


def share(right: int, count: int) -> str:
    """Return a percentage and its interval."""
    low, high = wilson(right, count)
    return f"{100 * right / count:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def measure(pipeline: Any, judge: Judge, images: int, say: Say) -> list[Accuracy]:
    """Measure all three on unseen renders and held-out seeds.

    Args:
        pipeline: A StableDiffusionPipeline.
        judge: The judge.
        images: Images to generate, a multiple of 100; ten times as many renders are judged.
        say: Where progress lines go.

    Returns:
        Accuracy on renders, on reconstructions and on generated images.
    """
    renders = draw("held-out", images // 10)
    results = [judge_images(judge, "renders", renders)]
    say("renders judged")
    again = Renders(reconstruct(pipeline.vae, renders.images), renders.objects, renders.styles)
    results.append(judge_images(judge, "reconstructions", again))
    say("reconstructions judged")
    made = generate_pairs(pipeline, images // 100, HELD_OUT_SEED)
    results.append(judge_images(judge, "generated", made))
    say("generated images judged")
    return results


def load_judge_of(weights: Path) -> Judge:
    """Return the judge of a folder of weights. Raises: TrainingError when there is none."""
    path = weights / "judge.safetensors"
    if not path.is_file():
        raise TrainingError(f"there is no judge {path}; write it: python -m vu_canvas.train export judge")
    return read_judge(path)


def conditions(images: int) -> str:
    """Return in a sentence how `measure` measures."""
    last = HELD_OUT_SEED + images - 1
    return (
        "By the judge, with 95 % Wilson intervals. Renders of the held-out split; generated by plain diffusers in "
        f"float32 with the shipped scheduler, {STEPS} steps, guidance {GUIDANCE}, seeds {HELD_OUT_SEED} to {last}, "
        "each image with its own generator."
    )


def load_shipped(weights: Path) -> Any:
    """Return the pipeline of a folder of weights with plain diffusers, in float32.

    Raises:
        TrainingError: The folder holds no pipeline.
    """
    from vu_canvas.training.export import quieten

    if not (weights / "diffusion" / "model_index.json").is_file():
        raise TrainingError(f"there is no pipeline {weights / 'diffusion'}; write it: python -m vu_canvas.train export")
    quieten()
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        str(weights / "diffusion"), dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
