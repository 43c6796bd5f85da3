"""A step may take several passes: what they see, and that their gradients are averaged."""

import attrs
import pytest
import torch
from engine_toys import toy_data, toy_losses, toy_model, toy_run
from test_fit import TRAINING, Constant, close, equal, state_after

from vu_core.adapters import Lora, LoraConfig
from vu_core.training import Training, fit

LORA = LoraConfig(rank=2, targets=("to_q", "to_out.0"))


class Scaled:
    """A LoRA whose passes compute with multiples of the change."""

    honours_masks = False

    def __init__(self, *factors: float) -> None:
        self.factors, self.asked, self.inside = factors, [], 0

    def attach(self, model, run, **limits):
        theta = Lora(LORA).attach(model, run, **limits)
        with torch.no_grad():
            for name, tensor in theta.named_parameters():  # B = 0 would hide the factor from the gradient of A
                if name.endswith(".B"):
                    tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
        theta.passes = lambda step, phase="main": self._passes(theta, step, phase)
        return theta

    def _passes(self, theta, step, phase):
        self.asked.append((phase, step))
        return [_Within(self, theta, factor) for factor in self.factors]


class Plain(Scaled):
    """The same start, with the passes of a LoRA."""

    def attach(self, model, run, **limits):
        theta = super().attach(model, run, **limits)
        del theta.passes
        return theta


@attrs.define
class _Within:
    """A pass, which is entered once per portion and side."""

    parameters: Scaled
    theta: object
    factor: float

    def __enter__(self):
        self.parameters.inside += 1
        self._multiply(self.factor)

    def __exit__(self, *_):
        self.parameters.inside -= 1
        self._multiply(1.0)

    def _multiply(self, factor):
        for name, layer in self.theta.layers.items():
            whole = self.theta.factors[name]
            layer.factors = attrs.evolve(whole, scale=whole.scale * factor)


def one_step(folder, parameters, *, weighting=None, training=None):
    settings = {"training": training or attrs.evolve(TRAINING, steps=1, weight_decay=0.0), "parameters": parameters}
    return state_after(folder, weighting=weighting, **settings)


def gradients(folder, parameters, weighting=None):
    """Return what one step hands to the optimiser, by name."""
    model, run = toy_model(), toy_run(folder, parameters=parameters, training=TRAINING, weighting=weighting)
    theta = run.parameterise(model)
    seen = {}

    names = {id(p): name for name, p in theta.named_parameters()}
    step = torch.optim.AdamW.step

    def spy(self, *arguments, **keywords):
        for p in theta.parameters():
            seen.setdefault(names[id(p)], p.grad.clone())
        return step(self, *arguments, **keywords)

    torch.optim.AdamW.step = spy
    try:
        fit(theta, toy_losses(model), toy_data(), run)
    finally:
        torch.optim.AdamW.step = step
    theta.detach()
    return seen


@pytest.mark.parametrize("weighting", [None, Constant(0.5, 2.0)], ids=["jointly", "side by side"])
def test_gradients_are_the_mean_over_the_passes(tmp_path, weighting):
    both = gradients(tmp_path / "both", Scaled(1.0, 3.0), weighting)
    one = gradients(tmp_path / "one", Scaled(1.0), weighting)
    three = gradients(tmp_path / "three", Scaled(3.0), weighting)
    assert both.keys() == one.keys()
    assert not close(one, three, 1e-3)
    assert close(both, {name: (one[name] + three[name]) / 2 for name in one}, 1e-5)


def test_two_equal_passes_are_one(tmp_path):
    assert close(one_step(tmp_path / "2", Scaled(1.0, 1.0)), one_step(tmp_path / "1", Scaled(1.0)), 1e-6)


def test_one_pass_changes_no_bit(tmp_path):
    assert equal(one_step(tmp_path / "1", Scaled(1.0)), one_step(tmp_path / "2", Plain()))


def test_asked_once_per_step_whatever_the_accumulation(tmp_path):
    parameters = Scaled(1.0, 2.0)
    one_step(tmp_path, parameters, training=Training(steps=3, batch_size=1, accumulation=2, lr=0.01))
    assert parameters.asked == [("main", 0), ("main", 1), ("main", 2)]


def test_accumulation_gives_what_one_batch_gives(tmp_path):
    base = attrs.evolve(TRAINING, steps=3)
    whole = one_step(tmp_path / "whole", Scaled(1.0, 2.0), training=base)
    parts = one_step(tmp_path / "parts", Scaled(1.0, 2.0), training=attrs.evolve(base, batch_size=2, accumulation=2))
    assert close(whole, parts, 1e-5)


def test_forward_and_backward_lie_inside_and_everything_else_outside(tmp_path):
    parameters, model = Scaled(2.0), toy_model()
    run = toy_run(tmp_path, parameters=parameters, training=attrs.evolve(TRAINING, steps=2))
    theta, plain, seen = run.parameterise(model), toy_losses(model), []

    def losses(batches):
        found = plain(batches)
        for loss in found.values():
            loss.register_hook(lambda gradient: seen.append(parameters.inside))
        seen.append(parameters.inside)
        return found

    fit(theta, losses, toy_data(), run)
    assert set(seen) == {1}
    assert parameters.inside == 0
    theta.detach()
