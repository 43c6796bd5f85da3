"""What a classifier says about the batches of a step, in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import attrs
import torch
from torch import Tensor, nn

from vu_core import Batch, Classifier, Headed, PlanError


@attrs.frozen(eq=False)
class Answer:
    """The answer to the images of one side.

    Args:
        logits: ``(B, K)`` float32; labels: int64 ``(B,)``.
        features: what went into the head, ``(B, D)`` float32; empty when nobody asked for it.
        epoch: that the step belongs to, from 0.
    """

    logits: Tensor
    labels: Tensor
    features: Tensor
    epoch: int = 0


def answers(
    model: Classifier, batches: Mapping[str, Batch], *, features: bool = False, per_epoch: int = 1
) -> dict[str, Answer]:
    """Answer all batches as one and cut the result into sides.

    Logits are those that the model was trained on: with a margin at the right class where its head has one.

    Args:
        model: the classifier.
        batches: per side.
        features: also return what goes into the head, out of the same pass.
        per_epoch: steps of an epoch.

    Raises:
        PlanError: ``VU-L115`` when features are wanted of a model that does not say where its head is.
    """
    images = torch.cat([model.images(batch) for batch in batches.values()])  # (sum of B, 3, H, W)
    labels = torch.cat([model.labels(batch) for batch in batches.values()])  # (sum of B,)
    with_margin = getattr(model, "margin_logits", None)
    with _head_inputs(model, features) as seen:
        logits = model.logits(images) if with_margin is None else with_margin(images, labels)
    inputs = seen[-1].flatten(1).float() if features else logits.new_zeros(len(images), 0)
    sizes = [len(batch) for batch in batches.values()]
    rows = zip(batches.items(), *(torch.split(whole, sizes) for whole in (logits, labels, inputs)), strict=True)
    return {side: Answer(z, y, h, batch.step // per_epoch) for (side, batch), z, y, h in rows}


@contextmanager
def _head_inputs(model: Classifier, wanted: bool) -> Iterator[list[Tensor]]:
    """Collect what goes into the head while entered."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return
    # Looked up at every call: an adapter may have taken the place of the module.
    handle = head_of(model).register_forward_pre_hook(lambda _module, inputs: seen.extend(inputs[:1]))
    try:
        yield seen
    finally:
        handle.remove()


def head_of(model: Classifier) -> nn.Module:
    """Return the module whose input are the features. Raises: PlanError ``VU-L115`` when the model names none."""
    if not isinstance(model, Headed):
        raise PlanError(
            "VU-L115",
            f"The classifier {model.facts.name!r} does not say which module is its head, so its features cannot be "
            "read in the same pass as its logits.",
            "Choose a model with a head, such as torch-module, or the method gs-lora.",
            where="model",
        )
    return cast(Classifier, model).network.get_submodule(cast(Headed, model).head)
