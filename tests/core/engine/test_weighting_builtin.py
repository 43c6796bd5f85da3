from types import SimpleNamespace

import pytest
import torch
from engine_toys import ToyModel, toy_data, toy_losses, toy_model, toy_run
from torch import nn

from vu_core import PlanError
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig
from vu_core.hard_mask import HardMask, HardMaskConfig
from vu_core.ops import kept
from vu_core.plugins import discover
from vu_core.training import Training, fit
from vu_core.weightings import ForgetOnly, ForgetOnlyConfig, Simple, SimpleConfig

TRAINING = Training(steps=6, lr=0.02, weight_decay=0.5, schedule="constant", checkpoint_every=0.0)


def test_coefficients_are_in_the_order_retain_forget():
    assert Simple(SimpleConfig(forget_weight=0.3, retain_weight=0.8)).coefficients(None, {}, {}) == (0.8, 0.3)
    assert ForgetOnly(ForgetOnlyConfig()).coefficients(None, {}, {}) == (0.0, 1.0)


class ByValue:
    """An attribution that finds large weights important."""

    def __init__(self):
        self.asked = []

    def attribute(self, model, data, run, *, candidates=None):
        self.asked.append(tuple(candidates))
        return {name: model.network.get_parameter(name).detach().abs() for name in candidates}


def train(folder, regularizer, *, stop_at=None, resuming=False, **settings):
    def emit(event):
        if event.type == "progress" and event.values["step"] == stop_at:
            raise KeyboardInterrupt

    model = toy_model()
    run = toy_run(
        folder,
        **{
            "training": TRAINING,
            "parameters": Full(FullConfig()),
            "attribution": ByValue(),
            "regularizers": (regularizer,),
            "emit_event": emit,
            "resuming": resuming,
            **settings,
        },
    )
    theta = run.parameterise(model)
    try:
        fit(theta, toy_losses(model), toy_data(), run)
    finally:
        theta.detach()
    return model, theta, run


def test_masked_weights_and_their_moments_never_move(tmp_path):
    seen = []

    class Watched(HardMask):
        def after_step(self, optimizer):
            super().after_step(optimizer)
            for parameter, mask, _ in self._places:
                moments = optimizer.state[parameter]
                seen.append(all(not bool(moments[key][~mask].any()) for key in ("exp_avg", "exp_avg_sq")))

    model, theta, run = train(tmp_path, Watched(HardMaskConfig(density=0.3)))
    assert seen
    assert all(seen)
    deltas = {name: delta.detach() for name, delta in theta.named_deltas()}
    total = sum(delta.numel() for delta in deltas.values())
    k = kept(total, 0.3)
    weights = {name: model.network.get_parameter(name) for name in deltas}
    cutoff = torch.cat([w.abs().flatten() for w in weights.values()]).sort(descending=True).values[k - 1]
    assert all(not bool(delta[weights[name].abs() < cutoff].any()) for name, delta in deltas.items())
    assert sum(int(delta.count_nonzero()) for delta in deltas.values()) > 0.9 * k
    assert run.attribution.asked == [tuple(deltas)]


def test_density_decides_how_much_may_change(tmp_path):
    counts = []
    for density in (0.1, 0.6, 1.0):
        _, theta, _ = train(tmp_path / str(density), HardMask(HardMaskConfig(density=density)))
        counts.append(sum(int(delta.count_nonzero()) for _, delta in theta.named_deltas()))
    assert counts[0] < counts[1] < counts[2]


def test_a_resumed_run_keeps_the_mask(tmp_path):
    _, whole, _ = train(tmp_path / "whole", HardMask(HardMaskConfig(density=0.3)))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", HardMask(HardMaskConfig(density=0.3)), stop_at=3)
    _, resumed, run = train(tmp_path / "cut", HardMask(HardMaskConfig(density=0.3)), resuming=True)
    assert run.attribution.asked == []
    assert all(torch.equal(a, b) for a, b in zip(whole.state().values(), resumed.state().values(), strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attribution": None}, "has no attribution"),
        ({"parameters": Lora(LoraConfig(targets=("to_q",)))}, "--parameters full"),
    ],
)
def test_what_it_needs_is_said(settings, words, tmp_path):
    with pytest.raises(PlanError) as error:
        train(tmp_path, HardMask(HardMaskConfig()), **settings)
    assert error.value.code == "VU-L033"
    assert words in str(error.value)


def planned(attribution, parameters, regularizers=("hard-mask",)):
    """What the check of a plan looks at."""
    named = {name: name and SimpleNamespace(name=name) for name in (attribution, parameters, "fade")}
    config = SimpleNamespace(
        unlearner=named["fade"],
        attribution=named[attribution],
        parameters=named[parameters],
        regularizers=tuple(SimpleNamespace(name=name) for name in regularizers),
    )
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(
    ("attribution", "parameters", "words"),
    [
        (None, "full", "no attribution is chosen"),
        (None, "lora", "no attribution is chosen"),
        ("saliency", "lora", "--parameters full"),
        ("saliency", "masked-lora", "--parameters full"),
    ],
)
def test_a_hard_mask_that_cannot_work_is_refused_by_the_plan(attribution, parameters, words):
    plugins = discover(installed=False)
    with pytest.raises(PlanError) as error:
        plugins.check_plan(planned(attribution, parameters))
    assert error.value.code == "VU-L033"
    assert words in str(error.value)


def test_a_hard_mask_that_works_passes_the_plan():
    plugins = discover(installed=False)
    plugins.check_plan(planned("saliency", "full"))
    plugins.check_plan(planned(None, "lora", regularizers=()))


def test_half_precision_bases_are_restored_exactly(tmp_path):
    network = nn.ModuleDict({"unet": nn.Linear(3, 3)}).to(torch.bfloat16)
    model = ToyModel(network)
    run = toy_run(tmp_path, attribution=ByValue(), precision="bf16", training=TRAINING)
    theta = Full(FullConfig()).attach(model, run)
    mask = HardMask(HardMaskConfig(density=0.5))
    with theta.base():
        mask.prepare(model, theta, toy_data(), run)
    optimizer = torch.optim.AdamW(theta.parameters(), lr=0.1)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.add_(1.0)
    mask.after_step(optimizer)
    changed = sum(int(delta.detach().count_nonzero()) for _, delta in theta.named_deltas())
    assert changed == 6
