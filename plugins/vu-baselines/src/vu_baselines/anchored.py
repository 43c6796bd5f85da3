"""What the methods `l2`, `ewc` and `mas` share: relabelled forgetting under a penalty of the run."""

from __future__ import annotations

import attrs
from torch import Tensor

from vu_baselines.relabelled import (
    Relabelled,
    RelabelledConfig,
    as_classifier,
    retained_loss,
    sided,
    train,
    trained,
    without_retain,
)
from vu_core import Batch, Edit, ForgetRetain, Model, PlanError, Run, setting


@attrs.frozen
class AnchoredConfig(RelabelledConfig):
    """Settings of `l2`, `ewc` and `mas`; the strength is that of the regularizer of the same name."""

    replay: bool = setting(
        True, help="train on the retain examples too, as the starred rows of the published tables do"
    )


def forget_anchored(model: Model, data: ForgetRetain, run: Run, config: AnchoredConfig, method: str) -> Edit:
    """Train on ``CE(x_f, y')``, with ``replay`` also on ``CE(x_r, y_r)``, under the regularizers of the run.

    Args:
        model: the classifier.
        data: both sides; regularizers are prepared on them even without replay.
        run: the run.
        config: settings.
        method: name of the method and of its regularizer, for messages.

    Raises:
        PlanError: ``VU-L095`` when there is no other label; ``VU-L115``, ``VU-L120`` about the head; ``VU-L121``
            when the run has no regularizer.
    """
    if not run.regularizers:
        raise PlanError(
            "VU-L121",
            f"The run has no regularizer, and without its penalty {method} is random-label.",
            f"Set regularizer.{method}.strength; to train without a penalty choose --method random-label.",
            where="regularizer",
        )
    classifier = as_classifier(model)
    forget = Relabelled.of(classifier, data, run, config.relabel)

    def retain(batch: Batch) -> Tensor:
        return retained_loss(classifier, batch)

    seen = data if config.replay else without_retain(data)
    targets = trained(model, run, config.train_head)
    return train(model, seen, run, lambda _theta: sided(forget, retain), targets=targets, regularizer_data=data)
