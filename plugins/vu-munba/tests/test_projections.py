"""PCGrad and CAGrad: acceptance truth 10 (gradient_weighting.md, section 6), and every field."""

from __future__ import annotations

import math

import pytest
import torch
from weighting_pairs import ask, pair, random_pairs

from vu_munba.cagrad import CAGrad, CAGradConfig
from vu_munba.pcgrad import PCGrad, PCGradConfig

ZERO = torch.zeros(2, dtype=torch.float64)


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def pcgrad(**settings) -> PCGrad:
    return PCGrad(PCGradConfig(**settings))


def cagrad(**settings) -> CAGrad:
    return CAGrad(CAGradConfig(**settings))


def update(rule, r, f):
    (a_r, a_f), _ = ask(rule, r, f)
    return a_r * r + a_f * f


# ---- PCGrad ---------------------------------------------------------------------------------------------------------


def test_10_the_example_of_pcgrad():
    r, f = vector(1, 0), vector(-1, 1)
    assert ask(pcgrad(), r, f) == ((2.0, 1.5), ["projected"])
    g = update(pcgrad(), r, f)
    assert g.tolist() == [0.5, 1.5]
    assert (g.dot(r).item(), g.dot(f).item()) == (0.5, 1.0)
    assert ask(pcgrad(reduce="mean"), r, f)[0] == (1.0, 0.75)
    assert ask(pcgrad(protect="retain"), r, f)[0] == (2.0, 1.0)
    assert ask(pcgrad(protect="retain", reduce="mean"), r, f)[0] == (1.0, 0.5)


def test_gradients_that_agree_are_added():
    r, f = vector(1, 0), vector(1, 1)
    for rule, factor in ((pcgrad(), 1.0), (pcgrad(protect="retain"), 1.0), (pcgrad(reduce="mean"), 0.5)):
        assert ask(rule, r, f) == ((factor, factor), [])
        assert ask(rule, vector(1, 0), vector(0, 1)) == ((factor, factor), [])


def test_pcgrad_equals_projecting_the_vectors_and_ascends_neither_loss():
    for r, f in random_pairs(600, lowest=-1.0, seed=2):
        g = update(pcgrad(), r, f)
        conflict = min(0.0, r.dot(f).item())
        expected = (r - conflict / f.dot(f) * f) + (f - conflict / r.dot(r) * r)
        assert torch.allclose(g, expected, rtol=1e-6, atol=1e-6 * float(r.norm() + f.norm()))
        # To the rounding of vectors whose norms are up to 8 orders of magnitude apart.
        assert g.dot(r) >= -1e-9 * r.norm() * g.norm()
        assert g.dot(f) >= -1e-9 * f.norm() * g.norm()


def test_protecting_retain_projects_the_forget_gradient_alone():
    for r, f in random_pairs(60, seed=3):
        g = update(pcgrad(protect="retain"), r, f)
        off = f - min(0.0, r.dot(f).item()) / r.dot(r) * r
        assert torch.allclose(g, r + off, rtol=1e-9, atol=1e-9 * float(r.norm() + f.norm()))


def test_pcgrad_beside_a_zero_gradient_is_the_other_one():
    assert ask(pcgrad(), vector(3, 4), ZERO) == ((1.0, 1.0), ["forget_zero"])
    assert ask(pcgrad(), ZERO, vector(3, 4)) == ((1.0, 1.0), ["retain_zero"])
    assert ask(pcgrad(), ZERO, ZERO) == ((1.0, 1.0), ["both_zero"])
    # Rounding noise of the longer gradient is no conflict: the projection would blow it up.
    assert ask(pcgrad(), *pair(-0.5, 1.0, 1e-14)) == ((1.0, 1.0), ["forget_zero"])


# ---- CAGrad ---------------------------------------------------------------------------------------------------------


def test_10_the_example_of_cagrad():
    r, f = vector(1, 0), vector(-1, 2)
    d = update(cagrad(rescale="none"), r, f)
    assert d.tolist() == pytest.approx([0.4, 1.0])
    assert min(d.dot(r).item(), d.dot(f).item()) == pytest.approx(0.4)
    assert update(cagrad(), r, f).tolist() == pytest.approx([0.4 / 1.16, 1 / 1.16])
    assert update(cagrad(rescale="1/(1+c)"), r, f).tolist() == pytest.approx([0.4 / 1.4, 1 / 1.4])


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("cosine", [-0.999, -0.8, -0.2, 0.0, 0.5, 0.99])
@pytest.mark.parametrize("norms", [(1.0, 1.0), (2.0, 1.0), (1.0, 5.0), (1.0, 1e-3)])
def test_10_no_direction_in_the_ball_helps_the_worse_side_more(c, cosine, norms):
    r, f = pair(cosine, *norms)
    g0 = (r + f) / 2
    angles = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    # The least of two linear functions over a disk is largest on its border, or wherever it is 0 all along.
    ball = g0 + c * g0.norm() * torch.stack([angles.cos(), angles.sin()], dim=1)
    d = update(cagrad(c=c, rescale="none"), r, f)
    best = torch.minimum(ball @ r, ball @ f).max().item()
    between = c * g0.norm().item() * max(norms) * 2 * math.pi / 20_000  # what one step along the circle may change
    assert min(d.dot(r).item(), d.dot(f).item()) == pytest.approx(best, rel=1e-9, abs=between)
    assert (d - g0).norm() <= c * g0.norm() * (1 + 1e-9)


def test_the_weight_of_cagrad_is_the_minimum_that_a_search_finds():
    for r, f in random_pairs(300, seed=4):
        rr, rf, ff = r.dot(r), r.dot(f), f.dot(f)
        g0 = (r + f) / 2
        phi = 0.4 * g0.norm()
        w = torch.linspace(-30, 30, 6001, dtype=torch.float64).sigmoid()  # norms are up to 8 orders apart
        length = (w**2 * rr + 2 * w * (1 - w) * rf + (1 - w) ** 2 * ff).clamp(min=0).sqrt()
        objective = w * g0.dot(r) + (1 - w) * g0.dot(f) + phi * length
        d = update(cagrad(rescale="none"), r, f)
        # By duality the least of the objective is what the worse side gains.
        gained = min(d.dot(r).item(), d.dot(f).item())
        least = objective.min().item()
        assert gained <= least + 1e-9 * abs(least) + 1e-12
        assert gained == pytest.approx(least, rel=1e-3, abs=1e-5 * float(g0.norm() ** 2))


def test_a_radius_of_zero_is_the_mean_and_a_larger_one_protects_more():
    r, f = pair(-0.6, 3.0, 1.0)
    assert ask(cagrad(c=0.0), r, f)[0] == (0.5, 0.5)
    gains = [update(cagrad(c=c, rescale="none"), r, f).dot(f).item() for c in (0.0, 0.2, 0.4, 0.8)]
    assert gains == sorted(gains)
    assert gains[0] < 0 < gains[-1]


def test_cagrad_at_the_edges():
    same = vector(3, 4)
    assert update(cagrad(rescale="none"), same, same).tolist() == pytest.approx([1.4 * 3, 1.4 * 4])
    assert update(cagrad(rescale="none"), same, -same).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert ask(cagrad(rescale="none"), ZERO, same) == ((0.5, 0.5), ["retain_zero"])
    assert ask(cagrad(rescale="none"), same, ZERO) == ((0.5, 0.5), ["forget_zero"])
    assert ask(cagrad(rescale="none"), ZERO, ZERO) == ((0.5, 0.5), ["both_zero"])
    # A factor on both gradients is a factor on the update, whatever it is.
    for r, f in ((pair(-0.3, 2.0, 1.0)), (pair(0.4, 1.0, 7.0))):
        for factor in (1e-20, 1e90):
            assert ask(cagrad(), factor * r, factor * f)[0] == pytest.approx(ask(cagrad(), r, f)[0], rel=1e-9)
