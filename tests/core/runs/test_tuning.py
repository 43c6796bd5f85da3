"""Bisection on known score functions: the scale it finds, what it costs, and what it says when there is none."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from vu_core import ConfigError, Score, Scorecard
from vu_core.tuning import NARROW, Bound, Contradiction, Tuning, tune

Function = Callable[[float], float]


class World:
    """Scores as functions of the scale; remembers the scales that were asked for."""

    def __init__(self, gone: Function, kept: Function = lambda _: 1.0, before: float | None = 0.0) -> None:
        self.gone, self.kept, self.before = gone, kept, before
        self.asked: list[float] = []

    def __call__(self, scale: float) -> Scorecard:
        self.asked.append(scale)
        gone, kept = self.gone(scale), self.kept(scale)
        shown = None if self.before is None else 1 - self.before
        return Scorecard(
            "validation",
            "ok",
            (
                Score("ua", gone, "fraction", "up", 100, self.before),
                Score("shown", 1 - gone, "fraction", "down", 100, shown),
                Score("ira", kept, "fraction", "up", 100, 1.0),
                Score("gap", 3 * gone, "mse", "up", 100, 0.0),
                Score("size", 4.0, "bytes", "none", 1),
            ),
        )


def ramp(slope: float) -> Function:
    return lambda scale: min(1.0, slope * scale)


def find(world: World, target: float, keep: float | None = None, **settings: Any) -> Tuning:
    keeps = [] if keep is None else [Bound("ira", keep)]
    return tune(world, [Bound("ua", target)], keeps, **settings)


@pytest.mark.parametrize(("slope", "target"), [(1.0, 0.3), (1.0, 0.95), (0.6, 0.95), (0.8, 0.31), (3.0, 0.95)])
def test_the_smallest_scale_that_reaches_the_target_is_found(slope: float, target: float) -> None:
    world = World(ramp(slope))
    found = find(world, target, trials=12)
    wanted = target / slope
    assert found.scale is not None
    assert found.missing is not None
    assert found.missing < wanted <= found.scale <= wanted + NARROW
    assert found.scale - found.missing <= NARROW
    assert world.asked[0] == 1.0
    assert len(world.asked) <= 9


def test_what_is_found_was_measured_and_every_measurement_is_told() -> None:
    world = World(ramp(0.8))
    found = find(world, 0.6)
    assert found.scale in world.asked
    assert [trial.scale for trial in found.trials if trial.scale] == world.asked
    untouched = found.at(0.0)
    assert (untouched.targets, untouched.reached) == ({"ua": 0.0}, False)
    assert found.at(1.0).targets == {"ua": 0.8}
    assert found.contradictions == ()
    assert found.as_json()["scale"] == found.scale


def test_a_ceiling_is_reached_from_above() -> None:
    found = tune(World(ramp(1.0)), [Bound("shown", 0.25)], trials=12)
    assert found.scale == pytest.approx(0.75, abs=NARROW)


def test_of_several_targets_the_last_one_to_be_reached_decides() -> None:
    found = tune(World(ramp(1.0)), [Bound("ua", 0.3), Bound("gap", 2.4)], trials=12)
    assert found.scale == pytest.approx(0.8, abs=NARROW)


def test_a_keep_that_holds_changes_nothing() -> None:
    kept: Function = lambda scale: 1 - 0.02 * scale  # noqa: E731
    free, bound = find(World(ramp(0.8)), 0.6), find(World(ramp(0.8), kept), 0.6, keep=-0.02)
    assert bound.scale == free.scale
    assert bound.at(1.0).keeps["ira"] == pytest.approx(-0.02)


def test_a_keep_is_not_broken_by_the_rounding_of_binary_numbers() -> None:
    found = find(World(lambda _: 0.95, lambda _: 1 - 0.02), 0.95, keep=-0.02)
    assert (1 - 0.02) - 1 < -0.02
    assert found.scale is not None


def test_a_target_that_costs_too_much_is_told_with_the_largest_scale_that_keeps() -> None:
    world = World(ramp(0.8), lambda scale: 1 - 0.1 * scale)
    found = find(world, 0.6, keep=-0.03, trials=20)
    assert found.scale is None
    assert found.reaching == pytest.approx(0.75, abs=NARROW)
    assert found.keeping == pytest.approx(0.3, abs=NARROW)
    assert found.keeping is not None
    assert found.keeping <= 0.3


def test_nothing_is_measured_for_the_target_once_it_is_known_to_cost_too_much() -> None:
    world = World(ramp(0.8), lambda scale: 1 - 0.1 * scale)
    found = find(world, 0.6, keep=-0.03, trials=7)
    assert found.keeping == pytest.approx(0.3, abs=2 * NARROW)
    assert all(scale <= 0.5 for scale in world.asked[1:])


def test_no_scale_reaches_the_target() -> None:
    world = World(ramp(0.2))
    found = find(world, 0.95)
    assert (found.scale, found.reaching, found.missing) == (None, None, 2.0)
    assert world.asked == [1.0, 2.0]


def test_the_untouched_model_may_reach_it_already() -> None:
    world = World(ramp(1.0), before=0.5)
    found = find(world, 0.4)
    assert found.reaching == 0.0
    assert world.asked == [1.0]


def test_a_score_without_a_value_before_can_be_a_target() -> None:
    found = find(World(ramp(1.0), before=None), 0.5, trials=12)
    assert found.scale == pytest.approx(0.5, abs=NARROW)
    assert 0.0 not in [trial.scale for trial in found.trials]


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_the_budget_is_kept_and_the_best_so_far_is_told(budget: int) -> None:
    world = World(ramp(1.0))
    found = find(world, 0.3, trials=budget)
    assert len(world.asked) == budget
    assert found.scale == min(scale for scale in world.asked if scale >= 0.3)
    short = find(World(ramp(0.6)), 0.95, trials=1)
    assert (short.scale, short.missing) == (None, 1.0)


@pytest.mark.parametrize(("low", "high", "wanted"), [(0.0, 0.7, 0.5), (0.3, 2.0, 0.5), (0.6, 2.0, 0.6), (1.2, 3, 1.2)])
def test_the_range_is_kept(low: float, high: float, wanted: float) -> None:
    world = World(ramp(1.0))
    found = find(world, 0.5, low=low, high=high, trials=12)
    assert found.scale == pytest.approx(wanted, abs=NARROW)
    assert all(low <= scale <= high for scale in world.asked)


def test_scores_that_fall_with_the_scale_are_told() -> None:
    found = find(World(lambda scale: 0.9 if scale == 0.5 else 0.8 if scale > 0.5 else 0.0), 0.8)
    assert found.contradictions == (Contradiction("ua", 0.5, 1.0),)
    rising = find(World(ramp(0.8), lambda scale: 0.5 if scale < 0.6 else 1.0), 0.6, keep=-0.1)
    assert [each.name for each in rising.contradictions] == [""]
    assert rising.contradictions[0].small < 0.6 <= rising.contradictions[0].large


def test_a_value_that_is_no_number_reaches_and_keeps_nothing() -> None:
    nothing = find(World(lambda _: math.nan), 0.5)
    assert nothing.scale is None
    assert nothing.contradictions
    lost = find(World(ramp(1.0), lambda _: math.nan), 0.5, keep=-0.02)
    assert lost.scale is None
    assert lost.reaching is not None


@pytest.mark.parametrize(
    ("targets", "keeps", "words"),
    [
        ([Bound("uaa", 0.9)], [], "There is no score 'uaa' here. Did you mean 'ua'?"),
        ([Bound("size", 0.9)], [], "is a fact"),
        ([Bound("ua", 95)], [], "A share lies between 0 and 1"),
        ([Bound("ua", -0.1)], [], "write 0.95 or 95%"),
        ([Bound("ua", 0.9)], [Bound("ira", -2)], "The change of a share"),
        ([Bound("ua", 0.9)], [Bound("irra", -0.02)], "no score 'irra'"),
    ],
)
def test_a_bound_that_cannot_hold_is_refused_after_one_measurement(
    targets: list[Bound], keeps: list[Bound], words: str
) -> None:
    world = World(ramp(1.0))
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")) as caught:
        tune(world, targets, keeps)
    assert caught.value.code == "VU-C131"
    assert "ua, shown, ira, gap" in caught.value.remedy
    assert len(world.asked) == 1


def test_a_change_needs_a_value_before() -> None:
    with pytest.raises(ConfigError, match="no value for the untouched model"):
        tune(World(ramp(1.0), before=None), [Bound("gap", 1.0)], [Bound("ua", 0.1)])
