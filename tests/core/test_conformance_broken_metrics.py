"""Every check of metrics, recipes and commands turns red on a plugin that is broken in just that way."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click
import pytest

import vu_core.testing as kit
from vu_core import (
    DataError,
    MeasureError,
    Run,
)
from vu_core.testing import toy_methods as methods
from vu_core.testing import toys
from vu_core.testing.proof import Broken, Proof, ProofTests, but, case
from vu_core.testing.toy_painter import ToyPainter

COUNTER = itertools.count(1)

# Metrics

B = methods.ToyBrightness


def metric(**attributes: Any) -> Callable[[], type[Any]]:
    return lambda: case(kit.MetricTests, but(B, **attributes))


def edited(**changes: Any) -> Callable[..., Any]:
    return lambda self, *a: tuple(attrs.evolve(score, **changes) for score in B.scores(self, *a))


def blind(self: Any, model: Any, evaluation: Any, run: Run) -> Any:
    return {"light": [0.5 for _ in evaluation.items]}


def drifting(self: Any, model: Any, evaluation: Any, run: Run) -> Any:
    return {"light": [next(COUNTER) / 1e6 for _ in evaluation.items]}


def batchy(self: Any, model: Any, evaluation: Any, run: Run) -> Any:
    light = B.observe(self, model, evaluation, run)["light"]
    return {"light": [value / self.config.batch_size for value in light]}


def tuples(self: Any, model: Any, evaluation: Any, run: Run) -> Any:
    return {"light": B.observe(self, model, evaluation, run)["light"], "seen": {1: "one"}}


def keyed(self: Any, before: Any, after: Any, evaluation: Any) -> Any:
    factor = 1.0 if 1 in after.get("seen", {}) else 0.5
    return tuple(attrs.evolve(score, after=score.after * factor) for score in B.scores(self, before, after, evaluation))


def forgiving(self: Any, model: Any, evaluation: Any, run: Run) -> Any:
    return B.observe(self, model, evaluation, run) if evaluation.items else {"light": [1.0]}


def trampling(self: Any, model: Any, evaluation: Any, run: Run) -> Any:
    model.network.train()
    return B.observe(self, model, evaluation, run)


METRIC: list[Broken] = [
    Broken(name, metric(**change), words)
    for name, change, words in [
        ("test_scores_are_complete", {"scores": edited(n=0)}, "n = 0"),
        ("test_scores_are_complete", {"scores": edited(direction="better")}, "direction"),
        ("test_scores_are_complete", {"scores": lambda *a: ()}, "no score"),
        ("test_scores_are_finite_and_in_range", {"scores": edited(after=float("nan"))}, "not finite"),
        ("test_scores_are_finite_and_in_range", {"scores": edited(after=43.0)}, "no fraction"),
        ("test_scores_are_finite_and_in_range", {"scores": edited(ci_low=1.0, ci_high=1.0)}, "outside"),
        ("test_the_edit_is_noticed", {"observe": blind}, "no score changed"),
        ("test_same_before_and_after_is_no_change", {"scores": edited(before=0.25)}, "although nothing did"),
        ("test_measuring_twice_gives_the_same", {"observe": drifting}, ""),
        ("test_observations_survive_json", {"observe": tuples, "scores": keyed}, ""),
        ("test_batch_equals_single", {"observe": batchy}, "depends on the batch size"),
        ("test_empty_is_an_error", {"observe": forgiving}, "DID NOT RAISE"),
        ("test_fingerprint_is_about_the_question", {"fingerprint": lambda *a: "1"}, "same fingerprint"),
        ("test_fingerprint_is_about_the_question", {"fingerprint": lambda *a: str(next(COUNTER))}, ""),
        ("test_model_and_process_are_left_alone", {"observe": trampling}, "another mode"),
        # The threshold is then in the fingerprint only.
        ("test_every_field_changes_something", {"doubts": lambda *a: []}, "threshold = 0.25 changes nothing"),
        ("test_doubts_are_known_statuses", {"doubts": lambda *a: [("bad", "Bad.")]}, "unknown status"),
        ("test_doubts_are_known_statuses", {"doubts": lambda *a: [("not_forgotten", " ")]}, "without a sentence"),
        ("test_version_is_a_text", {"version": 1}, "must be a str"),
    ]
]


# Recipes and commands


@click.command()
@click.option("--loud")
def silent_command(loud: str) -> None:
    pass


def recipe(**tables: Any) -> Callable[[], type[Any]]:
    good = {"recipe": {"model": "toy", "method": "toy", "summary": "Toy."}, "unlearner": {"strength": 2.0}}
    return lambda: type("Case", (kit.RecipeTests,), {"read": lambda self: {**good, **tables}})


def command(found: Any) -> Callable[[], type[Any]]:
    return lambda: type("Case", (kit.CommandTests,), {"command": lambda self: found})


@click.command()
def failing_command() -> None:
    """Do something."""


failing_command.get_help = lambda context: 1 / 0  # type: ignore[method-assign,assignment,return-value]


RECIPE = [
    Broken("test_names_model_and_method", recipe(recipe={"model": "toy"}), "names no method"),
    Broken("test_holds_known_tables_only", recipe(run={"seed": 1}), "'run'"),
    Broken("test_never_depends_on_a_concept", recipe(data={"forget": ["style:neon"]}), "names a concept"),
    Broken(
        "test_sets_something",
        lambda: type("Case", (kit.RecipeTests,), {"read": lambda self: {"recipe": {}}}),
        "sets nothing",
    ),
]
COMMAND = [
    Broken("test_has_help", command(silent_command), "no help"),
    Broken("test_help_can_be_printed", command(failing_command), ""),
]


class TestProofs(ProofTests):
    proofs = (
        Proof(kit.MetricTests, METRIC, shared=kit.PluginTests),
        Proof(kit.RecipeTests, RECIPE, shared=kit.PluginTests),
        Proof(kit.CommandTests, COMMAND, shared=kit.PluginTests),
    )


def test_toys_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    """The toys are documented for authors, so their own errors are tested too."""
    run = toys.toy_run(tmp_path)
    empty = attrs.evolve(toys.toy_evaluation(run), items=())
    with pytest.raises(MeasureError, match="no image"):
        B(B.Config()).observe(ToyPainter(), empty, run)
    with pytest.raises(DataError, match="Did you mean 'colour:red'"):
        toys.ToyData("", toys.ToyDataConfig()).parse(["colour:redd"], [])
