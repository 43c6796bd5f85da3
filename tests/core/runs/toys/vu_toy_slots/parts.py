"""The model shows slot i as strongly as the weight ``W[i, i]``, which is 1; to forget it is to make that 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from vu_core import (
    Capability,
    Concept,
    DataError,
    Edit,
    Evaluation,
    EvaluationItem,
    Examples,
    ForgetRetain,
    LowRank,
    Manifest,
    ModelFacts,
    Replace,
    Run,
    Score,
    Selection,
    Source,
    Sparse,
    digest,
    setting,
)

SOURCE = Source("a toy", "https://example.org", "own")
SLOTS = ("0", "1", "2", "3")
NAME = "unet.weight"


@attrs.frozen
class SlotsConfig:
    brightness: float = setting(1.0, help="of every slot", gt=0)


class Slots:
    Config = SlotsConfig
    source: ClassVar[Source] = SOURCE

    def __init__(self, ref: str, config: SlotsConfig) -> None:
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return False

    def inspect(self) -> ModelFacts:
        return ModelFacts(
            name="toy-slots",
            ref="",
            base_hash=digest(repr(self.config)),
            capabilities=frozenset({Capability.GENERATE}),
            parameters=16,
            bytes=64,
            resolution=8,
            generation={"steps": 2, "guidance": 1.0},
        )

    def load(self, *, device: str, precision: str) -> LoadedSlots:
        return LoadedSlots(self.inspect(), self.config)


class LoadedSlots:
    def __init__(self, facts: ModelFacts, config: SlotsConfig) -> None:
        self.facts = facts
        body = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            body.weight.copy_(torch.eye(4) * config.brightness)
        self.network = nn.ModuleDict({"unet": body})
        self.network.requires_grad_(False).eval()

    def prepare(self, examples: Examples, run: Run) -> Examples:
        return examples

    def shown(self) -> Tensor:
        weight: Any = self.network["unet"].weight
        return weight.detach().diagonal().double()

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
    ) -> np.ndarray[Any, Any]:
        """Grey images: 100 for a slot at full strength, and a little more per seed."""
        grey = [round(100 * float(self.shown()[int(p[-1])])) + s % 5 for p, s in zip(prompts, seeds, strict=True)]
        return (
            np.array(grey).clip(0, 255).astype(np.uint8)[:, None, None, None].repeat(64, 1).repeat(64, 2).repeat(3, 3)
        )


@attrs.frozen
class SlotDataConfig:
    caption: str = setting("slot {}", help="caption")


class SlotData:
    Config = SlotDataConfig
    source: ClassVar[Source] = SOURCE
    metrics = ("toy-shown",)

    def __init__(self, ref: str, config: SlotDataConfig) -> None:
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return False

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        for text in forget:
            if text.removeprefix("slot:") not in SLOTS:
                raise DataError("VU-D999", f"There is no concept {text!r}.", "Name slot:0 or the like.")
        if set(overwrite) & set(forget):
            raise DataError("VU-D999", "An overwrite is forgotten itself.", "Name another.", where="data.overwrite")
        free = next(f"slot:{slot}" for slot in reversed(SLOTS) if f"slot:{slot}" not in forget)
        places = list(overwrite) * len(forget) if len(overwrite) == 1 else overwrite or [free] * len(forget)
        rows = zip(forget, places, strict=True)
        return Selection(tuple(Concept(text, {"slot": text[-1]}, place, {"slot": place[-1]}) for text, place in rows))

    def manifest(self, selection: Selection) -> Manifest:
        return Manifest("toy-slots", "", digest(repr(selection)), {"evaluation/items": 4}, "none", {"slot": SLOTS})

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        labels = {"slot": tuple(concept.labels["slot"] for concept in selection.concepts)}
        forget = Examples("forget", tuple(concept.text for concept in selection.concepts), labels=labels)
        retain = Examples("retain", ())
        return ForgetRetain(forget, retain, forget, retain)

    def evaluation(
        self, selection: Selection, *, split: Any, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        forgotten = {concept.labels["slot"] for concept in selection.concepts}
        items = tuple(
            EvaluationItem(self.config.caption.format(slot), seed, {"slot": slot}, slot in forgotten)
            for slot in SLOTS
            for seed in seeds
        )
        return Evaluation(split, items, {"slot": SLOTS}, samples=items[:samples], concepts=selection.concepts)


@attrs.frozen
class EraseConfig:
    strength: float = setting(1.0, help="how much of a slot goes")
    leak: float = setting(0.0, help="how much of every other slot goes with it")
    kind: str = setting("sparse", help="of the part", choices=("sparse", "low-rank", "replace"))


class Erase:
    """Subtract ``strength`` from what the forgotten slots show, and ``leak`` from all others."""

    Config = EraseConfig
    source: ClassVar[Source] = SOURCE
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, config: EraseConfig) -> None:
        self.config = config

    def unlearn(self, model: LoadedSlots, data: ForgetRetain, run: Run) -> Edit:
        run.progress("erase", 1, 1)
        gone = [slot in data.forget.labels["slot"] for slot in SLOTS]
        delta = -torch.tensor([self.config.strength if each else self.config.leak for each in gone])
        if self.config.kind == "sparse":
            rows = delta.nonzero().flatten()
            return Edit({NAME: Sparse(rows * 5, delta[rows], (4, 4))})
        if self.config.kind == "low-rank":
            return Edit({NAME: LowRank(torch.eye(4), torch.diag(delta), alpha=4.0)})
        return Edit({NAME: Replace(torch.diag(model.shown().float() + delta))})


@attrs.frozen
class ShownConfig:
    """Nothing can be set."""


class Shown:
    """``ua[slot:i]`` is 1 minus what slot i shows; ``ira`` is the mean of what the retained slots show."""

    Config = ShownConfig
    source: ClassVar[Source] = SOURCE
    version: ClassVar[str] = "1"
    asked: ClassVar[list[str]] = []
    """The splits in which edited models were asked, for tests."""

    def __init__(self, config: ShownConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        return digest(self.version, evaluation.split, *(f"{item.prompt} {item.seed}" for item in evaluation.items))

    def observe(self, model: LoadedSlots, evaluation: Evaluation, run: Run) -> Mapping[str, Any]:
        if run.edit is not None:
            self.asked.append(evaluation.split)
        run.progress("look", 1, 1)
        return {"shown": [float(each) for each in model.shown().clip(0, 1)]}

    def scores(self, before: Mapping[str, Any], after: Mapping[str, Any], evaluation: Evaluation) -> tuple[Score, ...]:
        concepts = {concept.text: int(concept.labels["slot"]) for concept in evaluation.concepts}
        kept = [slot for slot in range(4) if slot not in concepts.values()]

        def score(name: str, slots: Sequence[int], *, gone: bool) -> Score:
            was, now = (sum(side["shown"][slot] for slot in slots) / len(slots) for side in (before, after))
            values = (1 - now, 1 - was) if gone else (now, was)
            return Score(name, values[0], "fraction", "up", len(slots), values[1])

        each = [score(f"ua[{text}]", [slot], gone=True) for text, slot in concepts.items()] if len(concepts) > 1 else []
        ua = score("ua", list(concepts.values()), gone=True)
        shown = attrs.evolve(ua, name="shown", direction="down", after=1 - ua.after, before=1 - (ua.before or 0.0))
        size = Score("size", 64.0, "bytes", "down", 1)
        return (ua, shown, *each, score("ira", kept, gone=False), size, Score("slots", 4.0, "count", "none", 1))

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Any, str]]:
        return [("not_forgotten", "It is still there.")] if scores[0].after < 0.5 else []
