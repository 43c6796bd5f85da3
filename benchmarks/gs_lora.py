"""GS-LoRA++ on the embedded transformer: a step against its bare passes and the reference, an epoch, zero groups."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))

from reference import gs_lora_step

from vu_canvas.classifier import CanvasViTConfig, CanvasViTModel
from vu_classifiers.image_classifier import ImageClassifier
from vu_core import Batch, Edit, Examples, ForgetRetain, Run
from vu_core.adapters import apply_edit
from vu_core.plugins import discover
from vu_core.training import Training
from vu_gs_lora.group_lasso import GroupLasso, GroupLassoConfig
from vu_gs_lora.gs_lora import DEFAULTS, BoundedForgetting
from vu_gs_lora.gs_lora_plus_plus import GsLoraPlusPlus, GsLoraPlusPlusConfig, PrototypeTerm
from vu_gs_lora.prototypes import Prototypes, class_prototypes

BATCH = 48
STEPS_PER_EPOCH = 4
WARM_UP = 1
CONFIG = GsLoraPlusPlusConfig(bound=105.0, prototype_retain_weight=0.001)
"""What the reference computes: both terms of the prototypes."""
Row = tuple[str, str, list[float], float, float, str]


def load() -> ImageClassifier:
    """Return the embedded classifier: 64 patches of 8x8, width 128, six blocks, as the reference has them."""
    return CanvasViTModel("", CanvasViTConfig()).load(device="cpu", precision="fp32")


def data_of(images: int) -> ForgetRetain:
    """Return random images in memory, as many per side: 20 classes to forget, 80 to keep."""
    draws = torch.Generator().manual_seed(0)

    def table(side: Any, low: int, high: int) -> Examples:
        pixels = torch.randint(0, 256, (images, 3, 64, 64), generator=draws, dtype=torch.uint8)
        label = torch.arange(images) % (high - low) + low
        return Examples(side=side, captions=("",) * images, tensors={"pixels": pixels, "label": label})

    return ForgetRetain(
        table("forget", 0, 20), table("retain", 20, 100), table("forget", 0, 20), table("retain", 20, 100)
    )


def run_of(folder: Path, steps: int) -> Run:
    """Return a run with everything that the method wants when nothing is said."""
    registry = discover().registry

    def axis(kind: str, name: str, **settings: Any) -> Any:
        plugin = registry.get(kind, name).load()
        return plugin(plugin.Config(**settings))

    folder.mkdir(parents=True)
    return Run(
        seed=0,
        device="cpu",
        precision="fp32",
        folder=folder,
        cache=folder / "cache",
        training=attrs.evolve(CONFIG.training, steps=steps, epochs=None, batch_size=BATCH, checkpoint_every=1e6),
        parameters=axis("parameters", **DEFAULTS["parameters"]),
        weighting=axis("weighting", **DEFAULTS["weighting"]),
        regularizers=tuple(axis("regularizer", name, **table) for name, table in DEFAULTS["regularizer"].items()),
    )


class Bare:
    """The passes of a step and nothing else, and a whole step on images that lie ready as float32."""

    def __init__(self, data: ForgetRetain, run: Run) -> None:
        self.model, self.run = load(), run
        prototypes = Prototypes.of(class_prototypes(self.model, data, run))
        self.theta = run.parameterise(self.model, targets=[w for b in self.model.blocks() for w in b.ffn])
        self.parameters = self.theta.parameters()
        rows = tuple(range(BATCH))
        self.batches = {
            table.side: Batch(table, rows, 0, rows, run, torch.device("cpu")) for table in (data.forget, data.retain)
        }
        ready = {side: self.model.images(batch) for side, batch in self.batches.items()}
        self.images = torch.cat(list(ready.values()))
        self.labels = torch.cat([self.model.labels(batch) for batch in self.batches.values()])
        self.model.images = lambda batch: ready[batch.side]  # type: ignore[method-assign]
        self.losses = BoundedForgetting(self.model, CONFIG, term=PrototypeTerm(prototypes, CONFIG))
        training = run.training or Training()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.lr, weight_decay=training.weight_decay, fused=True
        )
        self.lasso = GroupLasso(GroupLassoConfig())
        self.lasso.load_state({"progress": torch.tensor([0, 1, 0])}, self.theta)

    def passes(self) -> None:
        """One forward pass of both batches to the logits, one backward pass to the adapter."""
        F.cross_entropy(self.model.logits(self.images), self.labels).backward()
        self.optimizer.zero_grad()

    def step(self) -> None:
        """The losses of the method, their gradient, an update, the proximal update."""
        sum(self.losses(self.batches).values()).backward()  # type: ignore[union-attr]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lasso.after_step(self.optimizer)


def trained(folder: Path, steps: int, turns: Any) -> Any:
    """Train with `fit` while another side takes turns with its steps; return the listener with the times of both."""
    run = run_of(folder, steps)
    run.emit_event = turns
    edit: Edit = GsLoraPlusPlus(CONFIG).unlearn(load(), data_of(STEPS_PER_EPOCH * BATCH), run)
    if not edit.parts:
        raise RuntimeError("the benchmark trained nothing")
    return turns


def row(name: str, target: str, turns: Any) -> Row:
    """Return one comparison, step by step."""
    ours, others = (statistics.median(times[WARM_UP:]) for times in (turns.ours, turns.others))
    return name, target, turns.ratios(speed_up=target.startswith(">=")), ours, others, "s"


def epochs(name: str, target: str, turns: Any) -> Row:
    """Return one comparison of whole epochs; the first one is a warm-up."""

    def sums(times: list[float]) -> list[float]:
        return [sum(times[i : i + STEPS_PER_EPOCH]) for i in range(STEPS_PER_EPOCH, len(times), STEPS_PER_EPOCH)]

    ours, others = sums(turns.ours), sums(turns.others)
    ratios = [a / b for a, b in zip(ours, others, strict=True)]
    return name, target, ratios, statistics.median(ours), statistics.median(others), "s"


def zero_groups(folder: Path) -> Row:
    """Return how many logits change when the groups that the proximal update made zero are taken out of the edit."""
    model, run = load(), run_of(folder, steps=1)
    theta = run.parameterise(model, targets=[name for block in model.blocks() for name in block.ffn])
    with torch.no_grad():
        for place, (name, tensor) in enumerate(theta.named_parameters()):
            if name.endswith(".B"):
                tensor.normal_(std=0.01 * place, generator=torch.Generator().manual_seed(place))
    lasso = GroupLasso(GroupLassoConfig(weight=4.0))
    lasso.load_state({"progress": torch.tensor([0, 1, 0])}, theta)
    lasso.after_step(torch.optim.SGD(theta.parameters(), lr=1.0))
    edit = theta.edit()
    run.release()
    kept = {name: part for name, part in edit.parts.items() if part.A.any() or part.B.any()}  # type: ignore[union-attr]
    if not 0 < len(kept) < len(edit.parts):
        raise RuntimeError("of the groups some must be zero, and some not")
    images = torch.rand(200, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad(), apply_edit(model.network, edit):
        whole = model.logits(images)
    with torch.no_grad(), apply_edit(model.network, attrs.evolve(edit, parts=kept)):
        changed = float((model.logits(images) != whole).sum())
    name = f"GS-LoRA: logits changed without {len(edit.parts) - len(kept)} of {len(edit.parts)} zero parts"
    return name, "<=0", [changed], changed, float(whole.numel()), "logits"


def compare(pairs: int, folder: Path, taking_turns: Callable[[Callable[[], Any]], Any]) -> list[Row]:
    """Return name, target, ratios, ours, other and unit of each bound.

    Args:
        pairs: interleaved pairs per comparison.
        folder: where runs are put.
        taking_turns: makes a listener that lets another side do a step after each step of `fit`.
    """
    steps, data = pairs + WARM_UP, data_of(STEPS_PER_EPOCH * BATCH)
    bare = Bare(data, run_of(folder / "bare", steps))
    work = gs_lora_step.make(batch=BATCH)
    to_passes = trained(folder / "passes", steps, taking_turns(bare.passes))
    to_reference = trained(folder / "reference", steps, taking_turns(lambda: gs_lora_step.step(work)))
    to_steps = trained(folder / "epochs", (pairs + 1) * STEPS_PER_EPOCH, taking_turns(bare.step))
    return [
        row("GS-LoRA++: a step of fit / its bare passes", "<=1.05", to_passes),
        row("GS-LoRA++: a step of fit, speed-up", ">=1.0", to_reference),
        epochs("GS-LoRA++: an epoch with its data / its steps", "<=1.10", to_steps),
        zero_groups(folder / "zero"),
    ]
