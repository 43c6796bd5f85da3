"""Nash bargaining: acceptance truths 1 to 5 and 10 (gradient_weighting.md, section 6), the policies, every field."""

from __future__ import annotations

import math

import pytest
import torch
from weighting_pairs import ask, matrix, pair, random_batches, random_pairs

from vu_core import UnlearnError
from vu_core.ops import gram
from vu_munba.asymmetric import NashAsymmetric, NashAsymmetricConfig
from vu_munba.bargain import BargainConfig
from vu_munba.munba import Munba

TABLE = {  # cosine: coefficient times norm, utility over norm, cosine of update and gradient
    -0.999: (31.6228, 0.0316, 0.0224),
    -0.99: (10.0, 0.1, 0.0707),
    -0.9: (3.1623, 0.3162, 0.2236),
    -0.5: (1.4142, 0.7071, 0.5),
    -0.1: (1.0541, 0.9487, 0.6708),
    0.0: (1.0, 1.0, 0.7071),
    0.1: (0.9535, 1.0488, 0.7416),
    0.5: (0.8165, 1.2247, 0.866),
    0.9: (0.7255, 1.3784, 0.9747),
    1.0: (0.7071, 1.4142, 1.0),
}
R, F = torch.tensor([3.0, 4.0]).double(), torch.tensor([0.0, 2.0]).double()
ZERO = torch.zeros(2, dtype=torch.float64)


def munba(**settings) -> Munba:
    return Munba(BargainConfig(**settings))


def asymmetric(w_r: float, w_f: float, **settings) -> NashAsymmetric:
    return NashAsymmetric(NashAsymmetricConfig(retain_power=w_r, forget_power=w_f, **settings))


def update(rule, r, f):
    (a_r, a_f), _ = ask(rule, r, f)
    return a_r * r + a_f * f


# ---- truths 1 to 3 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "powers"),
    [(munba(), (1.0, 1.0)), (asymmetric(2.0, 1.0), (2.0, 1.0)), (asymmetric(0.05, 0.7), (0.05, 0.7))],
)
def test_1_the_bargain_of_ten_thousand_random_pairs(rule, powers):
    seen = 0
    for r, f in random_batches(10_000):
        both = torch.stack([r, f], dim=1)  # (N, 2, d)
        K = both @ both.mT  # (N, 2, 2)
        a = torch.tensor([rule.coefficients(each, {}, {}) for each in K], dtype=torch.float64)  # (N, 2)
        w = torch.tensor(powers, dtype=torch.float64)
        assert (a * (K @ a[:, :, None])[:, :, 0] / w - 1).abs().max() <= 1e-6
        g = (a[:, None] @ both)[:, 0]  # (N, d)
        assert (g.square().sum(1) / w.sum() - 1).abs().max() <= 1e-6
        assert (both @ g[:, :, None]).min() > 0  # neither loss is ascended
        seen += len(K)
    assert seen >= 10_000


@pytest.mark.parametrize("cosine", TABLE)
def test_2_the_table(cosine):
    r, f = pair(cosine, norm_r=3.0, norm_f=0.02)
    (a_r, a_f), _ = ask(munba(c_min=-0.9999), r, f)
    g = a_r * r + a_f * f
    coefficient, utility, angle = TABLE[cosine]
    assert (a_r * 3.0, a_f * 0.02) == pytest.approx((coefficient, coefficient), abs=5e-5)
    assert (g.dot(r).item() / 3.0, g.dot(f).item() / 0.02) == pytest.approx((utility, utility), abs=5e-5)
    assert g.dot(r).item() / 3.0 / g.norm().item() == pytest.approx(angle, abs=5e-5)


def test_2_the_worked_example():
    (a_r, a_f), flags = ask(munba(), R, F)
    g = a_r * R + a_f * F
    assert (a_r, a_f) == pytest.approx((0.149071, 0.372678), abs=5e-7)
    assert g.tolist() == pytest.approx([0.447214, 1.341641], abs=5e-7)
    assert g.dot(g).item() == pytest.approx(2.0)
    assert (g.dot(R).item(), g.dot(F).item()) == pytest.approx((6.708204, 2.683282), abs=5e-7)
    assert flags == []


def test_2_the_worked_example_of_unequal_powers():
    (a_r, a_f), _ = ask(asymmetric(2.0, 1.0), R, F)
    assert (a_r * 5, a_f * 2) == pytest.approx((1.183503, 0.632993), abs=5e-7)
    assert (a_r * R + a_f * F).tolist() == pytest.approx([0.710102, 1.579796], abs=5e-7)


@pytest.mark.parametrize("cosine", [-0.9, -0.3, 0.0, 0.6, 1.0])
@pytest.mark.parametrize(("w_r", "w_f"), [(1.0, 1.0), (2.0, 1.0), (1.0, 9.0)])
def test_no_direction_of_that_length_bargains_better(cosine, w_r, w_f):
    r, f = pair(cosine, 5.0, 0.2)
    angles = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    circle = math.sqrt(w_r + w_f) * torch.stack([angles.cos(), angles.sin()], dim=1)  # (N, 2)
    gains = circle @ torch.stack([r, f], dim=1)
    worth = (w_r * gains[:, 0].log() + w_f * gains[:, 1].log()).nan_to_num(nan=-math.inf)
    assert update(asymmetric(w_r, w_f), r, f).tolist() == pytest.approx(circle[worth.argmax()].tolist(), abs=2e-4)


@pytest.mark.parametrize("powers", [(1e-6, 1e6), (1e6, 1e-6), (1.0, 1e6)])
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9, 1.0])
def test_powers_may_be_far_apart(powers, cosine):
    r, f = pair(cosine, 5.0, 0.2)
    a = torch.tensor(ask(asymmetric(*powers), r, f)[0], dtype=torch.float64)
    bargain = a * (matrix(r, f) @ a) / torch.tensor(powers, dtype=torch.float64)
    assert bargain.tolist() == pytest.approx([1.0, 1.0], rel=1e-6)


@pytest.mark.parametrize("powers", [(0.0, 1.0), (1e-7, 1.0), (1.0, 1e7)])
def test_powers_without_a_bargain_are_refused(powers):
    with pytest.raises(ValueError, match=r"must be (>= 1e-06|<= 1000000)"):
        asymmetric(*powers)


def test_3_swapping_the_sides_swaps_the_coefficients():
    for r, f in random_pairs(60, seed=1):
        assert ask(munba(), r, f)[0] == pytest.approx(ask(munba(), f, r)[0][::-1], rel=1e-12)
        there, back = asymmetric(2.0, 0.3), asymmetric(0.3, 2.0)
        assert ask(there, r, f)[0] == pytest.approx(ask(back, f, r)[0][::-1], rel=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 7.0, 1e6])
def test_3_a_factor_on_a_loss_changes_nothing(factor):
    for cosine in (-0.98, -0.2, 0.0, 0.7, 1.0):
        r, f = pair(cosine, 3.0, 0.5)
        for rule in (munba(), asymmetric(2.0, 1.0)):
            assert torch.allclose(update(rule, r, f), update(rule, r, factor * f), rtol=1e-9, atol=1e-12)
            assert torch.allclose(update(rule, r, f), update(rule, factor * r, f), rtol=1e-9, atol=1e-12)


def test_products_of_inner_products_do_not_overflow():
    K = torch.tensor([[1e200, 0.8e200], [0.8e200, 1e200]], dtype=torch.float64)
    (a_r, a_f), _ = ask(munba(), K)
    assert (a_r * 1e100, a_f * 1e100) == pytest.approx((1 / math.sqrt(1.8),) * 2)
    (a_r, a_f), _ = ask(munba(), K * 1e-250)  # norms of 1e-25
    assert (a_r * 1e-25, a_f * 1e-25) == pytest.approx((1 / math.sqrt(1.8),) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_5_half_and_single_precision_of_a_million_numbers(dtype):
    generator = torch.Generator().manual_seed(3)
    r = [1e-3 * torch.randn(250_000, generator=generator, dtype=torch.float64) for _ in range(4)]
    f = [0.3 * g + 1e-3 * torch.randn(250_000, generator=generator, dtype=torch.float64) for g in r]
    exact, _ = ask(munba(), gram(r, f))
    rounded, _ = ask(munba(), gram([g.to(dtype) for g in r], [g.to(dtype) for g in f]))
    assert rounded == pytest.approx(exact, rel=1e-3)


# ---- truth 4: opposed, zero, not finite -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cosine", "length"), [(-0.9989, math.sqrt(2)), (-0.9995, 1.0), (-0.9999, 0.4472), (-1.0, 0.0)]
)
def test_4_opposed_gradients_are_clamped(cosine, length):
    r, f = pair(cosine, 3.0, 0.5)
    (a_r, a_f), flags = ask(munba(), r, f)
    assert (a_r * r + a_f * f).norm().item() == pytest.approx(length, abs=5e-5)
    assert flags == (["opposed"] if cosine < -0.999 else [])


@pytest.mark.parametrize("cosine", [-0.9989, -0.9991, -0.99999, -1.0])
def test_4_no_clamped_update_ascends_a_loss(cosine):
    r, f = pair(cosine, 3.0, 0.5)
    for powers in ((1.0, 1.0), (2.0, 1.0), (1.0, 30.0)):
        g = update(asymmetric(*powers), r, f)
        assert g.dot(r) >= -1e-9
        assert g.dot(f) >= -1e-9
        assert g.norm().item() == pytest.approx(
            math.sqrt(sum(powers) * min(1.0, (1 + cosine) / (1 - 0.999))), rel=1e-3, abs=1e-6
        )
    assert ask(asymmetric(1.0, 1.0), r, f)[0] == pytest.approx(ask(munba(), r, f)[0], rel=1e-9)


@pytest.mark.parametrize(
    ("opposed", "expected"),
    [("retain_only", (0.5, 0.0)), ("skip", (0.0, 0.0)), ("project", (1 - -5.0 / 4, 1 - -5.0 / 6.2552))],
)
def test_4_other_policies_for_opposed_gradients(opposed, expected):
    K = torch.tensor([[4.0, -5.0], [-5.0, 6.2552]])
    for rule in (munba(opposed=opposed), asymmetric(2.0, 1.0, opposed=opposed)):
        found, flags = ask(rule, K)
        assert found == pytest.approx(expected)
        assert flags == ["opposed"]
    assert ask(munba(opposed=opposed, c_min=-0.99999), K)[1] == []


@pytest.mark.parametrize(("zero", "expected"), [("single", 0.2), ("raw", 1.0), ("skip", 0.0)])
def test_4_a_zero_gradient(zero, expected):
    for rule in (munba(zero=zero), asymmetric(2.0, 1.0, zero=zero)):
        assert ask(rule, R, ZERO) == ((expected, 0.0), ["forget_zero"])
        assert ask(rule, ZERO, R) == ((0.0, expected), ["retain_zero"])
        assert ask(rule, ZERO, ZERO) == ((0.0, 0.0), ["both_zero"])


def test_4_the_floors():
    r, f = pair(0.0, 1.0, 1e-13)
    assert ask(munba(), r, f) == ((1.0, 0.0), ["forget_zero"])
    assert ask(munba(), f, r) == ((0.0, 1.0), ["retain_zero"])
    assert ask(munba(relative_floor=1e-14), r, f)[1] == []
    assert ask(munba(), *pair(0.0, 1e-29, 1e-28))[1] == []
    assert ask(munba(), *pair(0.0, 1e-31, 1e-31))[1] == ["both_zero"]
    assert ask(munba(floor=1e-27), *pair(0.0, 1e-29, 1e-28))[1] == ["both_zero"]
    assert ask(munba(floor=1e-27), *pair(0.0, 1e-29, 1e-25))[1] == ["retain_zero"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 1)])
def test_4_gradients_that_are_not_finite_are_left_out(bad, place):
    K = matrix(R, F)
    K[place] = K[place[::-1]] = bad
    for rule in (munba(), asymmetric(2.0, 1.0)):
        assert ask(rule, K) == ((0.0, 0.0), ["nonfinite"])
    with pytest.raises(UnlearnError) as error:
        ask(munba(nonfinite="raise"), K)
    assert error.value.code == "VU-U100"
    assert "in this step" in error.value.problem


def test_4_five_in_a_row_are_an_error_and_a_good_step_begins_anew():
    state, bad = {}, torch.full((2, 2), math.nan)
    for gradients in [(bad,)] * 4 + [(R, F)] + [(bad,)] * 4:
        ask(munba(), *gradients, state=state)
    with pytest.raises(UnlearnError) as error:
        ask(munba(), bad, state=state)
    assert error.value.code == "VU-U100"
    assert "5 steps in a row" in error.value.problem


def test_flags_are_those_of_the_step():
    state = {}
    assert ask(munba(), R, ZERO, state=state)[1] == ["forget_zero"]
    assert ask(munba(), R, F, state=state)[1] == []


# ---- lengths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "length"),
    [("nash", math.sqrt(2)), ("unit", 1.0), ("retain_norm", 5.0), ("mean_norm", 3.5)],
)
@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.8])
def test_scales_change_the_length_alone(scale, length, cosine):
    r, f = pair(cosine, 5.0, 2.0)
    g, plain = update(munba(scale=scale), r, f), update(munba(), r, f)
    assert g.norm().item() == pytest.approx(length)
    assert torch.allclose(g / length, plain / math.sqrt(2))
    powerful = update(asymmetric(3.0, 1.0, scale=scale), r, f)
    assert powerful.norm().item() == pytest.approx(2.0 if scale == "nash" else length)


def test_simplex_makes_the_coefficients_add_up_to_one():
    for rule in (munba(scale="simplex"), asymmetric(3.0, 1.0, scale="simplex")):
        (a_r, a_f), _ = ask(rule, R, F)
        assert a_r + a_f == pytest.approx(1.0)
        assert a_r > 0
        assert a_f > 0
    assert ask(munba(scale="simplex"), R, F)[0] == pytest.approx((2 / 7, 5 / 7))
