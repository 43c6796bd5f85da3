"""The toy model, data, method, attribution and metric."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from vu_core import (
    Batch,
    Capability,
    Concept,
    DataError,
    Edit,
    Evaluation,
    EvaluationItem,
    Examples,
    ForgetRetain,
    Manifest,
    ModelFacts,
    Run,
    Score,
    Selection,
    Source,
    digest,
    setting,
)
from vu_core.training import Training, fit

SOURCE = Source("a toy", "https://example.org", "own")
AXES = {"sign": ("plus", "minus"), "axis": ("x", "y")}


@attrs.frozen
class NetConfig:
    width: int = setting(8, help="hidden width", ge=1)
    seed: int = setting(0, help="seed of the weights")


class ToyNet:
    Config = NetConfig
    source: ClassVar[Source] = SOURCE

    def __init__(self, ref: str, config: NetConfig) -> None:
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return False

    def inspect(self) -> ModelFacts:
        return ModelFacts(
            name="toy-net",
            ref="",
            base_hash=digest(repr(self.config)),
            capabilities=frozenset({Capability.DENOISE, Capability.GENERATE}),
            parameters=100,
            bytes=400,
            resolution=8,
            licence="apache-2.0",
            generation={"steps": 2, "guidance": 1.0},
        )

    def load(self, *, device: str, precision: str) -> LoadedNet:
        return LoadedNet(self.inspect(), self.config, precision)


class LoadedNet:
    denoiser = "unet"

    def __init__(self, facts: ModelFacts, config: NetConfig, precision: str = "fp32") -> None:
        self.facts = facts
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            body = nn.ModuleDict({"to_q": nn.Linear(4, config.width), "to_k": nn.Linear(config.width, 4)})
        if precision == "bf16":  # weights of that precision; this toy computes in fp32 all the same
            body.bfloat16().float()
        self.network = nn.ModuleDict({"unet": body})
        self.network.requires_grad_(False).eval()

    def prepare(self, examples: Examples, run: Run) -> Examples:
        return examples.with_tensors(doubled=examples.tensors["x"] * 2)

    def __call__(self, x: Tensor) -> Tensor:
        body: Any = self.network["unet"]
        out: Tensor = body["to_k"](torch.tanh(body["to_q"](x)))
        return out

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
    ) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            rows = [self(point(prompt, seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
        pixels = torch.stack(rows).sigmoid().mul(255).to(torch.uint8)[:, None, :3].expand(-1, 64, -1)
        return pixels.reshape(-1, 8, 8, 3).numpy()


def point(prompt: str, seed: int) -> Tensor:
    """Return the input for a prompt: fixed by its text, moved a little by the seed."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little"))
    noise = torch.randn(4, generator=torch.Generator().manual_seed(seed))
    return torch.randn(4, generator=generator) + 0.05 * noise


@attrs.frozen
class PointsConfig:
    rows: int = setting(6, help="examples per side", ge=1)
    metrics_fail: bool = setting(False, help="no evaluation items")


class ToyPoints:
    Config = PointsConfig
    source: ClassVar[Source] = SOURCE
    metrics = ("toy-gap",)
    built: ClassVar[list[str]] = []
    """Which parts were built, in order, for tests."""

    def __init__(self, ref: str, config: PointsConfig) -> None:
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return False

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        concepts = []
        for text in forget or ("sign:plus",):
            axis, _, value = text.partition(":")
            if value not in AXES.get(axis, ()):
                raise DataError("VU-D999", f"There is no concept {text!r}.", "Name sign:plus or the like.")
            other = next(each for each in AXES[axis] if each != value)
            concepts.append(Concept(text, {axis: value}, f"{axis}:{other}", {axis: other}))
        return Selection(tuple(concepts), ("The overwrite was supplied.",))

    def manifest(self, selection: Selection) -> Manifest:
        content = digest(repr(selection), repr(self.config))
        counts = {"train/forget": self.config.rows, "train/retain": self.config.rows, "evaluation/items": 4}
        return Manifest("toy-points", "", content, counts, "by index", AXES)

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        self.built.append("train")
        return ForgetRetain(
            *(self._table(side, part, run) for part in ("train", "val") for side in ("forget", "retain"))
        )

    def _table(self, side: Any, part: str, run: Run) -> Examples:
        captions = tuple(f"{part} {side} {row}" for row in range(self.config.rows))
        x = torch.stack([point(caption.split()[1], row) for row, caption in enumerate(captions)])
        return Examples(side, captions, captions if side == "forget" else None, tensors={"x": x})

    def evaluation(
        self, selection: Selection, *, split: Any, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        self.built.append(split)
        items = tuple(
            EvaluationItem(side, seed, {"side": side}, side == "forget")
            for side in ("forget", "retain")
            for seed in seeds
        )
        chosen = () if self.config.metrics_fail else items
        return Evaluation(split, chosen, AXES, samples=items[:samples])


@attrs.frozen
class PushConfig:
    training: Training = setting(Training(steps=12, batch_size=2, lr=0.05, checkpoint_every=0.0), help="the loop")


class Push:
    """Losses: the output on forget points, the change of the output on retain points; both squared."""

    Config = PushConfig
    source: ClassVar[Source] = SOURCE
    descends = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple"},
        "parameters": {"name": "lora", "rank": 2, "alpha": 2, "targets": ["to_q", "to_k"]},
        "attribution": {"name": "toy-size"},
    }

    def __init__(self, config: PushConfig) -> None:
        self.config = config

    def unlearn(self, model: LoadedNet, data: ForgetRetain, run: Run) -> Edit:
        scores = run.attribute(model, data)  # type: ignore[arg-type]
        theta = run.parameterise(model)  # type: ignore[arg-type]

        def losses(batches: Mapping[str, Batch]) -> dict[str, Tensor]:
            found = {}
            for side, batch in batches.items():
                x = batch["x"] + 0.1 * batch.normal("noise", (4,))
                with theta.base(), torch.no_grad():
                    teacher = model(x) if side == "retain" else torch.zeros(len(x), 4)
                found[side] = (model(x) - teacher).square().mean()
            return found

        fit(theta, losses, data, run, name="main")
        edit = theta.edit()
        return attrs.evolve(edit, facts={"largest": float(max(score.max() for score in scores.values()))})


@attrs.frozen
class SizeConfig:
    power: float = setting(1.0, help="exponent", gt=0)


class Size:
    Config = SizeConfig
    source: ClassVar[Source] = SOURCE
    version: ClassVar[str] = "1"
    calls: ClassVar[list[str]] = []

    def __init__(self, config: SizeConfig) -> None:
        self.config = config

    def attribute(
        self, model: LoadedNet, data: ForgetRetain, run: Run, *, candidates: Any = None
    ) -> Mapping[str, Tensor]:
        self.calls.append("size")
        return {
            name: tensor.detach().abs().float() ** self.config.power
            for name, tensor in model.network.named_parameters()
            if candidates is None or name in candidates
        }


@attrs.frozen
class GapConfig:
    enough: float = setting(0.01, help="a smaller change of the forget side is doubted", ge=0)


class Gap:
    Config = GapConfig
    source: ClassVar[Source] = SOURCE
    version: ClassVar[str] = "1"
    calls: ClassVar[list[str]] = []

    def __init__(self, config: GapConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        return digest(self.version, evaluation.split, *(f"{item.prompt} {item.seed}" for item in evaluation.items))

    def observe(self, model: LoadedNet, evaluation: Evaluation, run: Run) -> Mapping[str, Any]:
        self.calls.append("after" if run.edit is not None else "before")
        with torch.no_grad():
            outputs = [model(point(item.prompt, item.seed)).norm().item() for item in evaluation.items]
        run.progress("outputs", len(outputs), len(outputs))
        return {"outputs": outputs}

    def scores(self, before: Mapping[str, Any], after: Mapping[str, Any], evaluation: Evaluation) -> tuple[Score, ...]:
        scores = []
        for side in ("forget", "retain"):
            rows = [i for i, item in enumerate(evaluation.items) if item.forget == (side == "forget")]
            was, now = (sum(seen["outputs"][i] for i in rows) / len(rows) for seen in (before, after))
            scores.append(Score(f"{side}_size", now, "length", "down" if side == "forget" else "none", len(rows), was))
        return tuple(scores)

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Any, str]]:
        change = abs(scores[0].change or 0.0)
        small = change < self.config.enough
        return [("not_forgotten", f"The output moved by {change:.3g} only.")] if small else []


class Change(Gap):
    def scores(self, before: Mapping[str, Any], after: Mapping[str, Any], evaluation: Evaluation) -> tuple[Score, ...]:
        changed = [was != now for was, now in zip(before["outputs"], after["outputs"], strict=True)]
        return (Score("changed_outputs", sum(changed) / len(changed), "fraction", "none", len(changed), 0.0),)
