"""Every check of parameters and regularizers turns red on a plugin that is broken in just that way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import attrs
import numpy as np
import torch

import vu_core.testing as kit
from vu_core import (
    Edit,
    LowRank,
    Run,
)
from vu_core.adapters import Lora, MaskedLora
from vu_core.testing import toy_methods as methods
from vu_core.testing.proof import Broken, Proof, ProofTests, but, case


def scaled(edit: Edit, factor: float) -> Edit:
    return attrs.evolve(edit, parts={n: attrs.evolve(p, alpha=p.alpha * factor) for n, p in edit})


def touch(model: Any) -> None:
    with torch.no_grad():
        model.network["unet"].conv_in.weight.add_(0.01)


# Parameters


def parameters(plugin: type[Any] = Lora, **theta: Any) -> Callable[[], type[Any]]:
    """Lora whose theta has methods replaced; a replacement is handed the original method."""

    def make() -> type[Any]:
        def attach(self: Any, model: Any, run: Run, **limits: Any) -> Any:
            found = plugin.attach(self, model, run, **limits)
            for name, change in theta.items():
                if name == "attach":
                    change(found, model)
                else:
                    setattr(found, name, change(getattr(found, name), found, model))
            return found

        broken = but(plugin, attach=attach)
        return case(kit.ParametersTests, broken, honours_masks=plugin is not Lora)

    return make


def nudge(theta: Any, model: Any) -> None:
    with torch.no_grad():
        for parameter in theta.parameters():
            parameter.add_(0.01)


def no_base(base: Any, theta: Any, model: Any) -> Any:
    return nullcontext


def aliasing(edit: Any, theta: Any, model: Any) -> Any:
    def alias() -> Edit:
        layers = theta.layers.items()
        return Edit({n: LowRank(x.factors.A.detach(), x.factors.B.detach(), theta.alpha) for n, x in layers})

    return alias


def half(edit: Any, theta: Any, model: Any) -> Any:
    return lambda: scaled(edit(), 0.5)


def no_masks(plugin: type[Any]) -> type[Any]:
    def attach(self: Any, model: Any, run: Run, *, targets: Any = None, masks: Any = None) -> Any:
        return plugin.attach(self, model, run, targets=targets)

    return case(kit.ParametersTests, but(plugin, attach=attach), honours_masks=True)


def no_targets() -> type[Any]:
    def attach(self: Any, model: Any, run: Run, *, targets: Any = None, masks: Any = None) -> Any:
        return Lora.attach(self, model, run)

    return case(kit.ParametersTests, but(Lora, attach=attach))


PARAMETERS: list[Broken] = [
    Broken(name, make, words)
    for name, make, words in [
        (
            "test_candidates_are_weights_of_the_model",
            lambda: case(kit.ParametersTests, but(Lora, candidates=lambda self, model: ("unet.nothing",))),
            "the model has no",
        ),
        ("test_untouched_adapter_changes_nothing", parameters(attach=nudge), "changes the answers"),
        ("test_base_is_the_untouched_model", parameters(base=no_base), "not the untouched one"),
        (
            "test_parameters_are_stable_trainable_leaves",
            parameters(parameters=lambda old, *_: lambda: [p.detach().requires_grad_() for p in old()]),
            "other tensors the second time",
        ),
        (
            "test_deltas_are_differentiable",
            parameters(named_deltas=lambda old, *_: lambda: ((n, d[:1]) for n, d in old())),
            "delta has the shape",
        ),
        ("test_edit_is_what_was_trained", parameters(edit=half), "differs from the trained model"),
        ("test_edit_is_a_copy", parameters(edit=aliasing), "changed with further training"),
        (
            "test_detach_gives_the_model_back",
            parameters(detach=lambda old, *_: lambda: None),
            "is another",
        ),
        ("test_detach_gives_the_model_back", parameters(attach=lambda theta, model: touch(model)), "has other numbers"),
        (
            "test_state_can_be_put_back",
            parameters(load_state=lambda old, *_: lambda state: None),
            "another model after load_state",
        ),
        ("test_targets_limit_what_is_trained", no_targets, "asked for"),
        ("test_masks_limit_the_change", lambda: no_masks(MaskedLora), "outside of the mask"),
        (
            "test_masks_limit_the_change",
            lambda: case(kit.ParametersTests, but(MaskedLora), honours_masks=False),
            "DID NOT RAISE",
        ),
        (
            "test_nothing_global_changes",
            parameters(attach=lambda *_: torch.set_grad_enabled(False)),
            "torch grad mode",
        ),
    ]
]


# Regularizers

P = methods.ToyPenalty


def regularizer(**attributes: Any) -> Callable[[], type[Any]]:
    return lambda: case(kit.RegularizerTests, but(P, **attributes))


def careless(self: Any, model: Any, theta: Any, data: Any, run: Run) -> None:
    P.prepare(self, model, theta, data, run)
    touch(model)


def drawing(self: Any, model: Any, theta: Any, data: Any, run: Run) -> None:
    P.prepare(self, model, theta, data, run)
    np.random.random()


REGULARIZER: list[Broken] = [
    Broken(name, make, words)
    for name, make, words in [
        ("test_side_is_known", regularizer(side="both"), "unknown side"),
        ("test_penalty_is_a_finite_scalar", regularizer(penalty=lambda self: P.penalty(self)[None]), "has the shape"),
        ("test_penalty_is_a_finite_scalar", regularizer(penalty=lambda self: P.penalty(self) / 0), "not finite"),
        ("test_it_does_something", regularizer(penalty=lambda self: None), "neither penalty nor after_step"),
        (
            "test_state_replaces_prepare",
            regularizer(state=lambda self: {n: t * 2 for n, t in P.state(self).items()}),
            "another penalty after resuming",
        ),
        ("test_prepare_leaves_the_model_alone", regularizer(prepare=careless), "changed a weight"),
        ("test_nothing_global_changes", regularizer(prepare=drawing), "numpy random numbers"),
    ]
]


class TestProofs(ProofTests):
    proofs = (
        Proof(kit.ParametersTests, PARAMETERS, shared=kit.PluginTests),
        Proof(kit.RegularizerTests, REGULARIZER, shared=kit.PluginTests),
    )
