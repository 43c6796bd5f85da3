"""How large an edit is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import attrs

from vu_core import (
    Edit,
    Evaluation,
    LowRank,
    MeasureError,
    Model,
    Observations,
    Replace,
    Run,
    Score,
    Source,
    Sparse,
    Status,
    digest,
)

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen
class EditSizeConfig:
    """`EditSize` has no settings: a size is a fact."""


class EditSize:
    """Count what the edit on the model changes.

    ``changed_parameters`` counts the numbers of the model whose change is not exactly zero, in the precision of the
    edit; ``changed_share`` is the same as a share of the whole model; ``edit_bytes`` is the size of the edit's tensors
    as stored (factors, indices, values, masks as bits). An untouched model has zero of each.
    """

    Config: ClassVar[type[EditSizeConfig]] = EditSizeConfig
    source: ClassVar[Source] = Source("Size of an edit, part of vu", "https://arxiv.org/abs/2602.07058", "own")
    version: ClassVar[str] = "1"
    looks: ClassVar[bool] = False

    def __init__(self, config: EditSizeConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the version: the numbers depend on nothing but the edit."""
        return digest("edit-size", self.version)

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return the counts of the edit that ``run.edit`` says the model carries; without one, zeros.

        Raises:
            MeasureError: the edit holds numbers that are not finite.
        """
        counts = {"tensors": 0, "changed": 0, "bytes": 0, "parameters": model.facts.parameters}
        if run.edit is not None:
            for name, part in run.edit:
                counts["tensors"] += 1
                counts["changed"] += changed_numbers(name, run.edit)
                counts["bytes"] += stored_bytes(part)
        return counts

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return ``changed_parameters``, ``changed_share`` and ``edit_bytes``; n is the number of changed tensors."""
        total = int(after["parameters"])
        if total < 1:
            raise MeasureError(
                "VU-S095",
                "The model says that it has no parameters, so the share that changed has no value.",
                "Look at the facts that the model plugin reports.",
                where="edit-size",
            )
        n, fingerprint = int(after["tensors"]), self.fingerprint(evaluation)
        changed, was = int(after["changed"]), int(before["changed"])
        return (
            Score(
                name="changed_parameters",
                before=float(was),
                after=float(changed),
                unit="parameters",
                direction="none",
                n=n,
                fingerprint=fingerprint,
                help="numbers of the model that the edit changes",
            ),
            Score(
                name="changed_share",
                before=was / total,
                after=changed / total,
                unit="fraction",
                direction="none",
                n=n,
                fingerprint=fingerprint,
                help="the same as a share of the whole model",
            ),
            Score(
                name="edit_bytes",
                before=float(before["bytes"]),
                after=float(after["bytes"]),
                unit="bytes",
                direction="down",
                n=n,
                fingerprint=fingerprint,
                help="size of the tensors of the edit",
            ),
        )

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Return nothing: a size says nothing about forgetting."""
        return ()


def changed_numbers(name: str, edit: Edit) -> int:
    """Return how many numbers of the tensor the part changes; a replaced tensor counts as a whole."""
    import torch

    part = edit.parts[name]
    if not isinstance(part, LowRank | Sparse):
        return part.tensor.numel()
    values = part.delta() if isinstance(part, LowRank) else part.values
    if not bool(torch.isfinite(values).all()):
        raise MeasureError(
            "VU-S095",
            f"The edit of {name!r} holds numbers that are not finite.",
            "Unlearn again with a lower learning rate.",
            where="edit-size",
        )
    return int(torch.count_nonzero(values))


def stored_bytes(part: LowRank | Sparse | Replace) -> int:
    """Return the bytes of the tensors of a part; a mask takes one bit per number, rounded up to whole bytes."""

    def size(tensor: Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    if isinstance(part, LowRank):
        mask = 0 if part.mask is None else (part.mask.numel() + 7) // 8
        return size(part.A) + size(part.B) + mask
    if isinstance(part, Sparse):
        return size(part.indices) + size(part.values)
    return size(part.tensor)
