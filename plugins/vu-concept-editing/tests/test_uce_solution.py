"""The least squares behind UCE: the minimum, its three forms, its limits, and the parts it is stored as."""

from __future__ import annotations

import pytest
import torch

from vu_concept_editing.closed_form import Columns, as_part, change_of, erasing_rows
from vu_concept_editing.scales import Scales
from vu_concept_editing.uce import solved
from vu_core import LowRank, Replace, UnlearnError
from vu_core.adapters import compose

SIZES = {"few columns": (3, 4, 24), "as many as numbers": (5, 7, 12), "many columns": (9, 30, 12)}
SCALES = Scales(erase=0.7, preserve=1.5, regularization=0.3)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns_of(n, m, d):
    return Columns(numbers(d, n, seed=1), numbers(d, n, seed=2), numbers(d, m, seed=3))


def edited(weight, columns, scales):
    return weight + change_of(weight, columns, scales.erase) @ erasing_rows(columns, scales)


def direct(w, x, s):
    """W' as the paper writes it: ``(lambda W + e sum W g c^T + q sum W p p^T) M^-1``."""
    m = s.regularization * torch.eye(w.shape[1], dtype=w.dtype)
    m = m + s.erase * x.concepts @ x.concepts.T + s.preserve * x.preserved @ x.preserved.T
    top = s.regularization * w + s.erase * w @ x.guides @ x.concepts.T + s.preserve * w @ x.preserved @ x.preserved.T
    return top @ torch.linalg.inv(m)


def woodbury(w, x, s):
    """W' by ``M^-1 C = (C - B (lambda I + B^T B)^-1 B^T C) / lambda``."""
    b = torch.cat([s.erase**0.5 * x.concepts, s.preserve**0.5 * x.preserved], dim=1)
    inner = torch.linalg.inv(s.regularization * torch.eye(b.shape[1], dtype=w.dtype) + b.T @ b)
    m_c = (x.concepts - b @ inner @ b.T @ x.concepts) / s.regularization
    return w + s.erase * w @ (x.guides - x.concepts) @ m_c.T


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("scales", [SCALES, Scales(1, 1, 0.5), Scales(0.9, 2.5, 0.1)], ids=str)
def test_all_forms_agree(sizes, scales):
    columns, weight = columns_of(*sizes), numbers(8, sizes[2])
    found = edited(weight, columns, scales)
    for other in (direct, woodbury):
        torch.testing.assert_close(found, other(weight, columns, scales), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_it_is_the_minimum(sizes):
    x, weight, s = columns_of(*sizes), numbers(8, sizes[2]), SCALES

    def objective(new):
        return (
            s.regularization * (new - weight).square().sum()
            + s.erase * (new @ x.concepts - weight @ x.guides).square().sum()
            + s.preserve * (new @ x.preserved - weight @ x.preserved).square().sum()
        )

    found = edited(weight, x, s).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(found), found)
    assert float(gradient.abs().max()) < 1e-10
    assert float(objective(found).detach()) < float(objective(weight))


def test_one_concept_in_closed_form():
    x, weight, s = columns_of(1, 0, 16), numbers(8, 16), SCALES
    c, g = x.concepts[:, 0], x.guides[:, 0]
    length = s.erase * c.square().sum()
    expected = weight @ (s.regularization * c + length * g) / (s.regularization + length)
    torch.testing.assert_close(edited(weight, x, s) @ c, expected, rtol=0, atol=1e-12)


def test_a_guide_that_is_the_concept_changes_nothing():
    x = columns_of(3, 4, 24)
    same = Columns(x.concepts, x.concepts, x.preserved)
    assert not change_of(numbers(8, 24), same, 1.0).any()


def test_a_large_scale_reads_every_concept_as_its_guide():
    x, weight = columns_of(3, 4, 24), numbers(8, 24)
    gaps = [(edited(weight, x, Scales(e, 1, 0.5)) @ x.concepts - weight @ x.guides).norm() for e in (1, 1e3, 1e6)]
    assert gaps[0] > 100 * gaps[1] > 10_000 * gaps[2]
    assert float(gaps[2]) < 1e-5


def test_a_large_scale_leaves_preserved_texts_alone():
    x, weight = columns_of(3, 4, 24), numbers(8, 24)
    moved = [((edited(weight, x, Scales(1, q, 0.5)) - weight) @ x.preserved).norm() for q in (0, 1, 1e3, 1e6)]
    assert moved[0] > moved[1] > 100 * moved[2] > 10_000 * moved[3]
    unseen = (edited(weight, x, Scales(1, 1e6, 0.5)) - weight) @ numbers(24, 4, seed=9)
    assert float(unseen.norm()) > 1  # only what is named is preserved


def test_a_large_regularization_stays_at_the_base():
    x, weight = columns_of(3, 4, 24), numbers(8, 24)
    assert float((edited(weight, x, Scales(1, 1, 1e9)) - weight).abs().max()) < 1e-6


def test_without_preserved_texts_their_scale_does_not_matter():
    x = columns_of(3, 0, 24)
    assert torch.equal(erasing_rows(x, Scales(1, 1, 0.5)), erasing_rows(x, Scales(1, 7, 0.5)))


@pytest.mark.parametrize("count", [1, 5, 10])
def test_many_concepts_at_once(count):
    x, weight = columns_of(count, 20, 64), numbers(48, 64)
    new = edited(weight, x, Scales(1e4, 1e4, 1e-4))
    torch.testing.assert_close(new @ x.concepts, weight @ x.guides, rtol=0, atol=1e-4)
    torch.testing.assert_close(new @ x.preserved, weight @ x.preserved, rtol=0, atol=1e-4)
    assert torch.linalg.matrix_rank(new - weight) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "kind"), [(2, LowRank), (40, Replace)])
def test_the_stored_weight_is_the_solution_rounded_once(dtype, n, kind):
    x, weight = columns_of(n, 40, 64), numbers(80, 64).to(dtype)
    left, right = change_of(weight, x, SCALES.erase), erasing_rows(x, SCALES)
    part = as_part(weight, left, right)
    assert isinstance(part, kind)
    exact = (weight.double() + left @ right).to(dtype)
    assert torch.equal(compose(weight, [part]), exact)


def test_half_precision_keeps_the_change_beside_the_weight():
    x, weight = columns_of(2, 40, 64), numbers(80, 64).bfloat16()
    left, right = change_of(weight, x, 1.0), erasing_rows(x, SCALES)
    part = as_part(weight, left, right)
    assert isinstance(part, LowRank)
    assert (part.A.dtype, part.B.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(part.delta().double(), left @ right, rtol=1e-5, atol=1e-6)


def test_the_smaller_of_both_parts_is_stored():
    weight = numbers(80, 64).float()
    bytes_of_tensor = weight.numel() * 4
    for n in range(1, 40):
        part = as_part(weight, numbers(80, n), numbers(n, 64))
        assert isinstance(part, LowRank) == (n * (80 + 64) * 8 < bytes_of_tensor)


def test_facts_tell_the_residual_of_each_kind():
    x, s = columns_of(3, 4, 24), SCALES
    layers = {"unet.a.to_k.weight": numbers(8, 24), "unet.b.to_k.weight": numbers(6, 24, seed=5)}
    layers["unet.a.to_v.weight"] = numbers(8, 24, seed=6)
    facts = solved(layers, x, s, ("to_k", "to_v")).facts
    assert (facts["erased_columns"], facts["preserved_columns"]) == (3, 4)
    for kind in ("to_k", "to_v"):
        ours = [w for name, w in layers.items() if kind in name]
        new = [direct(w, x, s) for w in ours]
        guide = torch.cat([(w @ x.guides).flatten() for w in ours]).norm()
        kept = torch.cat([(w @ x.preserved).flatten() for w in ours]).norm()
        expected = {
            "erased_before": torch.cat([(w @ (x.concepts - x.guides)).flatten() for w in ours]).norm() / guide,
            "erased_after": torch.cat(
                [(v @ x.concepts - w @ x.guides).flatten() for v, w in zip(new, ours, strict=True)]
            ).norm()
            / guide,
            "preserved": torch.cat([((v - w) @ x.preserved).flatten() for v, w in zip(new, ours, strict=True)]).norm()
            / kept,
        }
        assert facts["residual"][kind] == pytest.approx({key: float(value) for key, value in expected.items()})
        assert facts["residual"][kind]["erased_after"] < facts["residual"][kind]["erased_before"]


@pytest.mark.parametrize("columns", [(3, 4, 24), (9, 30, 12)])
def test_what_cannot_be_solved_is_told(columns):
    x = columns_of(*columns)
    x.concepts[0, 0] = float("nan")
    with pytest.raises(UnlearnError) as caught:
        erasing_rows(x, SCALES)
    assert caught.value.code == "VU-U105"


def test_a_singular_system_is_told():
    c = torch.ones(4, 6, dtype=torch.float64) * 1e10
    with pytest.raises(UnlearnError, match="regularization is too small"):
        erasing_rows(Columns(c, c, c), Scales(1, 1, 1e-30))
