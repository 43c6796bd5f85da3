"""Every check of methods, weightings and attributions turns red on a plugin that is broken in just that way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import vu_core.testing as kit
from vu_core import (
    Edit,
    LowRank,
    Replace,
    Run,
    Source,
    setting,
)
from vu_core.testing import toy_methods as methods
from vu_core.testing import unlearner_tests
from vu_core.testing.proof import Broken, Proof, ProofTests, but, case, red
from vu_core.weightings import Simple

COUNTER = itertools.count(1)

# What every plugin must hold


@attrs.define
class MutableConfig:
    forget_share: float = setting(0.5, help="weight of the forget gradient", ge=0, le=1)


@attrs.frozen
class SilentConfig:
    forget_share: float = attrs.field(default=0.5)


@attrs.frozen
class LoudConfig:
    forget_share: float = setting(0.5, help="weight of the forget gradient", ge=0, le=1)
    Share: float = setting(0.5, help="upper case")


@attrs.frozen
class IdleConfig:
    forget_share: float = setting(0.5, help="weight of the forget gradient", ge=0, le=1)
    idle: int = setting(3, help="does nothing")


@attrs.frozen
class LyingConfig:
    forget_share: float = setting(0.5, help="weight of the forget gradient", ge=0, le=1, speed_only=True)


W = methods.ToyWeighting
SHARED: list[Broken] = [
    Broken(name, lambda change=change: case(kit.WeightingTests, but(W, **change)), words)
    for name, change, words in [
        ("test_config_is_a_frozen_attrs_class", {"Config": MutableConfig}, "DID NOT RAISE"),
        ("test_every_field_has_help", {"Config": SilentConfig}, "no help for"),
        ("test_every_field_has_a_type_and_is_lower_case", {"Config": LoudConfig}, "not snake_case"),
        ("test_source_names_paper_and_address", {"source": Source("A paper", "ftp://x", "own")}, "no https address"),
        ("test_is_documented", {"__doc__": None}, "no docstring"),
        ("test_every_field_changes_something", {"Config": IdleConfig}, "idle = 4 changes nothing"),
        ("test_every_field_changes_something", {"Config": LyingConfig}, "claims to change speed only"),
    ]
]


# Weightings


class Divides(W):
    def coefficients(self, gram: Any, losses: Any, state: Any) -> Any:
        return 1 / gram[0, 0], 1 / gram[1, 1]


class Wavers(Simple):
    def coefficients(self, gram: Any, losses: Any, state: Any) -> Any:
        return losses["retain"], 1.0


class Guesses(W):
    def coefficients(self, gram: Any, losses: Any, state: Any) -> Any:
        return next(COUNTER), 1.0


class Scribbles(W):
    def coefficients(self, gram: Any, losses: Any, state: Any) -> Any:
        return super().coefficients(gram.mul_(2), losses, state)


class Forgets(W):
    def coefficients(self, gram: Any, losses: Any, state: Any) -> Any:
        mean = state.setdefault("mean", {1: 0.0})  # JSON turns the key into a text
        return mean.get(1, 7.0), 1.0


class Remembers(W):
    calls = 0

    def coefficients(self, gram: Any, losses: Any, state: Any) -> Any:
        self.calls += 1
        return self.calls, 1.0


class Seeds(W):
    def coefficients(self, gram: Any, losses: Any, state: Any) -> Any:
        torch.manual_seed(0)
        return super().coefficients(gram, losses, state)


WEIGHTING: list[Broken] = [
    Broken(name, lambda plugin=plugin: case(kit.WeightingTests, plugin), words)
    for name, plugin, words in [
        ("test_coefficients_are_finite", Divides, "no retain gradient"),
        ("test_a_linear_weighting_is_constant", Wavers, "the coefficients change"),
        ("test_same_input_same_output", Guesses, "two results"),
        ("test_inputs_are_left_alone", Scribbles, "changed in place"),
        ("test_state_survives_json", Forgets, "another result after a checkpoint"),
        ("test_instances_share_nothing", Remembers, "remembers"),
        ("test_nothing_global_changes", Seeds, "torch random numbers"),
    ]
]


# Unlearners

D = methods.ToyDistillation


def unlearner(**attributes: Any) -> Callable[[], type[Any]]:
    def make() -> type[Any]:
        def init(self: Any, config: Any) -> None:
            D.__init__(self, config)
            self.times = 0

        return case(kit.UnlearnerTests, but(D, __init__=init, **attributes))

    return make


def scaled(edit: Edit, factor: float) -> Edit:
    return attrs.evolve(edit, parts={n: attrs.evolve(p, alpha=p.alpha * factor) for n, p in edit})


def unsteady(self: Any, model: Any, data: Any, run: Run) -> Edit:
    return scaled(D.unlearn(self, model, data, run), next(COUNTER))


def deaf(self: Any, model: Any, data: Any, run: Run) -> Edit:
    return D.unlearn(self, model, data, attrs.evolve(run, seed=7))


def hoarder(self: Any, model: Any, data: Any, run: Run) -> Edit:
    self.times += 1
    return scaled(D.unlearn(self, model, data, run), self.times)


def vandal(self: Any, model: Any, data: Any, run: Run) -> Edit:
    edit = D.unlearn(self, model, data, run)
    with torch.no_grad():
        model.network["unet"].conv_in.weight.add_(1e-3)
    return edit


def meddler(self: Any, model: Any, data: Any, run: Run) -> Edit:
    random.random()
    return D.unlearn(self, model, data, run)


def scribbler(self: Any, model: Any, data: Any, run: Run) -> Edit:
    data.forget.tensors["latent_mean"].add_(1)
    return D.unlearn(self, model, data, run)


def idle(self: Any, model: Any, data: Any, run: Run) -> Edit:
    return scaled(D.unlearn(self, model, data, run), 0.0)


def explosive(self: Any, model: Any, data: Any, run: Run) -> Edit:
    return scaled(D.unlearn(self, model, data, run), float("inf"))


def sprawling(self: Any, model: Any, data: Any, run: Run) -> Edit:
    edit = D.unlearn(self, model, data, run)
    name = "unet.conv_in.weight"
    return attrs.evolve(edit, parts={**edit.parts, name: Replace(torch.zeros(8, 2, 3, 3))})


def restarting(self: Any, model: Any, data: Any, run: Run) -> Edit:
    fresh = run.folder / f"again-{next(COUNTER)}"
    return D.unlearn(self, model, data, attrs.evolve(run, resuming=False, folder=fresh))


def counting(self: Any, model: Any, data: Any, run: Run) -> Edit:
    """Keeps its own count of steps, which no checkpoint knows."""
    steps = itertools.count(1)
    usual = model.predict
    model.predict = lambda *a: usual(*a) * (1 + next(steps) / 10)
    try:
        return D.unlearn(self, model, data, run)
    finally:
        del model.predict


def narrow(self: Any, model: Any, data: Any, run: Run) -> Edit:
    edit = D.unlearn(self, model, data, run)
    return attrs.evolve(edit, parts={n: p for n, p in edit if isinstance(p, LowRank)})


def stubborn(self: Any, model: Any, data: Any, run: Run) -> Edit:
    return D.unlearn(self, model, data, attrs.evolve(run, weighting=Simple(Simple.Config())))


UNLEARNER: list[Broken] = [
    Broken(name, unlearner(**change), words)
    for name, change, words in [
        ("test_defaults_are_tables_of_known_axes", {"defaults": {"colour": {"name": "red"}}}, "unknown axes"),
        ("test_defaults_are_tables_of_known_axes", {"defaults": {"parameters": {"rank": 2}}}, "names no plugin"),
        ("test_same_seed_same_edit", {"unlearn": unsteady}, "two edits"),
        ("test_other_seed_other_edit", {"unlearn": deaf}, "two seeds gave one edit"),
        ("test_instance_can_be_used_again", {"unlearn": hoarder}, "second use"),
        ("test_model_comes_back_as_it_was", {"unlearn": vandal}, "has other numbers"),
        ("test_nothing_global_changes", {"unlearn": meddler}, "python random numbers"),
        ("test_data_is_left_alone", {"unlearn": scribbler}, "a column was changed"),
        ("test_edit_changes_something_finite", {"unlearn": lambda *a: Edit({})}, "no parts"),
        ("test_edit_changes_something_finite", {"unlearn": idle}, "changes nothing"),
        ("test_edit_changes_something_finite", {"unlearn": explosive}, "not finite"),
        ("test_edit_stays_within_the_parameters", {"unlearn": sprawling}, "unet.conv_in.weight"),
        ("test_edit_can_be_applied_and_taken_off", {"unlearn": idle}, "are those of before"),
        ("test_resumed_run_ends_with_the_same_edit", {"unlearn": restarting}, "started over"),
        ("test_resumed_run_ends_with_the_same_edit", {"unlearn": counting}, "another edit"),
        ("test_honours_other_parameters", {"unlearn": narrow}, "no parts"),
        ("test_honours_other_weightings", {"unlearn": stubborn}, "it is not used"),
        ("test_says_the_sign_of_its_losses", {"descends": ("retain",)}, "descends is"),
    ]
]


# Attributions

A = methods.ToyAttribution


def attribution(change: Callable[..., Any]) -> Callable[[], type[Any]]:
    def attribute(self: Any, model: Any, data: Any, run: Run, *, candidates: Any = None) -> Any:
        return change(A.attribute(self, model, data, run, candidates=candidates), model, candidates, self, data, run)

    return lambda: case(kit.AttributionTests, but(A, attribute=attribute))


def leave_gradients(scores: Any, model: Any, *rest: Any) -> Any:
    for parameter in model.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return scores


def ranked(scores: Any, *rest: Any) -> Any:
    return {name: tensor / len(scores) for name, tensor in scores.items()}


def draw(scores: Any, *rest: Any) -> Any:
    torch.rand(1)
    return scores


ATTRIBUTION: list[Broken] = [
    Broken(name, make, words)
    for name, make, words in [
        (
            "test_scores_have_the_shape_of_their_parameters",
            attribution(lambda scores, *_: {name: tensor.mean() for name, tensor in scores.items()}),
            "scores ()",
        ),
        (
            "test_scores_have_the_shape_of_their_parameters",
            attribution(lambda scores, *_: {name: tensor.double() for name, tensor in scores.items()}),
            "float64",
        ),
        (
            "test_only_candidates_are_scored",
            attribution(lambda s, model, c, self, data, run: A.attribute(self, model, data, run)),
            "asked for",
        ),
        ("test_candidates_do_not_change_the_scores", attribution(ranked), "asked together"),
        (
            "test_same_seed_same_scores",
            attribution(lambda scores, *_: {n: t + next(COUNTER) for n, t in scores.items()}),
            "two results",
        ),
        ("test_model_comes_back_as_it_was", attribution(leave_gradients), "another gradient"),
        ("test_nothing_global_changes", attribution(draw), "torch random numbers"),
        ("test_version_is_a_text", lambda: case(kit.AttributionTests, but(A, version="")), "empty"),
    ]
]


class TestProofs(ProofTests):
    proofs = (
        Proof(kit.PluginTests, SHARED),
        Proof(kit.WeightingTests, WEIGHTING, shared=kit.PluginTests),
        Proof(kit.UnlearnerTests, UNLEARNER, elsewhere=("test_edit_survives_its_file",), shared=kit.PluginTests),
        Proof(kit.AttributionTests, ATTRIBUTION, shared=kit.PluginTests),
    )


def test_an_edit_that_loses_something_turns_the_check_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method cannot break the core's file format, so here the file loses the facts."""
    usual = unlearner_tests.save_edit
    monkeypatch.setattr(unlearner_tests, "save_edit", lambda edit, path: usual(attrs.evolve(edit, facts={}), path))

    def talkative(self: Any, model: Any, data: Any, run: Run) -> Edit:
        return attrs.evolve(D.unlearn(self, model, data, run), facts={"k": 3})

    assert red(unlearner(unlearn=talkative)(), "test_edit_survives_its_file", tmp_path)
