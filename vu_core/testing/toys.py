"""A toy model plugin and toy data: 8x8 images of dots and bars in three colours, for tests only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core.data import (
    Concept,
    Evaluation,
    EvaluationItem,
    Examples,
    ForgetRetain,
    Manifest,
    Selection,
    Side,
    Split,
    digest,
)
from vu_core.errors import DataError, did_you_mean
from vu_core.plan import Capability, ModelFacts
from vu_core.run import Run
from vu_core.setting import setting
from vu_core.source import Source

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vu_core.contracts import Model
    from vu_core.testing.toy_classifier import ToyClassifier
    from vu_core.testing.toy_painter import ToyPainter

TOY_SOURCE = Source("A toy for tests, part of vu", "https://example.org/toy", "own")

AXES: Mapping[str, tuple[str, ...]] = {"colour": ("red", "green", "blue"), "shape": ("dot", "bar")}

FIRST_INDEX: Mapping[str, int] = {"train": 0, "validation": 1000, "held-out": 2000}

SIZE = 8


@attrs.frozen
class ToyModelConfig:
    """Settings of `ToyModel`."""

    weights_seed: int = setting(0, help="seed of the random weights", ge=0)


class ToyModel:
    """Load a denoiser of a few hundred random weights that also paints 8x8 images."""

    Config: ClassVar[type[ToyModelConfig]] = ToyModelConfig
    source: ClassVar[Source] = TOY_SOURCE

    def __init__(self, ref: str, config: ToyModelConfig) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: a toy lies nowhere."""
        return False

    def inspect(self) -> ModelFacts:
        """Return the facts of the toy."""
        return toy_facts(self.config.weights_seed)

    def load(self, *, device: str, precision: str) -> ToyPainter:
        """Return the toy with random weights."""
        import torch

        from vu_core.contracts.model import torch_dtype
        from vu_core.testing.toy_painter import ToyPainter

        painter = ToyPainter(self.config.weights_seed)
        painter.network.to(torch.device(device), torch_dtype(precision))
        return painter


def toy_facts(weights_seed: int) -> ModelFacts:
    """Return the facts of a `ToyPainter`."""
    return ModelFacts(
        name="toy",
        ref="",
        base_hash=digest("toy", str(weights_seed)),
        capabilities=frozenset({Capability.DENOISE, Capability.GENERATE, Capability.TOKENS, Capability.TRAJECTORY}),
        parameters=TOY_PARAMETERS,
        bytes=4 * TOY_PARAMETERS,
        resolution=SIZE,
        prediction="epsilon",
        forward_gflops=1e-5,
        generation={"steps": 2, "guidance": 1.0},
    )


TOY_PARAMETERS = 786
"""Number of weights of a `ToyPainter`; its conformance test compares it with the network."""


class ToyClassifierModel:
    """Load a classifier of a few hundred weights that knows the colours of toy images."""

    Config: ClassVar[type[ToyModelConfig]] = ToyModelConfig
    source: ClassVar[Source] = TOY_SOURCE

    def __init__(self, ref: str, config: ToyModelConfig) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: a toy lies nowhere."""
        return False

    def inspect(self) -> ModelFacts:
        """Return the facts of the toy."""
        return toy_classifier_facts(self.config.weights_seed)

    def load(self, *, device: str, precision: str) -> ToyClassifier:
        """Return the toy."""
        import torch

        from vu_core.contracts.model import torch_dtype
        from vu_core.testing.toy_classifier import ToyClassifier

        classifier = ToyClassifier(self.config.weights_seed)
        classifier.network.to(torch.device(device), torch_dtype(precision))
        return classifier


def toy_classifier_facts(weights_seed: int) -> ModelFacts:
    """Return the facts of a `ToyClassifier`."""
    return ModelFacts(
        name="toy-classifier",
        ref="",
        base_hash=digest("toy classifier", str(weights_seed)),
        capabilities=frozenset({Capability.CLASSIFY}),
        parameters=TOY_CLASSIFIER_PARAMETERS,
        bytes=4 * TOY_CLASSIFIER_PARAMETERS,
        resolution=SIZE,
        forward_gflops=1.4e-5,
    )


TOY_CLASSIFIER_PARAMETERS = 323
"""Number of weights of a `ToyClassifier`; its conformance test compares it with the network."""


@attrs.frozen
class ToyDataConfig:
    """Settings of `ToyData`."""

    per_pair: int = setting(2, help="training images of every colour and shape", ge=1)


class ToyData:
    """Paint dots and bars in red, green and blue; concepts are ``colour:red`` or ``shape:dot``."""

    Config: ClassVar[type[ToyDataConfig]] = ToyDataConfig
    source: ClassVar[Source] = TOY_SOURCE
    metrics: ClassVar[tuple[str, ...]] = ("toy-brightness",)

    def __init__(self, ref: str, config: ToyDataConfig) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: toy data lies nowhere."""
        return False

    def classes(self) -> Mapping[str, str]:
        """Return the colours."""
        return {colour: f"colour:{colour}" for colour in AXES["colour"]}

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``axis:value``; the first other value of the axis is supplied as overwrite.

        Raises:
            DataError: nothing to forget, an unknown axis or value.
        """
        if not forget:
            raise DataError("VU-D110", "Nothing is named to forget.", "Name a colour or a shape.", where="data.forget")
        concepts = []
        for position, text in enumerate(forget):
            axis, value = parse_toy(text)
            others = [other for other in AXES[axis] if other != value]
            over = overwrite[min(position, len(overwrite) - 1)] if overwrite else f"{axis}:{others[0]}"
            concepts.append(Concept(text, {axis: value}, over, dict([parse_toy(over)])))
        return Selection(tuple(concepts))

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the images."""
        forget, retain = split_pairs(selection)
        per_pair = self.config.per_pair
        return Manifest(
            name="toy",
            ref=self.ref,
            digest=digest("toy data", str(per_pair), *(f"{c.text} {c.overwrite}" for c in selection.concepts)),
            counts={
                "train/forget": len(forget) * per_pair,
                "train/retain": len(retain) * per_pair,
                "validation/forget": len(forget),
                "validation/retain": len(retain),
                "evaluation/items": len(forget) + len(retain),
            },
            split="by index",
            axes=AXES,
        )

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return training and validation images."""
        forget, retain = split_pairs(selection)
        per_pair = self.config.per_pair
        return ForgetRetain(
            forget=toy_table("forget", forget, "train", per_pair, selection),
            retain=toy_table("retain", retain, "train", per_pair, selection),
            validation_forget=toy_table("forget", forget, "validation", 1, selection),
            validation_retain=toy_table("retain", retain, "validation", 1, selection),
        )

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Ask for every colour and shape with every seed."""
        forget, retain = split_pairs(selection)
        items = tuple(
            EvaluationItem(toy_caption(pair), seed, {"colour": pair[0], "shape": pair[1]}, pair in forget)
            for pair in [*forget, *retain]
            for seed in seeds
        )
        return Evaluation(
            split=split,
            items=items,
            axes=AXES,
            judge=ToyJudge(),
            examples=(
                toy_table("forget", forget, split, 1, selection),
                toy_table("retain", retain, split, 1, selection),
            ),
            samples=items[:samples],
            concepts=selection.concepts,
        )


class ToyJudge:
    """Names the colour by the brightest channel and the shape by where the light is."""

    fingerprint = "toy judge 1"

    def classify(self, images: np.ndarray[Any, Any]) -> Mapping[str, Sequence[str]]:
        """Return colour and shape of every image."""
        light = images.astype("float64")
        colours = [AXES["colour"][i] for i in light.sum(axis=(1, 2)).argmax(axis=1)]
        edge, middle = light[:, 0].sum(axis=(1, 2)), light[:, SIZE // 2].sum(axis=(1, 2))
        shapes = ["bar" if e * 2 > m else "dot" for e, m in zip(edge, middle, strict=True)]
        return {"colour": colours, "shape": shapes}


def parse_toy(text: str) -> tuple[str, str]:
    """Return axis and value. Raises: DataError with near misses."""
    axis, _, value = text.partition(":")
    known = [f"{a}:{v}" for a, values in AXES.items() for v in values]
    if value not in AXES.get(axis, ()):
        raise DataError(
            "VU-D110",
            f"There is no concept {text!r}.{did_you_mean(text, known)}",
            f"Choose one of: {', '.join(known)}.",
            where="data.forget",
        )
    return axis, value


def split_pairs(selection: Selection) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the (colour, shape) pairs that show a forgotten concept, and the others."""
    pairs = [(colour, shape) for colour in AXES["colour"] for shape in AXES["shape"]]
    forget = [pair for pair in pairs if any(value in pair for c in selection.concepts for value in c.labels.values())]
    return forget, [pair for pair in pairs if pair not in forget]


def toy_caption(pair: tuple[str, str]) -> str:
    """Return ``a red dot``."""
    return f"a {pair[0]} {pair[1]}"


def toy_table(
    side: Side, pairs: Sequence[tuple[str, str]], split: Split, per_pair: int, selection: Selection
) -> Examples:
    """Return images of the pairs; the index of the split decides their brightness."""
    rows = [(pair, FIRST_INDEX[split] + index) for index in range(per_pair) for pair in pairs]

    def over(pair: tuple[str, str]) -> str:
        labels = {"colour": pair[0], "shape": pair[1]}
        for concept in selection.concepts:
            if concept.labels.items() <= labels.items():
                labels.update(concept.overwrite_labels)
        return toy_caption((labels["colour"], labels["shape"]))

    return Examples(
        side=side,
        captions=tuple(toy_caption(pair) for pair, _ in rows),
        overwrites=tuple(over(pair) for pair, _ in rows) if side == "forget" else None,
        labels={"colour": tuple(p[0] for p, _ in rows), "shape": tuple(p[1] for p, _ in rows)},
        load=lambda row, generator: toy_image(*rows[row]),
    )


def toy_image(pair: tuple[str, str], index: int) -> Tensor:
    """Return an image, float32 ``(3, 8, 8)`` in [-1, 1]."""
    import torch

    image = torch.full((3, SIZE, SIZE), -1.0)
    rows = slice(0, SIZE) if pair[1] == "bar" else slice(3, 6)
    image[AXES["colour"].index(pair[0]), rows, 3:6] = 1.0
    image[:, 0, 0] = index / 3000  # no two indices give the same image
    return image


def toy_run(folder: Path, seed: int = 0, **changes: Any) -> Run:
    """Return a run on the CPU in float32 whose folder and cache lie under ``folder``."""
    settings = {"device": "cpu", "precision": "fp32", "folder": folder / "run", "cache": folder / "cache", **changes}
    run = Run(seed=seed, **settings)
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def toy_forget_retain(run: Run, forget: str = "colour:red", model: Model | None = None) -> ForgetRetain:
    """Return toy data, prepared for a model: a `ToyPainter`, unless another one is given."""
    from vu_core.testing.toy_painter import ToyPainter

    data = ToyData("", ToyDataConfig())
    reader = ToyPainter() if model is None else model
    built = data.build(data.parse([forget], []), resolution=SIZE, run=run)
    return built.map(lambda examples: reader.prepare(examples, run))


def toy_evaluation(
    run: Run, forget: str = "colour:red", seeds: Sequence[int] = (10_000, 10_001), unseen: int = 1
) -> Evaluation:
    """Return what `measure` would ask about toy data, with the sampling settings of the toy model.

    Args:
        run: gives the draws.
        forget: the concept.
        seeds: of the images to generate.
        unseen: images of every colour and shape that no method has seen.
    """
    data = ToyData("", ToyDataConfig())
    selection = data.parse([forget], [])
    evaluation = data.evaluation(selection, split="held-out", seeds=seeds, samples=2, resolution=SIZE, run=run)
    forgotten, retained = split_pairs(selection)
    examples = (
        toy_table("forget", forgotten, "held-out", unseen, selection),
        toy_table("retain", retained, "held-out", unseen, selection),
    )
    built = data.build(selection, resolution=SIZE, run=run)
    train = (built.forget, built.retain)
    return attrs.evolve(evaluation, examples=examples, train=train, generation=toy_facts(0).generation)
