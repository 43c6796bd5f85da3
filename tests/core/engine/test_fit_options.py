"""Optimizers, exhausted sides, steps that a weighting leaves out, and conflicts under linear weightings."""

import attrs
import pytest
import torch
from engine_toys import toy_data, toy_losses, toy_model, toy_run

from vu_core.cost import steps_of
from vu_core.training import Training, calls_per_step, fit, planned_steps, total_steps
from vu_core.training.order import Order
from vu_core.weightings import ForgetOnly, ForgetOnlyConfig, Simple, SimpleConfig

TRAINING = Training(steps=4, lr=0.02, batch_size=4, max_grad_norm=0)


def trained(folder, *, training=TRAINING, data=None, losses=None, **settings):
    """Return the trained tensors and the events."""
    events = []
    model = toy_model()
    run = toy_run(folder, training=training, emit_event=events.append, **settings)
    theta = run.parameterise(model)
    fit(theta, (losses or toy_losses)(model), data or toy_data(), run)
    return {name: tensor.clone() for name, tensor in theta.state().items()}, events


def told(events, kind):
    return [event.values for event in events if event.type == kind]


def alike(a, b, tolerance=0.0):
    return all(torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance) for name in a)


# ---- sgd ------------------------------------------------------------------------------------------------------------


def test_sgd_is_momentum_and_coupled_decay(tmp_path):
    training = Training(
        steps=2, lr=0.1, batch_size=2, schedule="constant", weight_decay=0.2, max_grad_norm=0, optimizer="sgd"
    )
    data, model = toy_data(2, 2), toy_model()
    run = toy_run(tmp_path, training=training)
    theta = run.parameterise(model)
    own = [tensor.detach().clone() for tensor in theta.parameters()]
    order = Order({"forget": data.forget, "retain": data.retain}, run, "main", 2, 1, torch.device("cpu"))
    velocity = [torch.zeros_like(tensor) for tensor in own]
    for step in range(2):
        with torch.no_grad():
            for tensor, value in zip(theta.parameters(), own, strict=True):
                tensor.copy_(value)
        values = toy_losses(model)(next(order.step(step)).batches)
        gradients = torch.autograd.grad(values["forget"] + values["retain"], theta.parameters())
        for i, g in enumerate(gradients):
            velocity[i] = 0.9 * velocity[i] + g + 0.2 * own[i]
            own[i] = own[i] - 0.1 * velocity[i]
    theta.detach()
    found, _ = trained(tmp_path / "fit", training=training, data=data)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found.values(), own, strict=True))


def test_a_resumed_sgd_run_keeps_its_momentum(tmp_path):
    training = attrs.evolve(TRAINING, optimizer="sgd", checkpoint_every=0)
    whole, _ = trained(tmp_path / "whole", training=training)

    def stop(event):
        if event.type == "progress" and event.values["step"] == 2:
            raise KeyboardInterrupt

    model = toy_model()
    run = toy_run(tmp_path / "cut", training=training, emit_event=stop)
    with pytest.raises(KeyboardInterrupt):
        fit(run.parameterise(model), toy_losses(model), toy_data(), run)
    resumed, _ = trained(tmp_path / "cut", training=training, resuming=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


# ---- exhausted ------------------------------------------------------------------------------------------------------


def order(folder, exhausted, n_forget=5, n_retain=11, batch=2):
    data = toy_data(n_forget, n_retain)
    sides = {"forget": data.forget, "retain": data.retain}
    return Order(sides, toy_run(folder), "main", batch, 1, torch.device("cpu"), exhausted)


def test_an_epoch_ends_with_the_retain_examples_alone(tmp_path):
    cycle = order(tmp_path, "retain_only")
    sides = [sorted(next(cycle.step(step)).batches) for step in range(12)]
    epoch = [["forget", "retain"]] * 3 + [["retain"]] * 3
    assert sides == epoch * 2


def test_the_forget_examples_go_on_where_they_stopped(tmp_path):
    alone, cycle = order(tmp_path, "retain_only"), order(tmp_path, "cycle")
    with_forget = [step for step in range(12) if alone.rows("forget", step)]
    assert [alone.rows("forget", step) for step in with_forget] == [cycle.rows("forget", step) for step in range(6)]
    assert [alone.rows("retain", step) for step in range(12)] == [cycle.rows("retain", step) for step in range(12)]


@pytest.mark.parametrize(("n_forget", "n_retain"), [(11, 5), (6, 6)])
def test_no_side_is_ever_absent_where_the_forget_examples_last(n_forget, n_retain, tmp_path):
    cycle = order(tmp_path, "retain_only", n_forget, n_retain)
    assert all(len(next(cycle.step(step)).batches) == 2 for step in range(20))


def test_steps_of_an_epoch_that_retains_alone():
    alone = Training(epochs=2, batch_size=2, exhausted="retain_only")
    assert planned_steps(alone, 5, n_retain=11) == 12
    assert planned_steps(alone, 11, n_retain=5) == 12
    assert planned_steps(attrs.evolve(alone, exhausted="cycle"), 5, n_retain=11) == 6


@pytest.mark.parametrize("weighting", [Simple(SimpleConfig()), None])
def test_a_run_counts_them_and_trains_on_them(weighting, tmp_path):
    training = Training(epochs=1, batch_size=2, lr=0.02, exhausted="retain_only")
    data = toy_data(3, 8)
    run = toy_run(tmp_path, training=training, weighting=weighting)
    assert total_steps(data, run) == 4
    _, events = trained(tmp_path / "fit", training=training, data=data, weighting=weighting)
    seen = [sorted(key for key in values if key.startswith("loss")) for values in told(events, "progress")]
    assert seen == [["loss_forget", "loss_retain"]] * 2 + [["loss_retain"]] * 2


# ---- passes ---------------------------------------------------------------------------------------------------------


def test_rows_know_which_pass_they_belong_to(tmp_path):
    cycle = order(tmp_path, "cycle", n_forget=3, n_retain=4)
    batches = [next(cycle.step(step)).batches for step in range(3)]
    assert [batch["forget"].passes for batch in batches] == [(0, 0), (0, 1), (1, 1)]
    assert [batch["retain"].passes for batch in batches] == [(0, 0), (0, 0), (1, 1)]


# ---- conflicts under linear weightings ------------------------------------------------------------------------------


def test_conflicts_can_be_told_of_a_linear_weighting(tmp_path):
    weighting = Simple(SimpleConfig(forget_weight=0.3))
    plain, silent = trained(tmp_path / "plain", weighting=weighting)
    apart, events = trained(
        tmp_path / "apart", weighting=weighting, training=attrs.evolve(TRAINING, gradient_conflict=True)
    )
    assert told(silent, "gradient_conflict") == []
    conflicts = told(events, "gradient_conflict")
    assert [c["step"] for c in conflicts] == [1, 2, 3, 4]
    assert all((c["a_r"], c["a_f"], c["flags"]) == (1.0, 0.3, []) and -1 <= c["cos_rf"] <= 1 for c in conflicts)
    assert alike(plain, apart, 1e-5)


def test_a_side_that_the_weighting_ignores_is_looked_at_all_the_same(tmp_path):
    training = attrs.evolve(TRAINING, gradient_conflict=True)
    weighting = ForgetOnly(ForgetOnlyConfig())
    plain, _ = trained(tmp_path / "plain", weighting=weighting)
    apart, events = trained(tmp_path / "apart", weighting=weighting, training=training)
    assert all(c["cos_rf"] is not None and c["cos_g_f"] == pytest.approx(1) for c in told(events, "gradient_conflict"))
    assert alike(plain, apart)
    run = toy_run(tmp_path, training=training, weighting=weighting)
    assert calls_per_step(toy_data(), run) == (("forget",), ("retain",))


def test_what_the_ignored_side_alone_touches_stays_as_it_is(tmp_path):
    def losses(model):
        inner, net = toy_losses(model), model.network["unet"]

        def early(batch):
            """The forget loss does not reach the last map."""
            return net.attn["to_q"](torch.tanh(net.conv(batch["x"])).mean(dim=(2, 3))).square().mean()

        return lambda batches: {s: early(b) if s == "forget" else inner({s: b})[s] for s, b in batches.items()}

    weighting = ForgetOnly(ForgetOnlyConfig())
    told_of, decaying = attrs.evolve(TRAINING, gradient_conflict=True), {"weight_decay": 0.5}
    settings = {"weighting": weighting, "losses": losses}
    plain, _ = trained(tmp_path / "plain", training=attrs.evolve(TRAINING, **decaying), **settings)
    apart, events = trained(tmp_path / "apart", training=attrs.evolve(told_of, **decaying), **settings)
    assert alike(plain, apart)
    assert all(c["norm_r"] > 0 for c in told(events, "gradient_conflict"))


@attrs.define
class Fixed:
    """Has the same coefficients at every step."""

    pair: tuple
    linear = False

    def coefficients(self, gram, losses, state):
        state["flags"] = []
        return self.pair


@pytest.mark.parametrize("factor", [1 / 3, 3.0, 7.0, 10.0])
def test_an_update_that_cancels_out_has_no_direction(factor, tmp_path):
    def opposed(model):
        def loss():
            return model.network["unet"](torch.ones(1, 2, 4, 4))[0, 0]

        return lambda batches: {side: (-factor if side == "retain" else 1.0) * loss() for side in batches}

    training = Training(steps=1, lr=1e-3, batch_size=2)
    _, events = trained(tmp_path, training=training, losses=opposed, weighting=Fixed((1.0, factor)))
    [conflict] = told(events, "gradient_conflict")
    assert conflict["cos_rf"] == pytest.approx(-1.0)
    assert (conflict["cos_g_r"], conflict["cos_g_f"]) == (None, None)


# ---- steps that are left out ----------------------------------------------------------------------------------------


@attrs.define
class LeaveOut:
    """Leaves out the steps of these numbers."""

    left_out: tuple
    linear = False
    calls: int = 0

    def coefficients(self, gram, losses, state):
        self.calls += 1
        out = self.calls in self.left_out
        state["flags"] = ["left_out"] if out else []
        return (0.0, 0.0) if out else (1.0, 1.0)


def test_a_step_that_is_left_out_moves_nothing(tmp_path):
    training = Training(steps=1, lr=0.5, batch_size=2, weight_decay=0.9)
    start = {name: t.clone() for name, t in toy_run(tmp_path).parameterise(toy_model()).state().items()}
    found, events = trained(tmp_path, training=training, weighting=LeaveOut((1,)))
    assert all(torch.equal(found[name], start[name]) for name in start)
    [conflict] = told(events, "gradient_conflict")
    assert (conflict["flags"], conflict["a_r"], conflict["a_f"]) == (["left_out"], 0.0, 0.0)
    assert conflict["norm_r"] > 0
    assert conflict["cos_g_r"] is None
    assert [values["step"] for values in told(events, "progress")] == [1]


def test_the_steps_after_it_go_on(tmp_path):
    found, events = trained(tmp_path, weighting=LeaveOut((2,)))
    whole, _ = trained(tmp_path / "whole", weighting=LeaveOut(()))
    assert [c["flags"] for c in told(events, "gradient_conflict")] == [[], ["left_out"], [], []]
    assert not alike(found, whole)


def test_gradients_that_are_not_finite_may_be_left_out(tmp_path):
    def spoiled(model):
        inner = toy_losses(model)
        return lambda b: {s: v * float("nan") if s == "forget" else v for s, v in inner(b).items()}

    found, events = trained(tmp_path, losses=spoiled, weighting=LeaveOut((1, 2, 3, 4)))
    assert all(tensor.isfinite().all() for tensor in found.values())
    conflict = told(events, "gradient_conflict")[0]
    assert (conflict["cos_rf"], conflict["norm_f"]) == (None, None)
    assert conflict["norm_r"] > 0


def test_the_cost_of_a_run_counts_the_same_steps():
    class Plain:
        pass

    config, manifest, unlearner = Plain(), Plain(), Plain()
    unlearner.config = Plain()
    unlearner.config.training = Training(epochs=1, batch_size=2, exhausted="retain_only")
    config.unlearner, config.weighting = unlearner, None
    manifest.counts = {"train/forget": 3, "train/retain": 8}
    assert steps_of(config, manifest) == 4
