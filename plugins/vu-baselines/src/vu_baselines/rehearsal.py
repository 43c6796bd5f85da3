"""Rehearsal: fine-tuning on a small memory of what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
import torch

from vu_baselines.fine_tune import FineTuneConfig
from vu_baselines.supervised import SALUN_TRAINING, cross_entropy, labels_of, retain_only, trained
from vu_core import Classifier, Edit, Examples, ForgetRetain, Model, Run, Source, setting
from vu_core.training import Training


@attrs.frozen
class RehearsalConfig(FineTuneConfig):
    """Settings of `Rehearsal`."""

    training: Training = setting(
        attrs.evolve(SALUN_TRAINING, epochs=50), help="settings of the training loop; an epoch passes over the memory"
    )
    per_class: int = setting(10, help="retain examples of each class in the memory, at most all of them", ge=1)


class Rehearsal:
    """Go on training on a few retain examples of each class, drawn once.

    With M the memory, ``per_class`` examples of each class of D_r, and ``l`` the cross entropy::

        minimise  mean over M of l(theta; x, y)                theta starts at the trained weights

    Args:
        config: see `RehearsalConfig`.

    Example:
        >>> Rehearsal(RehearsalConfig(per_class=5)).config.training.epochs
        50

    Source:
        A baseline of GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.

    Deviates:
        Dropout is off.
    """

    Config: ClassVar[type[RehearsalConfig]] = RehearsalConfig
    source: ClassVar[Source] = Source(
        "Rehearsal as a baseline in GS-LoRA, Zhao et al. 2024", "https://arxiv.org/abs/2403.11530", "paper"
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"parameters": {"name": "full"}}

    def __init__(self, config: RehearsalConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on the memory and return what came of it.

        Raises:
            UnlearnError: ``VU-U034`` when there are no retain examples; when a loss is not finite.
        """
        classifier = cast(Classifier, model)
        memory = remembered(classifier, data.retain, self.config.per_class, run)
        return trained(
            model,
            data,
            run,
            lambda theta: lambda batches: {side: cross_entropy(classifier, batch) for side, batch in batches.items()},
            on=attrs.evolve(retain_only(data), retain=memory),
            moving_statistics=self.config.batch_norm == "train",
        )


def remembered(model: Classifier, examples: Examples, per_class: int, run: Run) -> Examples:
    """Return ``per_class`` rows of each class, drawn without replacement, in the order of the table.

    A class with fewer rows gives all of them.
    """
    if not len(examples):
        return examples
    labels, rows = labels_of(model, examples, run), []
    for label in sorted(set(labels.tolist())):
        of_class = (labels == label).nonzero().flatten()
        order = torch.randperm(len(of_class), generator=run.generator("memory", label))
        rows += of_class[order[:per_class]].tolist()
    return examples.take(sorted(rows))
