"""Weightings in the training loop: acceptance truths 4, 6 to 8 and 11 (gradient_weighting.md, section 6)."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vu_core import UnlearnError
from vu_core.adapters import Full, FullConfig
from vu_core.ops import gram
from vu_core.ops.norms import CPU_PIECE
from vu_core.plugins import discover
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.testing.toys import toy_run
from vu_core.training import Training, fit
from vu_core.training.gradients import combine
from vu_munba.asymmetric import NashAsymmetric, NashAsymmetricConfig
from vu_munba.bargain import BargainConfig
from vu_munba.cagrad import CAGrad, CAGradConfig
from vu_munba.munba import Munba
from vu_munba.pcgrad import PCGrad, PCGradConfig

REGISTRY = discover(installed=False).registry
# The update of plain SGD is the gradient itself: nothing clips, nothing decays, nothing is remembered.
PLAIN = Training(
    steps=1,
    batch_size=4,
    lr=1.0,
    schedule="constant",
    max_grad_norm=0.0,
    weight_decay=0.0,
    optimizer="sgd",
    momentum=0.0,
)
ALL = {
    "munba": Munba(BargainConfig()),
    "nash-asymmetric": NashAsymmetric(NashAsymmetricConfig(retain_power=2.0)),
    "pcgrad": PCGrad(PCGradConfig()),
    "cagrad": CAGrad(CAGradConfig()),
}


def builtin(name: str, **settings):
    plugin = REGISTRY.get("weighting", name).load()
    return plugin(plugin.Config(**settings))


def regression(model, factors):
    """Denoising losses of both sides; ``factors`` per side."""

    def losses(batches):
        values = {}
        for side, batch in batches.items():
            z = model.latents(batch)
            t = batch.integers("timestep", 0, model.timesteps)
            noise = batch.normal("noise", z.shape[1:])
            predicted = model.predict(model.add_noise(z, noise, t), t, model.embed(batch.captions))
            goal = noise if side == "retain" else torch.zeros_like(noise)
            factor = factors.get(side, 1.0)
            values[side] = (predicted - goal).square().mean() * (factor(batch.step) if callable(factor) else factor)
        return values

    return losses


def train(folder, weighting, training=PLAIN, *, factors=None, losses=regression, gradients=None, **fields):
    """Train all weights of the toy denoiser; return what changed, per weight, and the events of the weighting.

    ``gradients`` takes what autograd says to each loss of the last step, as one vector.
    """
    events = []
    model = ToyDenoiser()
    run = toy_run(
        folder,
        training=training,
        weighting=weighting,
        parameters=Full(FullConfig()),
        emit_event=events.append,
        **fields,
    )
    theta = run.parameterise(model)
    try:
        of_batches = losses(model, factors or {})

        def watched(batches):
            values = of_batches(batches)
            for side in values if gradients is not None else ():
                each = torch.autograd.grad(values[side], theta.parameters(), retain_graph=True)
                gradients[side] = torch.cat([g.flatten() for g in each])
            return values

        fit(theta, watched, toy_data(), run)
        changed = {name: delta.detach().clone() for name, delta in theta.named_deltas()}
    finally:
        run.release()
    return changed, [event.values for event in events if event.type == "gradient_conflict"]


def joined(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


# ---- truths 6 to 8 and 11 -------------------------------------------------------------------------------------------


class FirstUpdate:
    """Keeps the gradient of the first step bit for bit: the momentum of SGD begins with it."""

    side = "outside"

    def prepare(self, model, theta, data, run):
        pass

    def penalty(self):
        return None

    def after_step(self, optimizer):
        buffers = [optimizer.state[p]["momentum_buffer"] for group in optimizer.param_groups for p in group["params"]]
        self.gradient = torch.cat([buffer.flatten() for buffer in buffers])

    def state(self):
        return {}


def test_7_none_is_the_forget_gradient_bitwise_and_simple_the_weighted_sum(tmp_path):
    watched, gradients = FirstUpdate(), {}
    fields = {"gradients": gradients, "regularizers": (watched,)}
    training = attrs.evolve(PLAIN, momentum=0.9)
    train(tmp_path / "none", builtin("none"), training, **fields)
    forget = gradients["forget"]
    assert torch.equal(watched.gradient, forget)
    assert forget.norm() > 0.01
    train(tmp_path / "simple", builtin("simple", forget_weight=0.3, retain_weight=0.8), training, **fields)
    assert torch.allclose(watched.gradient, 0.8 * gradients["retain"] + 0.3 * forget, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_update_of_a_step_is_the_combination_that_the_rule_names(name, tmp_path):
    r = -joined(train(tmp_path / "r", builtin("simple", forget_weight=0.0))[0]).double()
    f = -joined(train(tmp_path / "f", builtin("none"))[0]).double()
    state = {}
    a_r, a_f = ALL[name].coefficients(gram([r], [f]), {}, state)
    found, (event,) = train(tmp_path / "found", ALL[name])
    assert torch.allclose(-joined(found).double(), a_r * r + a_f * f, rtol=1e-4, atol=1e-6)
    assert (event["a_r"], event["a_f"]) == pytest.approx((a_r, a_f), rel=1e-4)
    assert event["flags"] == state["flags"]


def test_6_lists_equal_vectors():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 4), (7,), (2, 2, 3), (0,), (1,)]
    r = [torch.randn(shape, generator=generator) for shape in shapes]
    f = [torch.randn(shape, generator=generator) for shape in shapes]
    flat_r, flat_f = (torch.cat([g.flatten() for g in side]) for side in (r, f))
    for rule in ALL.values():
        whole = rule.coefficients(gram([flat_r], [flat_f]), {}, {})
        assert rule.coefficients(gram(r, f), {}, {}) == pytest.approx(whole, rel=1e-6)
    a_r, a_f = whole
    combined = combine([g.clone() for g in r], [g.clone() for g in f], a_r, a_f)
    assert torch.allclose(torch.cat([g.flatten() for g in combined]), a_r * flat_r + a_f * flat_f, atol=1e-6)


class Sizes(TorchDispatchMode):
    """Remember the largest tensor that any operation made anew, and what joined tensors."""

    def __init__(self):
        super().__init__()
        self.largest, self.joined = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        known = {each.data_ptr() for each in torch.utils._pytree.tree_leaves(args) if isinstance(each, torch.Tensor)}
        for each in torch.utils._pytree.tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.data_ptr() not in known:
                self.largest = max(self.largest, each.numel())
                if any(word in func.name() for word in ("cat", "stack")):
                    self.joined = max(self.joined, each.numel())
        return made


def test_6_nothing_of_the_size_of_the_gradients_is_made():
    retain = [torch.randn(2_000_000), *(torch.randn(1000) for _ in range(200))]
    forget = [torch.randn_like(g) for g in retain]
    with Sizes() as sizes:
        a_r, a_f = ALL["munba"].coefficients(gram(retain, forget), {}, {})
        combine(retain, forget, a_r, a_f)
    assert sizes.largest <= 2 * CPU_PIECE < 2_200_000 / 4
    assert sizes.joined <= 400


@pytest.mark.parametrize("name", ALL)
def test_6_training_joins_no_gradients(name, tmp_path):
    with Sizes() as sizes:
        changed, _ = train(tmp_path, ALL[name])
    assert 0 < sizes.joined < joined(changed).numel() / 4


@pytest.mark.parametrize("name", ALL)
def test_8_four_micro_batches_are_one_batch(name, tmp_path):
    training = attrs.evolve(PLAIN, steps=3, lr=0.01)
    whole, one = train(tmp_path / "whole", ALL[name], training)
    parts, four = train(tmp_path / "parts", ALL[name], attrs.evolve(training, batch_size=1, accumulation=4))
    assert torch.allclose(joined(whole), joined(parts), rtol=1e-4, atol=1e-6)
    assert len(one) == len(four) == 3
    assert [e["cos_rf"] for e in one] == pytest.approx([e["cos_rf"] for e in four], abs=1e-4)


@pytest.mark.parametrize("factor", [0.01, 100.0])
@pytest.mark.parametrize("name", ["munba", "nash-asymmetric"])
def test_11_a_factor_on_the_forget_loss_is_inert(name, factor, tmp_path):
    training = attrs.evolve(PLAIN, steps=3, lr=0.01, optimizer="adamw")
    one, _ = train(tmp_path / "one", ALL[name], training)
    other, _ = train(tmp_path / "other", ALL[name], training, factors={"forget": factor})
    assert torch.allclose(joined(one), joined(other), atol=1e-5)
    told, _ = train(tmp_path / "simple", builtin("simple"), training, factors={"forget": factor})
    assert not torch.allclose(joined(one), joined(told), atol=1e-4)


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_weighs_unscaled_gradients(precision, tmp_path):
    # So small a learning rate that every step starts from the same weights.
    training = attrs.evolve(PLAIN, steps=8, lr=1e-12)
    _, exact = train(tmp_path / "exact", ALL["munba"], training)
    _, half = train(tmp_path / "half", ALL["munba"], training, precision=precision)
    assert len(half) >= 4  # steps that overflow in fp16 are left out
    by_step = {event["step"]: event for event in exact}
    for event in half:
        for key in ("norm_r", "norm_f", "a_r", "a_f"):
            assert event[key] == pytest.approx(by_step[event["step"]][key], rel=0.05)


# ---- truth 4, in training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_4_a_step_without_finite_gradients_changes_nothing(side, bad, tmp_path):
    training = attrs.evolve(PLAIN, steps=4, lr=0.01)

    def spoilt(*steps):
        return {side: lambda step: bad if step in steps else 1.0}

    two, _ = train(tmp_path / "two", ALL["munba"], attrs.evolve(training, steps=2))
    four, events = train(tmp_path / "four", ALL["munba"], training, factors=spoilt(2, 3))
    assert all(torch.equal(two[name], four[name]) for name in two)
    assert [event["flags"] for event in events] == [[], [], ["nonfinite"], ["nonfinite"]]
    assert (events[2]["cos_rf"], events[2]["a_r"], events[2]["a_f"]) == (None, 0.0, 0.0)
    with pytest.raises(UnlearnError) as error:
        train(tmp_path / "end", ALL["munba"], attrs.evolve(training, steps=9), factors=spoilt(*range(3, 9)))
    assert error.value.code == "VU-U100"
    raising = Munba(BargainConfig(nonfinite="raise"))
    with pytest.raises(UnlearnError) as error:
        train(tmp_path / "raise", raising, training, factors=spoilt(1))
    assert error.value.code == "VU-U100"


def test_4_zero_gradients_follow_the_policy(tmp_path):
    none, _ = train(tmp_path / "none", builtin("none"))
    forget = -joined(none)
    single, (event,) = train(tmp_path / "single", ALL["munba"], factors={"retain": 0.0})
    assert torch.allclose(-joined(single), forget / forget.norm(), atol=1e-6)
    assert event["flags"] == ["retain_zero"]
    raw, _ = train(tmp_path / "raw", Munba(BargainConfig(zero="raw")), factors={"retain": 0.0})
    assert torch.equal(joined(raw), joined(none))
    decaying = attrs.evolve(PLAIN, weight_decay=0.5)
    for name, factors in (("skip", {"retain": 0.0}), ("both", {"retain": 0.0, "forget": 0.0})):
        rule = Munba(BargainConfig(zero="skip"))
        still, _ = train(tmp_path / name, rule, decaying, factors=factors)
        assert not joined(still).any()


def test_4_exactly_opposed_gradients_stand_still(tmp_path):
    def opposed(model, factors):
        def losses(batches):
            weight = model.network.get_parameter("unet.conv_in.weight")
            return {side: (1.0 if side == "forget" else -2.0) * weight.sum() for side in batches}

        return losses

    still, (event,) = train(tmp_path, ALL["munba"], losses=opposed)
    assert joined(still).abs().max() < 1e-6
    assert event["flags"] == ["opposed"]
    assert event["cos_rf"] == pytest.approx(-1.0)
