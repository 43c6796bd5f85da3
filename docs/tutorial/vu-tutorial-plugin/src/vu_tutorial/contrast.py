"""Contrast: do the images that should have stayed still show something?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import attrs

from vu_core import (
    Evaluation,
    MeasureError,
    Model,
    Observations,
    Run,
    Score,
    Source,
    Status,
    TextToImage,
    digest,
    setting,
)


@attrs.frozen
class ContrastConfig:
    """Settings of `Contrast`."""

    max_fall: float = setting(0.2, help="a fall by more than this is reported as a collapse", ge=0, le=1)
    batch_size: int = setting(50, help="images generated at a time", ge=1, speed_only=True)


class Contrast:
    """Measure the mean contrast of the retain images.

    The contrast of an image is twice the standard deviation of its values in [0, 1]: 0 for one even colour, 1 for half
    black and half white. A model that was damaged often paints grey.
    """

    Config: ClassVar[type[ContrastConfig]] = ContrastConfig
    source: ClassVar[Source] = Source("Contrast, the metric of the vu tutorial", "https://example.org/mute", "own")
    version: ClassVar[str] = "1"

    def __init__(self, config: ContrastConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of what is asked and how; the thresholds of `doubts` change no number."""
        sampling = [f"{key}={value}" for key, value in sorted(evaluation.generation.items())]
        items = [f"{item.prompt}\n{item.seed}\n{item.forget}" for item in evaluation.items]
        return digest("contrast", self.version, *sampling, *items)

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return the contrast of every retain image."""
        items = [item for item in evaluation.items if not item.forget]
        if not items:
            raise MeasureError(
                "MUTE-S001", "There is no retain image to look at.", "Ask for at least one.", where="contrast"
            )
        contrast: list[float] = []
        for first in range(0, len(items), self.config.batch_size):
            batch = items[first : first + self.config.batch_size]
            images = cast(TextToImage, model).generate(
                [item.prompt for item in batch],
                [item.seed for item in batch],
                steps=int(evaluation.generation["steps"]),
                guidance=float(evaluation.generation["guidance"]),
            )
            contrast += [float(2 * image.std() / 255) for image in images]
            run.progress("generate retain images", first + len(batch), len(items))
        return {"contrast": contrast}

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return `retain_contrast`."""
        was, now = before["contrast"], after["contrast"]
        return (
            Score(
                name="retain_contrast",
                before=sum(was) / len(was),
                after=sum(now) / len(now),
                unit="fraction",
                direction="up",
                n=len(now),
                fingerprint=self.fingerprint(evaluation),
                help="mean contrast of the images that should have stayed as they were",
            ),
        )

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Doubt a contrast that fell far."""
        falls = [-score.change for score in scores if score.change is not None]
        if not falls or max(falls) <= self.config.max_fall:
            return []
        return [("retain_collapsed", f"The contrast of retain images fell by {100 * max(falls):.0f} points.")]
