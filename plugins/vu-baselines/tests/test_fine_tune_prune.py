"""Fine-tuning with pruning: how many weights are zero when, which ones, and that they stay so."""

from __future__ import annotations

import math

import attrs
import pytest
import torch

from vu_baselines.fine_tune_prune import FineTunePrune, FineTunePruneConfig, Pruning, PruningConfig, share_left
from vu_baselines.supervised import cross_entropy
from vu_core import Batch, PlanError, UnlearnError
from vu_core.adapters import Full, FullConfig, apply_edit, edit_digest
from vu_core.testing import ToyClassifier
from vu_core.training import Training

SGD = Training(epochs=1, batch_size=4, lr=0.1, optimizer="sgd", weight_decay=5e-4, max_grad_norm=0.0)
LAYERS = {"convolution": ("conv",), "all": ("conv", "hidden", "fc")}


def weights(model, layers="all"):
    """Weights of the layers in one row."""
    return torch.cat([model.network.get_parameter(f"classifier.{x}.weight").detach().flatten() for x in LAYERS[layers]])


def prune(run, images, **settings):
    """The model, and the edit of the method on it."""
    model = ToyClassifier()
    return model, FineTunePrune(FineTunePruneConfig(**settings)).unlearn(model, images, run)


def zeros(model, edit, layers="all"):
    with apply_edit(model.network, edit):
        return weights(model, layers) == 0


def test_equal_shares_of_what_is_left_add_up_to_the_rate():
    assert [share_left(0.95, k, 5) for k in range(6)] == pytest.approx(
        [1, 0.5493, 0.3017, 0.1657, 0.0910, 0.05], abs=1e-4
    )
    assert [share_left(0.75, k, 2) for k in (1, 2)] == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(("epochs", "every", "n"), [(1, 2, 1), (4, 2, 2), (5, 2, 3), (5, 3, 2), (6, 1, 6)])
def test_weights_vanish_before_every_few_epochs(epochs, every, n, make_run, images, monkeypatch):
    """At each step as many are zero as the prunings until then have taken."""
    seen = []

    def watched(model, batch):
        seen.append(int((weights(model) == 0).sum()))
        return cross_entropy(model, batch)

    monkeypatch.setattr("vu_baselines.fine_tune_prune.cross_entropy", watched)
    training = attrs.evolve(SGD, epochs=epochs)
    prune(make_run(training=training), images, rate=0.9, every=every)
    p, count = 1 - 0.1 ** (1 / n), len(weights(ToyClassifier()))
    steps = -(-len(images.retain) // 4)
    done = [epoch // every + 1 for epoch in range(epochs) for _ in range(steps)]
    assert done[-1] == n
    assert seen == [count - math.floor((1 - p) ** k * count + 1e-9) for k in done]


@pytest.mark.parametrize("layers", ["all", "convolution"])
def test_the_smallest_weights_of_all_layers_together_are_zeroed(layers, make_run, images):
    model, edit = prune(make_run(training=attrs.evolve(SGD, lr=1e-9)), images, rate=0.6, layers=layers)
    sizes = weights(model, layers).abs()
    smallest = sizes.argsort()[: len(sizes) - math.floor(0.4 * len(sizes))]
    assert set(zeros(model, edit, layers).nonzero().flatten().tolist()) == set(smallest.tolist())
    assert edit.facts["pruned_weights"] == len(smallest) == int(zeros(model, edit).sum())
    with apply_edit(model.network, edit):
        assert all(bool(p.all()) for name, p in model.network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_in_the_edit_exactly_the_rate_is_zero(optimizer, make_run, images):
    """Momentum and weight decay bring nothing back."""
    training = attrs.evolve(SGD, epochs=7, optimizer=optimizer, lr=0.02)
    model, edit = prune(make_run(training=training), images)
    zero = zeros(model, edit)
    assert int(zero.sum()) == len(zero) - math.floor(0.05 * len(zero)) == edit.facts["pruned_weights"]


def test_what_is_left_takes_steps_down_the_loss_of_the_pruned_network(make_run, images):
    run = make_run(training=attrs.evolve(SGD, batch_size=100, weight_decay=0.0))
    model, edit = prune(run, images, rate=0.5)
    pruned = ToyClassifier()
    sizes = weights(pruned).abs()
    least = sizes.sort(descending=True).values[math.floor(0.5 * len(sizes)) - 1]
    named = dict(pruned.network.named_parameters())
    with torch.no_grad():
        for name in (f"classifier.{layer}.weight" for layer in LAYERS["all"]):
            named[name].mul_(named[name].abs() >= least)
    left = {name: p.detach() != 0 for name, p in named.items()}
    rows = tuple(range(len(images.retain)))
    batch = Batch(images.retain, rows, 0, rows, run, torch.device("cpu"), (0,) * len(rows))
    for p in named.values():
        p.requires_grad_(True)
    gradients = torch.autograd.grad(cross_entropy(pruned, batch), list(named.values()))
    with apply_edit(model.network, edit):
        for (name, p), gradient in zip(named.items(), gradients, strict=True):
            expected = (p - 0.1 * gradient).detach() * left[name]
            torch.testing.assert_close(model.network.get_parameter(name).detach(), expected, atol=1e-6, rtol=1e-5)


def test_a_later_pruning_looks_at_the_weights_as_trained():
    w = torch.tensor([4.0, 3.0, 2.0, 1.0])
    pruning = Pruning(PruningConfig(rate=0.75, times=2, every=2), {"w": w})
    pruning.prepare(None, None, None, None)
    assert w.tolist() == [4.0, 3.0, 0.0, 0.0]
    w += torch.tensor([-3.0, 0.0, 9.0, 9.0])
    pruning.after_step(None)
    assert w.tolist() == [1.0, 3.0, 0.0, 0.0]
    pruning.after_step(None)
    assert w.tolist() == [0.0, 3.0, 0.0, 0.0]
    assert pruning.zeroed == 3


def test_a_weight_that_is_no_number_stays_for_the_loss_to_tell():
    w = torch.tensor([float("nan"), 3.0, float("inf"), 1.0])
    Pruning(PruningConfig(rate=0.5, times=1, every=1), {"w": w}).prepare(None, None, None, None)
    assert w[1] == w[3] == 0.0
    assert bool(w[0].isnan())
    assert bool(w[2].isinf())


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_an_interrupted_training_goes_on_with_its_zeros(stop, make_run, images):
    """Two steps per epoch: interrupted after the first pruning, just after the second one, and one step later."""
    training = attrs.evolve(SGD, epochs=4, checkpoint_every=1e9)
    _, whole = prune(make_run(training=training), images, rate=0.6)
    left = [stop]

    def interrupt(event):
        if "loss_retain" in event.values:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

    run = make_run(training=training, emit_event=interrupt)
    with pytest.raises(KeyboardInterrupt):
        prune(run, images, rate=0.6)
    run.release()
    run.resuming, run.emit_event = True, lambda event: None
    _, continued = prune(run, images, rate=0.6)
    assert edit_digest(continued) == edit_digest(whole)
    _, finished = prune(run, images, rate=0.6)
    assert finished.facts == whole.facts


def test_without_weights_to_prune_it_is_an_error(make_run, make_axis, images):
    lora, head = make_axis("parameters", "lora", rank=2), Full(FullConfig(targets=("fc",)))
    for parameters, layers, what in ((lora, "all", "linear layer"), (head, "convolution", "of a convolution")):
        run = make_run(training=SGD, parameters=parameters)
        with pytest.raises(PlanError, match=what) as caught:
            prune(run, images, layers=layers)
        assert caught.value.code == "VU-L129"
        run.release()


def test_of_the_layers_those_are_pruned_that_are_trained(make_run, images):
    run = make_run(training=SGD, parameters=Full(FullConfig(targets=("fc",))))
    model, edit = prune(run, images, rate=0.5)
    assert int(zeros(model, edit).sum()) == edit.facts["pruned_weights"] == model._classifier.fc.weight.numel() // 2
    assert set(edit.parts) <= {"classifier.fc.weight", "classifier.fc.bias"}


def test_a_hard_mask_has_the_last_word(make_run, make_axis, images):
    """No weight outside of the mask changes, so fewer are zero, and the edit tells how many."""
    mask = make_axis("regularizer", "hard-mask", density=0.5)
    model, edit = prune(make_run(training=attrs.evolve(SGD, epochs=3), regularizers=(mask,)), images)
    before = weights(model)
    with apply_edit(model.network, edit):
        changed = int((weights(model) != before).sum())
    zero = int(zeros(model, edit).sum())
    assert 0 < zero == edit.facts["pruned_weights"] <= changed <= 0.5 * edit.facts["tuned_parameters"]


def test_nothing_to_keep_is_an_error(make_run, images):
    with pytest.raises(UnlearnError) as caught:
        prune(make_run(training=SGD), attrs.evolve(images, retain=images.retain.take(())))
    assert caught.value.code == "VU-U034"


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": 1.0}, {"every": 0}, {"layers": "linear"}])
def test_settings_have_ranges(wrong):
    with pytest.raises(ValueError, match="must be"):
        FineTunePruneConfig(**wrong)
