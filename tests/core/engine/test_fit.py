import math
from contextlib import contextmanager
from types import SimpleNamespace

import attrs
import pytest
import torch
from engine_toys import Pull, ToyModel, toy_data, toy_losses, toy_model, toy_run
from torch import nn

from vu_core import ConfigError, Event, Examples, ForgetRetain, UnlearnError
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig
from vu_core.cost import steps_of
from vu_core.training import Training, calls_per_step, fit, learning_rate, planned_steps, total_steps
from vu_core.training.loop import _seed_global
from vu_core.training.order import Order
from vu_core.weightings import ForgetOnly, ForgetOnlyConfig, Simple, SimpleConfig

TRAINING = Training(steps=4, lr=0.02, batch_size=4, max_grad_norm=0)


def state_after(folder, *, losses=None, data=None, model=None, **settings):
    model = model or toy_model()
    run = toy_run(folder, **{"training": TRAINING, **settings})
    theta = run.parameterise(model)
    fit(theta, (losses or toy_losses)(model), data or toy_data(), run)
    state = {name: tensor.clone() for name, tensor in theta.state().items()}
    theta.detach()
    return state


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def close(a, b, tolerance):
    return all(torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance) for name in a)


@attrs.define
class Constant:
    """The rule `simple`, but not declared linear: it is given both gradients."""

    retain: float = 1.0
    forget: float = 1.0
    as_tensors: bool = False
    linear = False
    calls: list = attrs.field(factory=list)

    def coefficients(self, gram, losses, state):
        self.calls.append((gram.clone(), dict(losses)))
        state["count"] = state.get("count", 0) + 1
        pair = (self.retain, self.forget)
        return tuple(map(torch.tensor, pair)) if self.as_tensors else pair


# ---- order ----------------------------------------------------------------------------------------------------------


def order(folder, n_forget=5, n_retain=7, batch=2, portions=1, phase="main"):
    data = toy_data(n_forget, n_retain)
    sides = {"forget": data.forget, "retain": data.retain}
    return Order(sides, toy_run(folder), phase, batch, portions, torch.device("cpu"))


def test_every_pass_sees_every_example_once(tmp_path):
    cycle = order(tmp_path)
    for side, n in (("forget", 5), ("retain", 7)):
        rows = [row for step in range(35) for row in cycle.rows(side, step)]
        passes = [rows[i : i + n] for i in range(0, 70, n)]
        assert all(sorted(one) == list(range(n)) for one in passes)
        assert len({tuple(one) for one in passes}) > 1


def test_the_order_needs_no_memory(tmp_path):
    ahead, late = order(tmp_path), order(tmp_path)
    for step in range(20):
        ahead.rows("forget", step)
    assert ahead.rows("forget", 20) == late.rows("forget", 20)
    assert ahead.rows("forget", 3) == late.rows("forget", 3)


def test_both_sides_are_cut_to_the_smaller_one(tmp_path):
    cycle = order(tmp_path, n_forget=3, n_retain=7, batch=4)
    portions = list(cycle.step(0))
    assert cycle.size == 3
    assert [(len(p.batches["forget"]), len(p.batches["retain"]), p.share) for p in portions] == [(3, 3, 1.0)]


def test_portions_cover_the_batch_over_all_processes(tmp_path):
    cycle = order(tmp_path, n_forget=7, n_retain=9, batch=2, portions=4)
    found = [(process, portion) for process in range(2) for portion in cycle.step(1, process, 2)]
    places = sorted(i for _, portion in found for i in portion.batches["retain"].positions)
    assert places == list(range(7))
    assert sum(portion.share for _, portion in found) == pytest.approx(1.0)
    whole = cycle.rows("retain", 1)
    for _, portion in found:
        batch = portion.batches["retain"]
        assert [whole[i] for i in batch.positions] == list(batch.rows)


def test_sides_and_phases_have_their_own_noise_and_order(tmp_path):
    main, second = order(tmp_path), order(tmp_path, phase="second")
    a, b = next(main.step(0)).batches, next(second.step(0)).batches
    assert not torch.equal(a["forget"].normal("noise", (3,)), a["retain"].normal("noise", (3,)))
    assert not torch.equal(a["forget"].normal("noise", (3,)), b["forget"].normal("noise", (3,)))
    assert [main.rows("retain", s) for s in range(9)] != [second.rows("retain", s) for s in range(9)]


# ---- the step -------------------------------------------------------------------------------------------------------


def test_a_step_is_adamw_on_the_weighted_gradient(tmp_path):
    model, data = toy_model(), toy_data(2, 2)
    training = Training(steps=1, lr=0.1, batch_size=2, schedule="constant", weight_decay=0.3, max_grad_norm=0.05)
    run = toy_run(tmp_path, training=training, weighting=Simple(SimpleConfig(forget_weight=0.3, retain_weight=0.7)))
    theta = run.parameterise(model)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.add_(0.05)
    start = [tensor.detach().clone() for tensor in theta.parameters()]
    batches = next(
        Order({"forget": data.forget, "retain": data.retain}, run, "main", 2, 1, torch.device("cpu")).step(0)
    ).batches
    values = toy_losses(model)(batches)
    gradients = torch.autograd.grad(0.3 * values["forget"] + 0.7 * values["retain"], theta.parameters())
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > 0.05
    clipped = [g * (0.05 / norm) for g in gradients]
    # The first step of AdamW: both moments are corrected to g and g^2.
    expected = [w * (1 - 0.1 * 0.3) - 0.1 * g / (g.abs() + 1e-8) for w, g in zip(start, clipped, strict=True)]
    fit(theta, toy_losses(model), data, run)
    for got, want in zip(theta.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_two_steps_are_adamw_with_the_constants_of_the_table(size, tmp_path):
    """Moments 0.9 and 0.999, eps 1e-8, decay off the weight and not in the gradient; small gradients show the eps."""
    model, data = toy_model(), toy_data(2, 2)
    training = Training(steps=2, lr=0.1, batch_size=2, schedule="constant", weight_decay=0.3, max_grad_norm=0.0)
    run = toy_run(tmp_path, training=training)
    theta, losses = run.parameterise(model), toy_losses(model)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.add_(0.05)
    weights = [tensor.detach().clone().double() for tensor in theta.parameters()]
    gradients = []

    def watched(batches):
        found = {side: size * loss for side, loss in losses(batches).items()}
        gradients.append(torch.autograd.grad(sum(found.values()), theta.parameters(), retain_graph=True))
        return found

    fit(theta, watched, data, run)
    first, second = ([g.double() for g in step] for step in gradients)
    for w, g1, g2, got in zip(weights, first, second, theta.parameters(), strict=True):
        m, v = 0.1 * g1, 0.001 * g1**2
        w = w * (1 - 0.1 * 0.3) - 0.1 * (m / 0.1) / ((v / 0.001).sqrt() + 1e-8)
        m, v = 0.9 * m + 0.1 * g2, 0.999 * v + 0.001 * g2**2
        w = w * (1 - 0.1 * 0.3) - 0.1 * (m / (1 - 0.9**2)) / ((v / (1 - 0.999**2)).sqrt() + 1e-8)
        torch.testing.assert_close(got.detach().double(), w, rtol=1e-4, atol=2e-6)


def test_clipping_clips(tmp_path):
    def huge(model):
        inner = toy_losses(model)
        return lambda batches: {side: 1e6 * loss for side, loss in inner(batches).items()}

    events: list[Event] = []
    training = attrs.evolve(TRAINING, max_grad_norm=1.0)
    seen: list[float] = []

    class Watch:
        side = "outside"

        def prepare(self, *_):
            pass

        def penalty(self):
            return None

        def after_step(self, optimizer):
            moments = [s["exp_avg"] for s in optimizer.state.values()]
            seen.append(float(torch.cat([m.flatten() for m in moments]).norm()) / (1 - 0.9 ** (len(seen) + 1)))

        def state(self):
            return {}

    state_after(tmp_path, losses=huge, training=training, regularizers=(Watch(),), emit_event=events.append)
    assert all(e.values["grad_norm"] > 1e3 for e in events if e.type == "progress")
    assert max(seen) <= 1.0 + 1e-5


@pytest.mark.parametrize("as_tensors", [False, True])
def test_one_joint_pass_equals_one_pass_per_side(as_tensors, tmp_path):
    joint = state_after(tmp_path / "a", weighting=Simple(SimpleConfig(forget_weight=0.3)))
    rule = Constant(1.0, 0.3, as_tensors)
    apart = state_after(tmp_path / "b", weighting=rule)
    assert close(joint, apart, 2e-5)
    gram, losses = rule.calls[0]
    assert gram.dtype == torch.float64
    assert set(losses) == {"retain", "forget"}
    assert not any(loss.requires_grad for loss in losses.values())


def test_gram_and_losses_are_those_of_the_sides(tmp_path):
    rule, model, data = Constant(), toy_model(), toy_data(2, 2)
    run = toy_run(tmp_path, training=Training(steps=1, batch_size=2), weighting=rule)
    theta = run.parameterise(model)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.add_(0.05)
    batches = next(
        Order({"forget": data.forget, "retain": data.retain}, run, "main", 2, 1, torch.device("cpu")).step(0)
    ).batches
    values = toy_losses(model)(batches)
    flat = {
        side: torch.cat([g.flatten() for g in torch.autograd.grad(values[side], theta.parameters())]).double()
        for side in ("retain", "forget")
    }
    fit(theta, toy_losses(model), data, run)
    gram, losses = rule.calls[0]
    r, f = flat["retain"], flat["forget"]
    torch.testing.assert_close(gram, torch.stack([r @ r, r @ f, r @ f, f @ f]).reshape(2, 2), rtol=1e-5, atol=1e-9)
    assert losses["forget"].item() == pytest.approx(values["forget"].item(), rel=1e-5)


@pytest.mark.parametrize("weighting", [Simple(SimpleConfig()), Constant()])
def test_sides_are_called_as_the_contract_says(weighting, tmp_path):
    calls = []

    def spy(model):
        inner = toy_losses(model)

        def losses(batches):
            calls.append(sorted(batches))
            return inner(batches)

        return losses

    state_after(tmp_path, losses=spy, weighting=weighting)
    expected = [["forget", "retain"]] * 4 if weighting.linear else [["forget"], ["retain"]] * 4
    assert calls == expected


@pytest.mark.parametrize("weighting", [ForgetOnly(ForgetOnlyConfig()), Simple(SimpleConfig(retain_weight=0.0))])
def test_a_weight_of_0_saves_the_side(weighting, tmp_path):
    calls = []

    def spy(model):
        inner = toy_losses(model)
        return lambda batches: calls.append(sorted(batches)) or inner(batches)

    state_after(tmp_path, losses=spy, weighting=weighting)
    assert calls == [["forget"]] * 4


def test_without_retain_examples_only_the_forget_side_trains(tmp_path):
    data = toy_data(5, 0)
    assert len(data.retain) == 0
    forget_only = state_after(tmp_path / "a", data=toy_data(5, 7), weighting=ForgetOnly(ForgetOnlyConfig()))
    assert equal(state_after(tmp_path / "b", data=data, weighting=Simple(SimpleConfig())), forget_only)
    assert close(state_after(tmp_path / "c", data=data, weighting=Constant()), forget_only, 1e-6)


@pytest.mark.parametrize("weighting", [Simple(SimpleConfig(forget_weight=0.3)), Constant(1.0, 0.3)])
def test_accumulation_of_k_is_a_batch_of_k(weighting, tmp_path):
    whole = state_after(tmp_path / "whole", training=TRAINING, weighting=weighting)
    for batch, accumulation in ((2, 2), (1, 4)):
        training = attrs.evolve(TRAINING, batch_size=batch, accumulation=accumulation)
        assert close(state_after(tmp_path / str(batch), training=training, weighting=weighting), whole, 2e-5)


def test_accumulation_weighs_uneven_portions_by_their_size(tmp_path):
    data = toy_data(3, 3)
    whole = state_after(tmp_path / "a", data=data, training=attrs.evolve(TRAINING, batch_size=3))
    parts = state_after(tmp_path / "b", data=data, training=attrs.evolve(TRAINING, batch_size=2, accumulation=2))
    assert close(parts, whole, 2e-5)


# ---- regularizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Simple(SimpleConfig(0.3, 0.5)), Constant(0.5, 0.3)])
@pytest.mark.parametrize(("side", "factor"), [("retain", 0.5), ("forget", 0.3), ("outside", 1.0)])
def test_a_penalty_joins_its_side(side, factor, rule, tmp_path):
    penalised = state_after(tmp_path / "a", weighting=rule, regularizers=(Pull(side),))
    strength = 5.0 * factor

    def by_hand(model):
        inner = toy_losses(model)

        def losses(batches):
            values = dict(inner(batches))
            if "forget" in values:
                values["forget"] = values["forget"] + strength / 0.3 / 2 * sum((t**2).sum() for t in tensors())
            return values

        return losses

    tensors = lambda: theta_tensors  # noqa: E731  filled once the factors exist
    model = toy_model()
    run = toy_run(tmp_path / "b", training=TRAINING, weighting=rule)
    theta = run.parameterise(model)
    theta_tensors = theta.parameters()
    fit(theta, by_hand(model), toy_data(), run)
    assert close(penalised, theta.state(), 5e-5)


def test_a_penalty_counts_once_per_step_however_many_portions(tmp_path):
    states = []
    for accumulation in (1, 4):
        training = attrs.evolve(TRAINING, batch_size=4 // accumulation, accumulation=accumulation)
        states.append(state_after(tmp_path / str(accumulation), training=training, regularizers=(Pull("retain"),)))
    assert close(*states, 2e-5)


def test_regularizers_are_prepared_on_the_untouched_model(tmp_path):
    model, pull = toy_model(), Pull("outside")
    untouched = model.network["unet"](toy_data().forget.tensors["x"])
    run = toy_run(tmp_path, training=TRAINING, regularizers=(pull,))
    theta = run.parameterise(model)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.add_(0.3)
    fit(theta, toy_losses(model), toy_data(), run)
    assert pull.prepared == 1
    assert torch.equal(pull.untouched, untouched)


def test_regularizers_are_prepared_on_the_data_they_are_given(tmp_path):
    model, pull = toy_model(), Pull("outside")
    run = toy_run(tmp_path, training=TRAINING, regularizers=(pull,))
    other = toy_data(forget=2)
    fit(run.parameterise(model), toy_losses(model), toy_data(), run, regularizer_data=other)
    assert pull.data is other


# ---- randomness -----------------------------------------------------------------------------------------------------


def test_the_seed_decides_and_the_global_generator_does_not(tmp_path):
    torch.manual_seed(1)
    first = state_after(tmp_path / "a")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert equal(state_after(tmp_path / "b"), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(state_after(tmp_path / "c", seed=4), first)


def test_the_generator_of_the_trained_device_is_seeded_and_not_that_of_the_current_one(monkeypatch):
    current, seeded = [0], []

    @contextmanager
    def entered(device):
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append((seed, current[-1])))
    with torch.random.fork_rng(devices=[]):
        _seed_global(5, torch.device("cuda:1"))
        assert torch.initial_seed() == 5
    assert seeded == [(5, 1)]


def test_dropout_draws_are_seeded_per_step(tmp_path):
    parameters = Lora(LoraConfig(rank=2, dropout=0.5, targets=("to_q", "conv")))
    torch.manual_seed(1)
    first = state_after(tmp_path / "a", parameters=parameters)
    torch.manual_seed(2)
    assert equal(state_after(tmp_path / "b", parameters=parameters), first)
    without = Lora(LoraConfig(rank=2, targets=("to_q", "conv")))
    assert not equal(state_after(tmp_path / "c", parameters=without), first)


def test_the_network_stays_in_eval_mode_and_grad_mode_stays(tmp_path):
    model = toy_model()
    state_after(tmp_path, model=model)
    assert not any(module.training for module in model.network.modules())
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


# ---- schedule and length --------------------------------------------------------------------------------------------


def test_schedules():
    def rates(**settings):
        return [learning_rate(Training(steps=6, lr=1.0, **settings), step, 6) for step in range(6)]

    assert rates(schedule="constant") == [1.0] * 6
    assert rates(schedule="linear") == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rates(schedule="cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)])
    assert rates(schedule="constant", warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert rates(schedule="linear", warmup_steps=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


def test_epochs_become_steps(tmp_path):
    assert planned_steps(Training(epochs=3, batch_size=2), 5) == 9
    assert planned_steps(Training(epochs=3, batch_size=2, accumulation=2), 5) == 6
    assert planned_steps(Training(epochs=1, batch_size=2), 8, processes=2) == 2
    assert planned_steps(Training(epochs=3, batch_size=8), 5) == 3
    assert planned_steps(Training(epochs=3, batch_size=8), 5, n_retain=2) == 9
    assert planned_steps(Training(epochs=3, batch_size=2), 5, n_retain=0) == 9
    assert planned_steps(Training(steps=4, batch_size=8), 5, n_retain=2) == 4
    events = []
    training = Training(epochs=2, batch_size=2)
    state_after(tmp_path, training=training, emit_event=events.append)
    assert [e.values["step"] for e in events if e.type == "progress"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("weighting", [None, Simple(SimpleConfig()), ForgetOnly(ForgetOnlyConfig())])
def test_an_epoch_shows_every_forget_example_also_beside_few_retain_examples(weighting, tmp_path):
    rows = []

    def watched(model):
        losses = toy_losses(model)

        def inner(batches):
            rows.extend(batches["forget"].rows)
            return losses(batches)

        return inner

    data, training = toy_data(forget=9, retain=2), Training(epochs=1, batch_size=4)
    state_after(tmp_path, losses=watched, data=data, training=training, weighting=weighting)
    assert set(rows) == set(range(9))
    steps = total_steps(data, toy_run(tmp_path, training=training, weighting=weighting))
    assert steps == (3 if isinstance(weighting, ForgetOnly) else 5)


def test_the_plan_counts_the_steps_that_are_taken(tmp_path):
    def chosen(weighting):
        return SimpleNamespace(entry=SimpleNamespace(load=lambda: type(weighting)), config=weighting.config)

    training, data = Training(epochs=2, batch_size=4), toy_data(forget=9, retain=2)
    manifest = SimpleNamespace(counts={"train/forget": 9, "train/retain": 2})
    for weighting in (
        Simple(SimpleConfig()),
        Simple(SimpleConfig(forget_weight=0.0)),
        Simple(SimpleConfig(retain_weight=0.0)),
        ForgetOnly(ForgetOnlyConfig()),
    ):
        unlearner = SimpleNamespace(config=SimpleNamespace(training=training))
        config = SimpleNamespace(unlearner=unlearner, weighting=chosen(weighting))
        run = toy_run(tmp_path, training=training, weighting=weighting)
        assert steps_of(config, manifest) == total_steps(data, run)


def test_the_calls_of_a_step_are_told(tmp_path):
    def calls(weighting, data):
        return calls_per_step(data, toy_run(tmp_path, weighting=weighting))

    assert calls(Simple(SimpleConfig()), toy_data()) == (("forget", "retain"),)
    assert calls(None, toy_data()) == (("forget", "retain"),)
    assert calls(Constant(), toy_data()) == (("forget",), ("retain",))
    assert calls(Constant(), toy_data(5, 0)) == (("forget",),)
    assert calls(ForgetOnly(ForgetOnlyConfig()), toy_data()) == (("forget",),)


@pytest.mark.parametrize("name", ["warm/up", "../main", ".main", "", "a\\b", "a:b"])
def test_a_phase_name_that_is_no_file_name_is_refused(name, tmp_path):
    model, run = toy_model(), toy_run(tmp_path, training=TRAINING)
    theta = run.parameterise(model)
    with pytest.raises(UnlearnError) as error:
        fit(theta, toy_losses(model), toy_data(), run, name=name)
    assert error.value.code == "VU-U037"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{}, {"steps": 2, "epochs": 1}])
def test_steps_or_epochs_exactly_one(settings, tmp_path):
    with pytest.raises(ConfigError) as error:
        state_after(tmp_path, training=Training(**settings))
    assert error.value.code == "VU-C031"


def test_a_warmup_that_never_ends_is_refused(tmp_path):
    with pytest.raises(ConfigError) as error:
        state_after(tmp_path, training=Training(steps=5, warmup_steps=5))
    assert error.value.code == "VU-C030"
    state_after(tmp_path, training=Training(steps=5, warmup_steps=4))


# ---- events ---------------------------------------------------------------------------------------------------------


def test_progress_is_told_each_step_and_kept_about_every_hundredth(tmp_path):
    events = []
    training = Training(steps=200, lr=1e-3, batch_size=1)
    state_after(tmp_path, training=training, emit_event=events.append)
    progress = [e for e in events if e.type == "progress"]
    assert [e.values["step"] for e in progress] == list(range(1, 201))
    assert set(progress[0].values) == {"what", "step", "total", "lr", "loss_forget", "loss_retain", "grad_norm"}
    assert sum(e.durable for e in progress) == 100
    assert progress[-1].durable


def test_conflicts_are_told_for_weightings_that_see_both_gradients(tmp_path):
    events = []
    state_after(tmp_path, weighting=Constant(1.0, 0.3), emit_event=events.append)
    conflicts = [e.values for e in events if e.type == "gradient_conflict"]
    assert [c["step"] for c in conflicts] == [1, 2, 3, 4]
    assert [e.values["step"] for e in events if e.type == "progress"] == [1, 2, 3, 4]
    assert all(-1 <= c["cos_rf"] <= 1 and c["a_r"] == 1.0 and c["norm_f"] > 0 for c in conflicts)
    assert all(c["phase"] == "main" for c in conflicts)
    cosines = {"cos_rf", "cos_g_r", "cos_g_f"}
    assert set(conflicts[0]) == {"phase", "step", "flags", "norm_r", "norm_f", "a_r", "a_f", *cosines}


def test_an_undefined_cosine_is_none(tmp_path):
    def zero_retain(model):
        inner = toy_losses(model)
        return lambda b: {s: loss * 0 if s == "retain" else loss for s, loss in inner(b).items()}

    events = []
    state_after(tmp_path, losses=zero_retain, weighting=Constant(), emit_event=events.append)
    conflict = next(e.values for e in events if e.type == "gradient_conflict")
    assert (conflict["cos_rf"], conflict["cos_g_r"]) == (None, None)
    assert conflict["cos_g_f"] == pytest.approx(1.0)


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", [Simple(SimpleConfig()), Constant()])
@pytest.mark.parametrize(("side", "bad"), [("forget", "nan"), ("retain", "inf")])
def test_a_loss_that_is_not_finite_names_step_and_side_and_changes_nothing(side, bad, weighting, tmp_path):
    steps = []

    def spoiled(model):
        inner = toy_losses(model)

        def losses(batches):
            values = inner(batches)
            steps.append(next(iter(batches.values())).step)
            return {s: v * float(bad) if s == side and steps[-1] == 2 else v for s, v in values.items()}

        return losses

    def stop_after_two(event):
        if event.type == "progress" and event.values["step"] == 2:
            raise KeyboardInterrupt

    states = []
    for folder, losses, emit, expected in (
        (tmp_path / "spoiled", spoiled, lambda event: None, UnlearnError),
        (tmp_path / "stopped", toy_losses, stop_after_two, KeyboardInterrupt),
    ):
        model = toy_model()
        run = toy_run(folder, training=TRAINING, weighting=weighting, emit_event=emit)
        theta = run.parameterise(model)
        with pytest.raises(expected) as error:
            fit(theta, losses(model), toy_data(), run)
        states.append(theta.state())
        if expected is UnlearnError:
            assert error.value.code == "VU-U031"
            assert f"The {side} loss" in str(error.value)
            assert "step 2" in str(error.value)
    assert equal(*states)


def test_a_gradient_that_is_not_finite_is_refused(tmp_path):
    def steep(model):
        inner = toy_losses(model)
        return lambda b: {s: (loss * 0).sqrt() + loss for s, loss in inner(b).items()}

    with pytest.raises(UnlearnError, match="gradient is not finite at step 0"):
        state_after(tmp_path, losses=steep)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: {"forget": v["forget"]},
        lambda v: {**v, "extra": v["forget"]},
        lambda v: {**v, "retain": v["retain"] * torch.ones(2)},
        lambda v: {**v, "retain": 0.5},
        lambda v: {s: loss.detach() for s, loss in v.items()},
    ],
)
def test_losses_that_break_the_contract_are_refused(change, tmp_path):
    def broken(model):
        inner = toy_losses(model)
        return lambda batches: change(inner(batches))

    with pytest.raises(UnlearnError) as error:
        state_after(tmp_path, losses=broken)
    assert error.value.code == "VU-U032"


def test_nothing_to_train_no_gradient_and_no_examples(tmp_path):
    @attrs.define
    class Nothing:
        model: object = None

        def parameters(self):
            return []

    with pytest.raises(UnlearnError) as error:
        fit(Nothing(), lambda b: {}, toy_data(), toy_run(tmp_path))
    assert error.value.code == "VU-U030"
    with pytest.raises(UnlearnError) as error:
        state_after(tmp_path / "a", data=toy_data(0, 0))
    assert error.value.code == "VU-U034"
    with pytest.raises(UnlearnError) as error:
        state_after(tmp_path / "b", data=toy_data(0, 5), weighting=ForgetOnly(ForgetOnlyConfig()))
    assert error.value.code == "VU-U034"


def test_tensors_without_gradient_stay_as_they_are(tmp_path):
    network = nn.ModuleDict({"unet": nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})})
    model = ToyModel(network)
    table = Examples("forget", ("",) * 4).with_tensors(x=torch.randn(4, 3))
    data = ForgetRetain(table, attrs.evolve(table, side="retain"), table, table)
    run = toy_run(tmp_path, parameters=Full(FullConfig()), weighting=Constant())
    theta = run.parameterise(model)
    fit(theta, lambda b: {s: network["unet"]["used"](batch["x"]).square().mean() for s, batch in b.items()}, data, run)
    assert set(theta.edit().parts) == {"unet.used.weight", "unet.used.bias"}


def test_fp16_leaves_out_steps_that_overflow_and_gives_up_in_the_end(tmp_path):
    model = toy_model()
    run = toy_run(tmp_path, training=attrs.evolve(TRAINING, steps=40), precision="fp16")
    theta = run.parameterise(model)
    calls = []

    def losses(batches):
        calls.append(1)
        factor = 1e34 if len(calls) < 5 else 1.0
        return {side: loss * factor for side, loss in toy_losses(model)(batches).items()}

    with torch.autocast("cpu", enabled=False):
        fit(theta, losses, toy_data(), run)
    assert any(bool(delta.detach().any()) for _, delta in theta.named_deltas())

    def hopeless(batches):
        return {side: loss * float("inf") for side, loss in toy_losses(model)(batches).items()}

    with pytest.raises(UnlearnError) as error:
        fit(theta, hopeless, toy_data(), attrs.evolve(run, folder=tmp_path / "again"))
    assert error.value.code == "VU-U031"


@pytest.mark.parametrize("weighting", [Simple(SimpleConfig()), Constant()])
def test_the_scale_of_fp16_is_taken_off_the_gradient_again(weighting, tmp_path):
    """AdamW hardly sees a factor on all gradients, but clipping and weightings do."""
    norms = {}
    for precision in ("fp32", "fp16"):
        told = []
        # So small a learning rate that every step starts from the same weights.
        training = attrs.evolve(TRAINING, steps=8, lr=1e-12, max_grad_norm=0.01)
        settings = {"training": training, "weighting": weighting, "emit_event": told.append, "precision": precision}
        state_after(tmp_path / precision, **settings)
        progress = [event.values for event in told if event.type == "progress"]
        norms[precision] = {v["step"]: v["grad_norm"] for v in progress if "grad_norm" in v}
    assert len(norms["fp16"]) >= 4  # steps that overflow are left out
    for step, norm in norms["fp16"].items():
        assert norm == pytest.approx(norms["fp32"][step], rel=0.01)
