"""How often a classifier with an edit is right about the examples of a run."""

from __future__ import annotations

import attrs
import torch

from vu_core import Classifier, Edit, Examples, ForgetRetain, Run
from vu_core.adapters import apply_edit
from vu_gs_lora.prototypes import batches_of


@torch.no_grad()
def accuracies(model: Classifier, data: ForgetRetain, run: Run, edit: Edit) -> dict[str, float]:
    """Return the top-1 accuracy on each table that has rows, in [0, 1], by its name in `ForgetRetain`.

    Args:
        model: as it was before the edit.
        data: the examples of the run.
        run: the run.
        edit: applied for the time of the call.
    """
    with apply_edit(model.network, edit):
        tables = {field.name: getattr(data, field.name) for field in attrs.fields(ForgetRetain)}
        return {name: _accuracy(model, table, run) for name, table in tables.items() if len(table)}


def _accuracy(model: Classifier, table: Examples, run: Run) -> float:
    right = 0
    for batch in batches_of(table, run):
        right += int((model.logits(model.images(batch)).argmax(1) == model.labels(batch)).sum())
    return right / len(table)
