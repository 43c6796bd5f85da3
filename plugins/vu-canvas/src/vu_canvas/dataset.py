"""The data plugin `canvas`: what to forget, what to keep, and what is asked afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_canvas.concepts import AXES, Pair, all_pairs, forgotten_pairs, overwrite_caption, select
from vu_canvas.identities import IDENTITIES, identity
from vu_canvas.render import OBJECTS, SIZE, SPLITS, STYLES, prompt, render
from vu_core import (
    DataError,
    Evaluation,
    EvaluationItem,
    Examples,
    ForgetRetain,
    Manifest,
    Run,
    Selection,
    Side,
    Source,
    Split,
    digest,
    setting,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from vu_canvas.judge import Judge


@attrs.frozen
class CanvasConfig:
    """Settings of `Canvas`; a pair is one object in one style, and there are 100."""

    forget_per_pair: int = setting(
        8, help="training images of every pair that shows a forgotten concept", ge=1, le=10_000
    )
    retain_per_pair: int = setting(2, help="training images of every other pair", ge=1, le=10_000)
    validation_per_pair: int = setting(1, help="validation images of every pair", ge=1, le=10_000)
    unseen_per_pair: int = setting(1, help="images of every pair for metrics that look at real images", ge=1, le=10_000)
    max_forget: int | None = setting(None, help="at most this many forget training images, evenly spread", ge=1)
    max_retain: int | None = setting(None, help="at most this many retain training images, evenly spread", ge=1)
    drawing_seed: int = setting(
        0, help="which edition of the drawings; positions, sizes and colours follow from it", ge=0
    )


class Canvas:
    """Draw ten objects in ten styles, 64x64 RGB, and tell which of them to forget.

    Concepts are ``style:neon``, ``object:star``, or ``object:star+style:neon`` (only the images that are both).
    Forgetting ``style:neon`` trains on all objects in neon with the caption ``A star image in neon style.``; the
    overwrite caption is the same with the overwrite's words (``A star image in flat style.``). Retain are the drawings
    of all pairs that show no forgotten concept, with their own captions.

    Indices of the drawings: training 0 - 999,999, validation from 1,000,000, held-out from 2,000,000. Held-out
    drawings are made by `evaluation` only. It asks for all 100 pairs with every seed, so each score has the same
    number of images per label.
    """

    Config: ClassVar[type[CanvasConfig]] = CanvasConfig
    source: ClassVar[Source] = Source(
        "vu-canvas, a miniature after UnlearnCanvas, Zhang et al. 2024", "https://arxiv.org/abs/2402.11846", "own"
    )
    metrics: ClassVar[tuple[str, ...]] = ("unlearncanvas", "classification", "edit-size")

    def __init__(self, ref: str, config: CanvasConfig) -> None:
        if ref:
            raise DataError(
                "VU-D091",
                f"The data 'canvas' is drawn, not read, so it takes no place: {ref!r}.",
                "Write `--data canvas`, or name a data plugin that reads files.",
                where="data.ref",
            )
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: nothing on disk is canvas data."""
        return False

    def classes(self) -> Mapping[str, str]:
        """Return the 100 identities, such as ``star-neon``, and the concept that names each."""
        return IDENTITIES

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``style:neon``, ``object:star`` and ``object:star+style:neon``, and the overwrites for them.

        With nothing named to forget, ``style:neon`` is, and a note says so. Without an overwrite, the first style that
        leads to nothing forgotten is supplied, flat before outline before the others, and so the first object, circle
        before square; a pair changes the style only, unless its object is forgotten in every style: then it becomes the
        first retained pair.

        Raises:
            DataError: an unknown axis or word (with near misses), a concept given twice or
                together with a part of it, a wrong number of overwrites, an overwrite of another axis or one that is
                forgotten.

        Example:
            >>> Canvas("", CanvasConfig()).parse(["style:neon"], []).concepts[0].overwrite
            'style:flat'
        """
        return select(forget, overwrite)

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the drawings; the digest covers one drawing of every pair, the settings and the selection."""
        forgotten = forgotten_pairs(selection)
        config = self.config
        counts = {"evaluation/items": len(all_pairs())}
        for side, pairs in (("forget", len(forgotten)), ("retain", len(all_pairs()) - len(forgotten))):
            train = pairs * (config.forget_per_pair if side == "forget" else config.retain_per_pair)
            most = config.max_forget if side == "forget" else config.max_retain
            counts[f"train/{side}"] = train if most is None else min(train, most)
            counts[f"validation/{side}"] = pairs * config.validation_per_pair
        drawings = b"".join(render(*pair, 0, config.drawing_seed).tobytes() for pair in all_pairs())
        chosen = "\n".join(f"{concept.text} -> {concept.overwrite}" for concept in selection.concepts)
        return Manifest(
            name="canvas",
            ref="",
            digest=digest("canvas", version("vu-canvas"), drawings, repr(attrs.astuple(config)), chosen),
            counts=counts,
            split="by index of the drawing: " + ", ".join(f"{k} from {v.start:,}" for k, v in SPLITS.items()),
            axes=AXES,
        )

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return training and validation drawings of both sides; a drawing is made when its pixels are asked for."""
        config = self.config
        forgotten = forgotten_pairs(selection)
        kept = [pair for pair in all_pairs() if pair not in forgotten]

        def table(side: Side, split: Split, per_pair: int, most: int | None = None) -> Examples:
            rows = self._rows(forgotten if side == "forget" else kept, split, per_pair)
            rows = rows if most is None or most >= len(rows) else [rows[i * len(rows) // most] for i in range(most)]
            return self._examples(side, rows, selection, resolution)

        return ForgetRetain(
            forget=table("forget", "train", config.forget_per_pair, config.max_forget),
            retain=table("retain", "train", config.retain_per_pair, config.max_retain),
            validation_forget=table("forget", "validation", config.validation_per_pair),
            validation_retain=table("retain", "validation", config.validation_per_pair),
        )

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Ask for every object in every style with every seed; other metrics get unseen drawings.

        Raises:
            DataError: ``split`` is ``train``, which no measurement may use.
        """
        if split == "train":
            raise DataError(
                "VU-D094",
                "Training data cannot be measured on.",
                "Set measure.split to 'validation' or 'held-out'.",
                where="measure.split",
            )
        forgotten = forgotten_pairs(selection)
        kept = [pair for pair in all_pairs() if pair not in forgotten]
        items = tuple(item(pair, seed, pair in forgotten) for pair in all_pairs() for seed in seeds)

        def unseen(side: Side, pairs: Sequence[Pair]) -> Examples:
            return self._examples(side, self._rows(pairs, split, self.config.unseen_per_pair), selection, resolution)

        return Evaluation(
            split=split,
            items=items,
            axes=AXES,
            judge=CanvasJudge(),
            examples=(unseen("forget", forgotten), unseen("retain", kept)),
            samples=sample_items(items, samples),
            concepts=selection.concepts,
        )

    def _rows(self, pairs: Sequence[Pair], split: Split, per_pair: int) -> list[tuple[Pair, int]]:
        """Return (pair, index of the drawing), index by index, so that neighbours differ."""
        return [(pair, index) for index in SPLITS[split][:per_pair] for pair in pairs]

    def _examples(
        self, side: Side, rows: Sequence[tuple[Pair, int]], selection: Selection, resolution: int
    ) -> Examples:
        """Return the table of these drawings."""
        seed = self.config.drawing_seed

        def load(row: int, generator: torch.Generator) -> Tensor:
            (word, style), index = rows[row]
            return pixels(render(word, style, index, seed), resolution)

        return Examples(
            side=side,
            captions=tuple(prompt(*pair) for pair, _ in rows),
            overwrites=tuple(overwrite_caption(pair, selection) for pair, _ in rows) if side == "forget" else None,
            labels={
                "object": tuple(word for (word, _), _ in rows),
                "style": tuple(style for (_, style), _ in rows),
                "identity": tuple(identity(pair) for pair, _ in rows),
            },
            load=load,
        )


class CanvasJudge:
    """Let the judge of this package name objects and styles by their words; other sizes are resized to 64x64."""

    def __init__(self) -> None:
        weights = files("vu_canvas") / "weights" / "judge.safetensors"
        if not weights.is_file():
            raise DataError(
                "VU-D095",
                "The judge of vu-canvas has no weights: weights/judge.safetensors is missing from the package.",
                "Install vu-canvas again, or train it with `python -m vu_canvas.train judge`.",
                where="vu-canvas",
            )
        self.fingerprint = digest("canvas judge", weights.read_bytes())
        self._judge: Judge | None = None

    def classify(self, images: np.ndarray[Any, Any]) -> Mapping[str, Sequence[str]]:
        """Return ``{"object": [...], "style": [...]}``; ``images`` is uint8 ``(N, H, W, 3)``."""
        import torch

        from vu_canvas.judge import load_judge

        shown = torch.from_numpy(images)  # (N, H, W, 3)
        if shown.shape[1:3] != (SIZE, SIZE):
            resized = resize(shown.permute(0, 3, 1, 2).float(), SIZE)
            shown = resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        if self._judge is None:
            self._judge = load_judge()
        objects, styles = self._judge.classify(shown)
        return {"object": [OBJECTS[i] for i in objects], "style": [STYLES[i] for i in styles]}


def item(pair: Pair, seed: int, forget: bool) -> EvaluationItem:
    """Return what is asked for one pair and one seed."""
    return EvaluationItem(prompt(*pair), seed, {"object": pair[0], "style": pair[1]}, forget)


def sample_items(items: Sequence[EvaluationItem], count: int) -> tuple[EvaluationItem, ...]:
    """Return items for the report, all with the first seed: half (rounded up) forget, then retain, evenly spread."""
    chosen: list[EvaluationItem] = []
    first_seed = [entry for entry in items if entry.seed == items[0].seed]
    for forget, share in ((True, (count + 1) // 2), (False, count // 2)):
        side = [entry for entry in first_seed if entry.forget == forget]
        most = min(share, len(side))
        # Half a step in, so that retain images differ in object and style instead of sharing the first of each.
        chosen += [side[(2 * i + 1) * len(side) // (2 * most)] for i in range(most)]
    return tuple(chosen)


def pixels(image: np.ndarray[Any, Any], resolution: int) -> Tensor:
    """Return a drawing as float32 ``(3, resolution, resolution)`` in [-1, 1]."""
    import torch

    signed = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1
    return signed.contiguous() if resolution == SIZE else resize(signed[None], resolution)[0].clamp(-1, 1)


def resize(images: Tensor, size: int) -> Tensor:
    """Return ``(N, 3, size, size)``, bilinear and anti-aliased."""
    from torch.nn import functional

    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
