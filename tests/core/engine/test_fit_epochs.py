"""What an epoch is, how the learning rate ends, which tensors decay, and numbers that change from task to task."""

import attrs
import pytest
import torch
from engine_toys import toy_data, toy_losses, toy_model, toy_run

from vu_core.adapters import Full, FullConfig, Lora, LoraConfig
from vu_core.errors import ConfigError
from vu_core.setting import setting
from vu_core.training import (
    From,
    Schedule,
    Training,
    epoch_steps,
    fit,
    learning_rate,
    planned_steps,
    steps_per_epoch,
    total_steps,
    value_at,
)


def test_an_epoch_is_a_pass_over_the_side_that_is_named(tmp_path):
    data = toy_data(4, 10)
    forget = Training(epochs=3, batch_size=2)
    retain = Training(epochs=3, batch_size=2, epoch_of="retain")
    for training, each in ((forget, 2), (retain, 5)):
        run = toy_run(tmp_path, training=training)
        assert steps_per_epoch(data, run) == each
        assert total_steps(data, run) == 3 * each


def test_without_retain_examples_an_epoch_is_a_pass_over_the_forget_ones():
    assert epoch_steps(Training(epochs=1, batch_size=2, epoch_of="retain"), 7) == 4


def test_retain_only_still_passes_over_the_longer_side():
    training = Training(epochs=2, batch_size=2, exhausted="retain_only", epoch_of="forget")
    assert planned_steps(training, 4, n_retain=10) == 10


class Asking:
    """A regularizer that keeps what it hears of the steps."""

    side = "outside"

    def prepare(self, model, theta, data, run):
        self.heard = (len(data.forget), total_steps(data, run), steps_per_epoch(data, run))

    def penalty(self):
        return None

    def after_step(self, optimizer):
        pass

    def state(self):
        return {}


def test_a_regularizer_hears_the_steps_of_its_fit_whatever_it_is_prepared_on(tmp_path):
    data, asking = toy_data(3, 10), Asking()
    training = Training(epochs=2, batch_size=5, epoch_of="retain")
    run = toy_run(tmp_path, training=training, parameters=Full(FullConfig()), regularizers=(asking,))
    model = toy_model()
    theta = run.parameterise(model)
    assert total_steps(data, run) == 8  # of both sides three at a time
    alone = attrs.evolve(data, forget=data.forget.take(()))
    fit(theta, toy_losses(model), alone, run, regularizer_data=data)
    assert asking.heard == (3, 4, 2)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_learning_rate_cannot_fall_to_a_larger_one(schedule):
    with pytest.raises(ValueError, match=r"cannot fall from lr = 0\.001 to min_lr = 0\.01"):
        Training(steps=4, lr=1e-3, min_lr=1e-2, schedule=schedule)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_ends_at_its_least_value(schedule):
    training = Training(steps=100, lr=1.0, schedule=schedule, min_lr=0.25)
    assert learning_rate(training, 0, 100) == 1.0
    assert learning_rate(training, 50, 100) == pytest.approx(0.625)
    assert learning_rate(training, 100, 100) == pytest.approx(0.25)


def test_a_constant_learning_rate_knows_no_least_value():
    assert learning_rate(Training(steps=4, lr=1.0, schedule="constant", min_lr=2.0), 3, 4) == 1.0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_tensors_of_two_dimensions_decay(optimizer, tmp_path):
    """With losses that give no gradient at all to most tensors, what moves them is the decay alone."""

    def trained(decay_vectors):
        training = Training(
            steps=1, lr=0.1, weight_decay=0.5, decay_vectors=decay_vectors, optimizer=optimizer, schedule="constant"
        )
        model = toy_model()
        run = toy_run(tmp_path / f"{optimizer}{decay_vectors}", training=training, parameters=Full(FullConfig()))
        theta = run.parameterise(model)

        def still(batches):
            return {side: sum((p * 0).sum() for p in theta.parameters()) for side in batches}

        before = {name: p.detach().clone() for name, p in theta.named_parameters()}
        with torch.no_grad():
            for p in theta.parameters():
                p.fill_(1.0)
        fit(theta, still, toy_data(), run)
        return {name: bool((p.detach() == 1).all()) for name, p in theta.named_parameters()}, before

    kept, shapes = trained(False)
    assert kept == {name: tensor.dim() < 2 for name, tensor in shapes.items()}
    assert set(kept.values()) == {True, False}
    assert not any(trained(True)[0].values())


def test_optimiser_state_of_both_groups_is_resumed(tmp_path):
    training = Training(steps=4, lr=0.02, decay_vectors=False, weight_decay=0.3, checkpoint_every=0)

    def trained(folder, stop_at=None, resuming=False):
        def watch(event):
            if event.type == "progress" and event.values["step"] == stop_at:
                raise KeyboardInterrupt

        model = toy_model()
        run = toy_run(folder, training=training, parameters=Full(FullConfig()), emit_event=watch, resuming=resuming)
        theta = run.parameterise(model)
        try:
            fit(theta, toy_losses(model), toy_data(), run)
        except KeyboardInterrupt:
            return None
        return {name: tensor.clone() for name, tensor in theta.state().items()}

    whole = trained(tmp_path / "whole")
    assert trained(tmp_path / "cut", stop_at=2) is None
    resumed = trained(tmp_path / "cut", resuming=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_kaiming_draws_uniformly_up_to_one_over_the_root_of_the_width(tmp_path):
    model = toy_model()
    theta = Lora(LoraConfig(rank=64, targets=("to_q",), init="kaiming")).attach(model, toy_run(tmp_path))
    a = next(tensor.detach() for name, tensor in theta.named_parameters() if name.endswith(".A"))
    bound = a.shape[1] ** -0.5
    assert 0.9 * bound < float(a.abs().max()) <= bound
    assert float(a.square().mean()) == pytest.approx(bound**2 / 3, rel=0.2)


def test_numbers_per_task_and_from_an_epoch_on():
    assert [value_at((0.2, 0.25), task=task) for task in (0, 1)] == [0.2, 0.25]
    assert [value_at(From(20, 0.01), epoch=epoch) for epoch in (0, 19, 20, 21)] == [0, 0, 0.01, 0.01]
    assert value_at(From(2, 1.0, before=3.0), epoch=1) == 3.0
    assert value_at(0.5, task=7, epoch=9) == 0.5


def test_a_list_that_is_too_short_is_told():
    with pytest.raises(ConfigError, match="2 tasks, but this is task 3") as error:
        value_at((0.2, 0.25), task=2, name="unlearner.forget_weight")
    assert (error.value.code, error.value.where) == ("VU-C054", "unlearner.forget_weight")


def test_a_step_function_keeps_to_the_range_of_its_setting():
    @attrs.frozen
    class Config:
        at_least: Schedule = setting(1.0, help="", ge=0)
        above: Schedule = setting(1.0, help="", gt=0)

    assert Config(at_least=From(2, 0.0), above=From(2, 1.0)).above.before == 0  # nothing acts until then
    with pytest.raises(ValueError, match="must be >= 0, but is -1"):
        Config(at_least=From(2, -1.0))
    with pytest.raises(ValueError, match="must be > 0, but is 0"):
        Config(above=From(2, 0.0))
    with pytest.raises(ValueError, match="must be > 0, but is -2"):
        Config(above=From(2, 1.0, before=-2.0))
    with pytest.raises(ValueError, match=r"must be >= 0, but is -0\.5"):
        Config(at_least=(0.5, -0.5))
