"""The sparsity reports (fade.md, section 8.4), against numbers worked out on paper and against plain loops."""

from __future__ import annotations

import math
import weakref

import inspect_adapters as hand
import pytest
import torch

from vu_core import Edit, LowRank, Replace, Sparse
from vu_core.adapters import zero_fraction
from vu_elastic_lora.reading import Change, read_adapter
from vu_elastic_lora.sparsity import THRESHOLD, ModuleReport, report, totals, tuned_below


def matrix(values, alpha: float = 1.0, mask=None) -> LowRank:
    """A change of rank one whose Delta is alpha times these values, in one row."""
    return LowRank(torch.tensor([values]), torch.ones(1, 1), alpha, mask)


def of(part, threshold: float = THRESHOLD) -> ModuleReport:
    return report(Change("unet.a", part, 1), threshold)


def test_the_golden_adapter(tmp_path):
    reports = [report(change) for change in read_adapter(hand.kohya(tmp_path)).changes]
    found = totals(reports)
    assert found.delta_zero_fraction == pytest.approx(16 / 36, rel=1e-12)
    assert found.zero_percent == pytest.approx(1600 / 36, rel=1e-12)
    assert found.zero_percent_unweighted == pytest.approx((50 + 1000 / 24) / 2, rel=1e-12)
    assert found.ranks == {2: 1, 1: 1}
    assert (found.tuned, found.bytes, found.unknown) == (25, 25 * 4 + 2 * 4, 0)


def test_the_mask_is_part_of_the_change():
    mask = torch.tensor([[True, False, True, False]])
    found = of(matrix([3.0, 5.0, 4.0, 0.0], mask=mask))
    assert (found.zeros, found.numel, found.zero_percent, found.norm, found.density) == (2, 4, 50.0, 5.0, 0.5)


def test_density_is_that_of_the_mask_and_not_of_the_change():
    found = of(matrix([0.0, 0.0, 1.0, 1.0], mask=torch.tensor([[True, True, True, False]])))
    assert (found.density, found.zeros) == (0.75, 3)


def test_the_scale_is_part_of_the_change():
    factors = LowRank(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.eye(2), alpha=1.0)  # gamma = 1 / 2
    found = of(factors, threshold=0.5)
    assert found.gamma == 0.5
    assert found.zero_percent == 75.0
    assert found.norm == pytest.approx(math.sqrt(0.25 + 1))


def test_alpha_zero_is_a_change_of_nothing():
    found = of(matrix([1.0, 2.0], alpha=0.0))
    assert (found.gamma, found.zeros, found.zero_percent, found.norm) == (0.0, 2, 100.0, 0.0)


def test_a_number_of_exactly_the_threshold_counts_and_a_larger_one_does_not():
    part = matrix([0.5, -0.5, 0.50000006, 0.0])
    assert [of(part, threshold).zero_percent for threshold in (0.0, 0.4999, 0.5, 0.6)] == [25.0, 25.0, 75.0, 100.0]
    assert of(part, 0.6).zeros == 1  # exact zeros know no threshold


def test_the_threshold_is_a_millionth_unless_said_otherwise():
    assert of(matrix([9e-7, 1.1e-6])).zero_percent == 50.0


def test_small_products_of_half_precision_factors_are_no_zeros():
    tiny = torch.full((1, 1), 1e-4, dtype=torch.float16)
    assert not (tiny * tiny).any()
    found = of(LowRank(tiny, tiny, 1.0))
    assert (found.zeros, found.zero_percent) == (0, 100.0)


def test_a_sparse_change():
    part = Sparse(torch.tensor([1, 2, 5]), torch.tensor([3.0, 0.0, -4.0]), (2, 4))
    found = of(part)
    assert (found.kind, found.rank, found.alpha, found.gamma) == ("sparse", None, None, None)
    assert (found.tuned, found.density, found.norm) == (3, 3 / 8, 5.0)
    assert (found.zeros, found.numel, found.zero_percent) == (6, 8, 75.0)
    assert of(part, threshold=3.5).zero_percent == pytest.approx(700 / 8)


def test_a_replaced_tensor_has_no_zeros_and_no_norm():
    found = of(Replace(torch.zeros(2, 3)))
    assert (found.kind, found.tuned) == ("replace", 6)
    assert [found.numel, found.zeros, found.zero_percent, found.norm, found.density] == [None] * 5
    known = of(matrix([1.0, 0.0]))
    both = totals([found, known])
    assert (both.delta_zero_fraction, both.zero_percent, both.zero_percent_unweighted) == (0.5, 50.0, 50.0)
    assert (both.unknown, both.tuned) == (1, 9)


def test_overall_is_weighted_and_unweighted_is_the_mean_of_modules():
    small, large = of(matrix([0.0])), of(matrix([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    found = totals([small, large])
    assert (found.delta_zero_fraction, found.zero_percent) == (2 / 9, pytest.approx(200 / 9))
    assert found.zero_percent_unweighted == pytest.approx((100 + 12.5) / 2)


def test_without_a_module_the_fraction_is_zero_and_the_percents_are_unknown():
    for reports in ([], [of(Replace(torch.ones(2)))]):
        found = totals(reports)
        assert (found.delta_zero_fraction, found.zero_percent, found.zero_percent_unweighted) == (0.0, None, None)


def test_an_empty_tensor_counts_for_nothing():
    empty = of(Sparse(torch.tensor([], dtype=torch.int64), torch.tensor([]), (0, 3)))
    assert (empty.density, empty.zero_percent, empty.norm) == (None, None, 0.0)
    assert totals([empty, of(matrix([0.0, 1.0]))]).zero_percent_unweighted == 50.0


def test_ranks_are_counted_and_the_largest_comes_first():
    parts = [LowRank(torch.ones(rank, 2), torch.ones(2, rank), 1.0) for rank in (4, 16, 4)]
    assert list(totals([of(part) for part in parts]).ranks.items()) == [(16, 1), (4, 2)]


def test_the_share_of_a_component_counts_that_component_alone():
    names = ("unet.a", "unet.b.bias", "unet2.a", "text_encoder.unet.a")
    reports = [ModuleReport(name, "sparse", tuned=number, bytes=0) for number, name in enumerate(names, 1)]
    assert tuned_below(reports, "unet") == 3


def test_the_fraction_is_that_of_the_core():
    generator = torch.Generator().manual_seed(3)
    parts = {}
    for number in range(4):
        a, b = torch.randn(2, 5, generator=generator), torch.randn(3, 2, generator=generator)
        parts[f"unet.{number}.weight"] = LowRank(a, b, 3.0, torch.rand(3, 5, generator=generator) > 0.4)
    reports = [report(Change(name, part, 0)) for name, part in parts.items()]
    assert totals(reports).delta_zero_fraction == zero_fraction(Edit(parts))


def test_no_more_than_one_change_is_in_memory(monkeypatch):
    made, plain = [], LowRank.delta

    def watched(part, shape=None):
        assert not any(earlier() is not None for earlier in made), "the change before is still there"
        delta = plain(part, shape)
        made.append(weakref.ref(delta))
        return delta

    monkeypatch.setattr(LowRank, "delta", watched)
    parts = [matrix([1.0, 2.0]) for _ in range(5)]
    assert totals([of(part) for part in parts]).zero_percent == 0.0
    assert len(made) >= 5
