"""DER++: the logits of before, and the right labels of further retain examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
from torch import Tensor

from vu_baselines.der import DER_SOURCE, DerConfig, distil
from vu_baselines.relabelled import DEFAULTS, retained_loss
from vu_core import Batch, Classifier, Edit, ForgetRetain, Model, Run, Source, setting


@attrs.frozen
class DerPlusPlusConfig(DerConfig):
    """Settings of `DerPlusPlus`."""

    distillation: float = setting(
        0.005,
        help="lambda: factor on the distance to the teacher; published: 0.05 for one task, 0.005 for four, 0.01 on "
        "ImageNet-100",
        ge=0,
    )
    retained: float = setting(
        0.005,
        help="lambda_2: factor on the cross entropy of further retain examples; published: 0.005, 0.5 on ImageNet-100",
        ge=0,
    )


class DerPlusPlus:
    """Teach wrong labels of what is forgotten; give retain examples the logits of before, and others their labels.

    With the losses of `Der` and a second batch ``x'`` of retain examples, drawn on its own at every step::

        L_forget = CE(x_f, y')
        L_retain = L_retain of DER + lambda_2 * CE(x', y)

    Args:
        config: see `DerPlusPlusConfig`.

    Example:
        >>> DerPlusPlus(DerPlusPlusConfig(retained=0.5)).config.retained
        0.5

    Source:
        Buzzega et al. 2020, arXiv 2004.07211.

    Deviates:
        As `Der`. The second batch is drawn with replacement.
    """

    Config: ClassVar[type[DerPlusPlusConfig]] = DerPlusPlusConfig
    source: ClassVar[Source] = DER_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: DerPlusPlusConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            PlanError: ``VU-L095`` when there is no other label; ``VU-L115``, ``VU-L120`` about the head.
        """

        def replay(classifier: Classifier, batch: Batch) -> Tensor:
            return self.config.retained * retained_loss(classifier, another(batch))

        return distil(model, data, run, self.config, replay)


def another(batch: Batch) -> Batch:
    """Return a batch of as many rows of the same table, drawn uniformly for this step."""
    rows = batch.integers("second batch", 0, len(batch.examples)).tolist()
    return attrs.evolve(batch, rows=tuple(rows), passes=())
