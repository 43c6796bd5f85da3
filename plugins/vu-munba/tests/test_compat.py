"""The two formulas of earlier code: acceptance truth 9 (gradient_weighting.md, section 6)."""

from __future__ import annotations

import math

import pytest
import torch
from weighting_pairs import ask, pair

from vu_core import UnlearnError
from vu_core.plugins import discover
from vu_munba.bargain import BargainConfig
from vu_munba.compat import (
    MunbaOfficialCompat,
    MunbaOfficialCompatConfig,
    MunbaV1Compat,
    MunbaV1CompatConfig,
)
from vu_munba.munba import Munba

V1 = MunbaV1Compat(MunbaV1CompatConfig())
V1_TABLE = {
    -0.9: (2.4061, 2.2117),
    -0.5: (1.4142, 1.4142),
    -0.1: (1.3853, 6.6351),
    0.1: (1.4564, -7.6983),
    0.5: (1.8257, -2.5560),
    0.9: (3.9068, -4.0565),
}
R, F = torch.tensor([3.0, 4.0]).double(), torch.tensor([0.0, 2.0]).double()
BAD = torch.full((2, 2), math.nan)


def official(**settings) -> MunbaOfficialCompat:
    return MunbaOfficialCompat(MunbaOfficialCompatConfig(**settings))


@pytest.mark.parametrize("cosine", V1_TABLE)
def test_9_the_table_of_version_1(cosine):
    (a_r, a_f), flags = ask(V1, *pair(cosine, 3.0, 0.02))
    assert (a_r * 3.0, a_f * 0.02) == pytest.approx(V1_TABLE[cosine], abs=5e-5)
    assert flags == []


def test_9_the_worked_example_of_version_1_ascends_the_forget_loss():
    (a_r, a_f), _ = ask(V1, R, F)
    assert (a_r, a_f) == pytest.approx((0.5578, -1.5189), abs=5e-5)
    assert (a_r * R + a_f * F).dot(F).item() == pytest.approx(-1.6136, abs=5e-5)


@pytest.mark.parametrize("norms", [(1.0, 1.0), (1e-4, 30.0)])
def test_9_version_1_is_its_formula(norms):
    for cosine in (-0.95, -0.3, 0.05, 0.7):
        r, f = pair(cosine, *norms)
        k11, k12, k22 = r.dot(r).item(), r.dot(f).item(), f.dot(f).item()
        a_r = math.sqrt((2 * k11 * k22 + k12 * math.sqrt(k11 * k22)) / (k11**2 * k22 - k11 * k12**2))
        assert ask(V1, r, f)[0] == pytest.approx((a_r, (1 - k11 * a_r**2) / (k12 * a_r)), rel=1e-9)


@pytest.mark.parametrize("cosine", [0.0, 1.0, -1.0])
def test_version_1_leaves_out_steps_for_which_it_has_no_number(cosine):
    assert ask(V1, *pair(cosine)) == ((0.0, 0.0), ["undefined"])
    assert ask(V1, torch.tensor([[1.0, 1e-310], [1e-310, 1.0]], dtype=torch.float64)) == ((0.0, 0.0), ["undefined"])


def test_version_1_beside_a_zero_gradient_takes_the_other_one():
    zero = torch.zeros(2)
    assert ask(V1, zero, R) == ((0.0, 0.2), ["retain_zero"])
    assert ask(V1, R, zero) == ((0.2, 0.0), ["forget_zero"])


@pytest.mark.parametrize("cosine", [-0.9, -0.2, 0.5])
def test_the_released_formula_is_the_nash_solution_for_long_gradients(cosine):
    r, f = pair(cosine, 300.0, 200.0)
    assert ask(official(), r, f)[0] == pytest.approx(ask(Munba(BargainConfig()), r, f)[0], rel=1e-3)


def test_the_released_formula_misses_it_for_short_ones():
    (a_r, a_f), flags = ask(official(), *pair(0.1, 0.01, 0.01))
    assert a_r == pytest.approx(0.949, abs=5e-4)
    assert a_f == pytest.approx(1.05e5, rel=5e-3)
    assert flags == []


@pytest.mark.parametrize(("fallback", "expected"), [("diffusion", 0.5), ("classification", 0.1), ("skip", None)])
def test_the_released_acceptance_rule(fallback, expected):
    coefficients = (0.0, 0.0) if expected is None else (1.0, expected)
    for gradients in (pair(1.0), pair(0.5, 0.0, 1.0), pair(0.5, 0.0, 0.0)):
        assert ask(official(fallback=fallback), *gradients) == (coefficients, ["fallback"])
    huge = torch.tensor([[1e200, 0.0], [0.0, 1e200]], dtype=torch.float64)  # its products overflow
    assert ask(official(fallback=fallback), huge) == (coefficients, ["fallback"])


@pytest.mark.parametrize("rule", [V1, official()])
def test_gradients_that_are_not_finite_end_the_run_at_the_fifth_step_in_a_row(rule):
    state = {}
    for gradients in [(BAD,)] * 4 + [(R, F)] + [(BAD,)] * 4:
        found = ask(rule, *gradients, state=state)
        assert found == ((0.0, 0.0), ["nonfinite"]) or gradients == (R, F)
    with pytest.raises(UnlearnError) as error:
        ask(rule, BAD, state=state)
    assert error.value.code == "VU-U100"


def test_9_parity_is_never_a_default_nor_an_alias_and_says_what_it_is():
    registry = discover().registry
    for name in ("munba-v1-compat", "munba-official-compat"):
        entry = registry.get("weighting", name)
        assert entry.names == (name,)
        assert not entry.default
        assert entry.load().source.provenance == "parity"
        assert "reproduces historical behaviour" in entry.load().caution
        assert "known incorrect" in entry.load().caution
    for entry in registry.entries("unlearner"):
        chosen = getattr(entry.load(), "defaults", {}).get("weighting", {}).get("name", "")
        assert not chosen.endswith("-compat"), entry.name
