"""The data plugin ``digits``: 1797 handwritten digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import attrs

from vu_classifiers.concepts import select
from vu_classifiers.labelled import CLASS, METRICS, Divided, Labelled
from vu_core import DataError, Evaluation, ForgetRetain, Manifest, Run, Selection, Source, Split, setting

CLASSES = tuple(str(number) for number in range(10))
LEVELS = 16
"""Largest brightness of a pixel of the data."""


@attrs.frozen
class DigitsConfig:
    """Settings of `Digits`."""

    validation: float = setting(
        0.1, help="part of the training images of every class that methods may select on", ge=0, lt=1
    )
    held_out: float = setting(0.2, help="part of the images of every class that only measure sees", gt=0, lt=1)
    augment: bool = setting(False, help="shift training images by up to an eighth of their side at every step")
    random_seed: int = setting(0, help="which images --forget random:SHARE draws", ge=0)


class Digits:
    """Read scikit-learn's digits: small real data, 1797 images, 8x8 grey levels, ten classes ``0`` to ``9``.

    Levels 0 .. 16 become 0 .. 255, the one channel three, and the images are resized to what the model takes. The first
    ``floor(held_out n)`` of the n images of a class, in the order of their SHA-256, are the test images, and of the
    others the first ``floor(validation n)`` are for validation.

    ``class:3`` forgets a class: its images are the forget side, all others the retain side, in every split.
    ``random:0.1`` or ``random:10%`` forgets this share of the training images, and the test images are all retained.

    Args:
        ref: nothing; the images are part of the package.
        config: see `DigitsConfig`.
    """

    Config: ClassVar[type[DigitsConfig]] = DigitsConfig
    source: ClassVar[Source] = Source(
        "Optical Recognition of Handwritten Digits, Alpaydin and Kaynak 1998, as part of scikit-learn",
        "https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html",
        "own",
    )
    metrics: ClassVar[tuple[str, ...]] = METRICS
    has_overwrites: ClassVar[bool] = False

    def __init__(self, ref: str, config: DigitsConfig) -> None:
        if ref:
            raise DataError(
                "VU-D114",
                f"The data 'digits' come with scikit-learn, so they take no place: {ref!r}.",
                "Write `--data digits`, or name a data plugin that reads files.",
                where="data.ref",
            )
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: nothing on disk is named by it."""
        return False

    def classes(self) -> Mapping[str, str]:
        """Return the concept of every class, in the order of the labels."""
        return {name: f"{CLASS}:{name}" for name in CLASSES}

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``class:3`` and ``random:0.1``. Raises: DataError VU-D111, VU-D112.

        Example:
            >>> Digits("", DigitsConfig()).parse(["class:3"], []).concepts[0].text
            'class:3'
        """
        return select(forget, overwrite, {CLASS: CLASSES})

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the data that a run will see."""
        split = f"by the hash of the image: {self.config.held_out:g} of every class held out"
        return self._divided(selection).manifest("digits", "", split)

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return train and validation tables; see `vu_classifiers.labelled.Divided.build`."""
        return self._divided(selection).build(resolution, run)

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Return the images of ``split``; see `vu_classifiers.labelled.Divided.evaluation`."""
        return self._divided(selection).evaluation(resolution, split=split, seeds=seeds, samples=samples)

    @cached_property
    def _labelled(self) -> Labelled:
        import numpy as np
        from sklearn.datasets import load_digits

        found = load_digits()
        grey = np.rint(found.images * (255 / LEVELS)).astype(np.uint8)  # (1797, 8, 8)
        images = np.repeat(grey[:, None], 3, axis=1)  # (1797, 3, 8, 8)
        every, nothing = np.arange(len(images)), np.arange(0)
        labels = {CLASS: found.target.astype(np.int64)}
        whole = Labelled(images, {CLASS: CLASSES}, labels, every, nothing)
        test, train = whole.stratified(every, self.config.held_out)
        return attrs.evolve(whole, train=train, test=test)

    def _divided(self, selection: Selection) -> Divided:
        config = self.config
        return Divided(
            self._labelled, selection, config.validation, config.random_seed, augment=config.augment, flip=False
        )
