"""Batch norm while a network trains: statistics move, are part of the edit, and the model comes back as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vu_baselines.batch_norm import MovingStatistics
from vu_baselines.fine_tune import FineTune, FineTuneConfig
from vu_baselines.fine_tune_prune import FineTunePrune, FineTunePruneConfig
from vu_baselines.gradient_ascent import GradientAscent, GradientAscentConfig
from vu_baselines.l1_sparse import L1Sparse, L1SparseConfig
from vu_baselines.rehearsal import Rehearsal, RehearsalConfig
from vu_baselines.retrain import Retrain, RetrainConfig
from vu_core import PlanError
from vu_core.adapters import Full, FullConfig, apply_edit, edit_digest
from vu_core.stages.guard import untouched
from vu_core.testing import ToyClassifier
from vu_core.training import Training

QUICK = Training(steps=4, batch_size=4, lr=1e-2)
STATISTICS = {"classifier.norm.running_mean", "classifier.norm.running_var"}


class Normed(nn.Module):
    """A convolution with batch norm, and a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def features(self, x):
        return torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


class NormedClassifier(ToyClassifier):
    """The toy with batch norm in its network; its statistics are odd enough to be recognised."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._classifier = Normed(len(self.classes)).requires_grad_(False).eval()
        self._classifier.norm.running_mean.fill_(0.25)
        self._classifier.norm.running_var.fill_(2.0)
        self.network = nn.ModuleDict({"classifier": self._classifier})

    def fresh(self, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return {f"classifier.{name}": t for name, t in Normed(len(self.classes)).state_dict().items()}


@pytest.fixture
def model():
    return NormedClassifier()


@pytest.fixture
def attached(model, make_run):
    """Trainable parameters with moving statistics on a model."""
    run = make_run()
    theta = MovingStatistics.of(run.parameterise(model), run)
    yield theta, model, run
    run.release()


def one_batch(theta, model, x):
    (within,) = theta.passes(0)
    with within:
        return model.logits(x)


def test_statistics_move_as_batch_norm_says(attached):
    theta, model, _ = attached
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one_batch(theta, model, x)
    seen = model._classifier.conv(x).transpose(0, 1).flatten(1)
    norm = model._classifier.norm
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.25 + 0.1 * seen.mean(1).detach())
    torch.testing.assert_close(norm.running_var, 0.9 * 2.0 + 0.1 * seen.var(1).detach())


def test_layers_normalise_by_the_batch_only_within_a_pass(attached):
    theta, model, _ = attached
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    stored = model.logits(x)
    inside = one_batch(theta, model, x)
    assert not torch.allclose(stored, inside)
    assert not model._classifier.norm.training
    once = model._classifier.norm.running_mean.clone()
    model.logits(x)
    assert torch.equal(model._classifier.norm.running_mean, once)


def test_the_base_has_stored_statistics_even_within_a_pass(attached):
    theta, model, _ = attached
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    stored = model.logits(x)
    (within,) = theta.passes(0)
    with within:
        model.logits(x)
        with theta.base(), theta.base():
            assert torch.equal(model.logits(x), stored)
        assert model._classifier.norm.training
        moved = model._classifier.norm.running_mean.clone()
    assert not torch.equal(moved, torch.full((4,), 0.25))
    assert torch.equal(model._classifier.norm.running_mean, moved)


def test_a_checkpoint_has_the_statistics(attached, make_run):
    theta, model, _ = attached
    one_batch(theta, model, torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    state = {name: tensor.clone() for name, tensor in theta.state().items()}
    other, run = NormedClassifier(), make_run()
    again = MovingStatistics.of(run.parameterise(other), run)
    again.load_state(state)
    assert torch.equal(other._classifier.norm.running_mean, model._classifier.norm.running_mean)
    assert torch.equal(other._classifier.norm.running_var, model._classifier.norm.running_var)
    run.release()


def test_a_network_without_batch_norm_is_left_as_it_is(make_run, classifier):
    run = make_run()
    theta = run.parameterise(classifier)
    assert MovingStatistics.of(theta, run) is theta
    run.release()


METHODS = [
    lambda mode: FineTune(FineTuneConfig(training=QUICK, batch_norm=mode)),
    lambda mode: L1Sparse(L1SparseConfig(training=QUICK, batch_norm=mode)),
    lambda mode: FineTunePrune(FineTunePruneConfig(training=QUICK, batch_norm=mode)),
    lambda mode: Rehearsal(RehearsalConfig(training=QUICK, batch_norm=mode)),
    lambda mode: Retrain(RetrainConfig(training=QUICK, batch_norm=mode)),
]


@pytest.mark.parametrize("method", METHODS, ids=["fine-tune", "l1-sparse", "fine-tune-prune", "rehearsal", "retrain"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_edit_has_statistics_and_the_model_none_of_them(method, mode, make_run, images, model):
    run = make_run(training=QUICK)
    with untouched(model.network, "the method"):
        edit = method(mode).unlearn(model, images, run)
    retrained = isinstance(method(mode), Retrain)
    assert (set(edit.parts) & STATISTICS == STATISTICS) == (mode == "train" or retrained)
    with apply_edit(model.network, edit):
        moved = model._classifier.norm.running_mean.clone()
    assert torch.equal(model._classifier.norm.running_mean, torch.full((4,), 0.25))
    assert torch.equal(moved, torch.zeros(4)) == (retrained and mode == "eval")


def test_with_the_edit_the_network_is_the_trained_one(make_run, images, model):
    """What is measured later is what was trained: the edit leaves nothing out."""
    run = make_run(training=QUICK)
    theta = MovingStatistics.of(run.parameterise(model), run)
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one_batch(theta, model, x)
    trained, edit = model.logits(x), theta.edit()
    run.release()
    with apply_edit(model.network, edit):
        assert torch.equal(model.logits(x), trained)


def test_forgetting_alone_keeps_the_statistics(make_run, images, model):
    edit = GradientAscent(GradientAscentConfig()).unlearn(model, images, make_run(training=QUICK))
    assert edit.parts
    assert not set(edit.parts) & STATISTICS


def test_an_interrupted_training_goes_on_with_its_statistics(make_run, images):
    def unlearn(**fields):
        run = make_run(training=Training(steps=4, batch_size=4, lr=1e-2, checkpoint_every=0), **fields)
        return run, FineTune(FineTuneConfig()).unlearn(NormedClassifier(), images, run)

    left = iter([False, False, True])

    def interrupt(event):
        if "loss_retain" in event.values and next(left, False):
            raise KeyboardInterrupt

    _, whole = unlearn()
    stopped = make_run(training=Training(steps=4, batch_size=4, lr=1e-2, checkpoint_every=0), emit_event=interrupt)
    with pytest.raises(KeyboardInterrupt):
        FineTune(FineTuneConfig()).unlearn(NormedClassifier(), images, stopped)
    stopped.release()
    stopped.resuming, stopped.emit_event = True, lambda event: None
    assert edit_digest(FineTune(FineTuneConfig()).unlearn(NormedClassifier(), images, stopped)) == edit_digest(whole)


# Retraining


def test_retraining_starts_from_fresh_weights(make_run, images, model):
    """One tiny step: what is left of the trained weights is nothing."""
    run = make_run(training=Training(steps=1, batch_size=4, lr=1e-9, weight_decay=0.0))
    edit = Retrain(RetrainConfig()).unlearn(model, images, run)
    fresh = model.fresh(run.draw_seed("fresh weights"))
    with apply_edit(model.network, edit):
        for name, p in model.network.named_parameters():
            torch.testing.assert_close(p.detach(), fresh[name], atol=1e-6, rtol=0)


def test_retraining_never_sees_the_forget_examples(make_run, images, model):
    edits = []
    for table in (images.forget, images.forget.with_tensors(pixels=torch.zeros_like(images.forget.tensors["pixels"]))):
        changed = type(images)(table, images.retain, images.validation_forget, images.validation_retain)
        edits.append(edit_digest(Retrain(RetrainConfig()).unlearn(model, changed, make_run(training=QUICK))))
    assert edits[0] == edits[1]


@pytest.mark.parametrize("parameters", ["lora", "targets"])
def test_retraining_a_part_is_refused(parameters, make_run, make_axis, images, model):
    chosen = make_axis("parameters", "lora") if parameters == "lora" else Full(FullConfig(targets=("fc",)))
    run = make_run(training=QUICK, parameters=chosen)
    with pytest.raises(PlanError, match="anew") as caught:
        Retrain(RetrainConfig()).unlearn(model, images, run)
    assert caught.value.code == "VU-L116"
    run.release()
