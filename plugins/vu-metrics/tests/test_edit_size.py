"""Sizes of edits, counted by hand."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch

from vu_core import Edit, LowRank, MeasureError, Replace, Score, Sparse
from vu_core.testing import ToyPainter, toy_evaluation, toy_run
from vu_metrics.edit_size import EditSize, EditSizeConfig


def scores(edit: Edit, folder: Path) -> dict[str, Score]:
    metric, model, run = EditSize(EditSizeConfig()), ToyPainter(), toy_run(folder)
    evaluation = toy_evaluation(run)
    before = metric.observe(model, evaluation, run)
    after = metric.observe(model, evaluation, attrs.evolve(run, edit=edit))
    return {score.name: score for score in metric.scores(before, after, evaluation)}


def test_counts_of_every_kind_of_part(tmp_path: Path) -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0, :3] = True
    edit = Edit(
        {
            "unet.attn1.to_q.weight": LowRank(torch.ones(2, 8), torch.ones(8, 2), 2.0),  # 64 numbers
            "unet.attn1.to_k.weight": LowRank(
                torch.ones(1, 8), torch.ones(8, 1), 1.0, mask
            ),  # 3 numbers, 8 bytes of mask
            "unet.conv_in.weight": Sparse(torch.tensor([1, 5]), torch.tensor([0.5, 0.0]), (8, 2, 3, 3)),  # 1 changes
            "unet.conv_in.bias": Replace(torch.zeros(8)),  # counts as a whole
        }
    )
    found = scores(edit, tmp_path)
    assert found["changed_parameters"].after == 64 + 3 + 1 + 8
    assert found["changed_parameters"].before == 0
    assert found["changed_share"].after == pytest.approx(76 / ToyPainter().facts.parameters)
    assert found["edit_bytes"].after == 32 * 4 + (16 * 4 + 8) + (2 * 8 + 2 * 4) + 8 * 4
    assert {score.n for score in found.values()} == {4}


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = LowRank(torch.full((2, 8), float("nan")), torch.ones(8, 2), 2.0)
    with pytest.raises(MeasureError, match="not finite"):
        scores(Edit({"unet.attn1.to_q.weight": broken}), tmp_path)


def test_a_model_without_parameters_has_no_share() -> None:
    metric = EditSize(EditSizeConfig())
    nothing = {"tensors": 0, "changed": 0, "bytes": 0, "parameters": 0}
    with pytest.raises(MeasureError, match="no parameters"):
        metric.scores(nothing, nothing, None)  # type: ignore[arg-type]
