"""Acceptance truths 1 to 5 of FADE: the losses themselves (fade.md, sections 2 and 11)."""

from __future__ import annotations

import gc
import weakref

import attrs
import pytest
import torch
import torch.nn.functional as F

from vu_core import Batch, ConfigError
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.training import Training
from vu_fade.fade import Distillation, FadeConfig
from vu_fade.settled import settled


def batches(data, run, step=0, size=3):
    return {
        side: Batch(examples, tuple(range(size)), step, tuple(range(size)), run, torch.device("cpu"))
        for side, examples in (("forget", data.forget), ("retain", data.retain))
    }


class Recording:
    """Wraps a model and keeps what `predict` was asked."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def predict(self, noisy, timesteps, embedding):
        answer = self.model.predict(noisy, timesteps, embedding)
        self.calls.append((noisy, timesteps, embedding, answer))
        return answer


@pytest.fixture
def objective(model, make_run):
    """Make the losses of FADE on an adapter of the toy model: ``(losses, recording, theta, run)``."""

    def make(*, moved: bool = False, **settings):
        run, recording = make_run(), Recording(model)
        theta = run.parameterise(model)
        if moved:
            with torch.no_grad():
                for index, tensor in enumerate(theta.parameters()):
                    tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
        return Distillation.of(recording, theta, FadeConfig(**settings)), recording, theta, run

    return make


def test_1_at_init_retain_is_zero_and_forget_is_the_gap_between_the_prompts(objective, data):
    losses, _, _, run = objective()
    found = losses(batches(data, run))
    assert found["retain"].item() == 0.0
    plain, batch = ToyDenoiser(), batches(data, run)["forget"]
    z, t = plain.latents(batch), batch.integers("timestep", 0, 100)
    z_t = plain.add_noise(z, batch.normal("noise", z.shape[1:]), t)
    gap = plain.predict(z_t, t, plain.embed(batch.captions)) - plain.predict(z_t, t, plain.embed(batch.overwrites))
    assert found["forget"].item() == pytest.approx(gap.square().mean().item(), rel=1e-5)
    assert found["forget"].item() > 1e-4


def test_1_the_losses_are_means_of_squares_of_student_minus_teacher(objective, data):
    losses, recording, _, run = objective(moved=True)
    found = losses(batches(data, run))
    teacher, student = recording.calls[0][3], recording.calls[1][3]
    assert found["forget"].item() == pytest.approx((student[:3] - teacher[:3]).square().mean().item(), rel=1e-6)
    assert found["retain"].item() == pytest.approx((student[3:] - teacher[3:]).square().mean().item(), rel=1e-6)
    assert found["forget"].dtype == found["retain"].dtype == torch.float32


def test_2_the_teacher_carries_no_gradient_and_is_the_untouched_model(objective, data):
    losses, recording, _, run = objective(moved=True)
    losses(batches(data, run))
    (noisy, t, c, teacher), (_, _, _, student) = recording.calls
    assert not teacher.requires_grad
    assert teacher.grad_fn is None
    assert student.requires_grad
    assert torch.equal(teacher, ToyDenoiser().predict(noisy, t, c))


def gradients(theta, loss):
    return torch.autograd.grad(loss, theta.parameters(), retain_graph=True)


def test_2_separate_backward_passes_give_the_joint_gradient(objective, data):
    losses, _, theta, run = objective(moved=True)
    found = losses(batches(data, run))
    joint = gradients(theta, 0.3 * found["forget"] + found["retain"])
    parts = [gradients(theta, found[side]) for side in ("forget", "retain")]
    # The losses are float32 by definition, so the gradients are too: over the whole gradient three roundings of at most
    # 6e-8 each (the scaled loss, the sum, the order of the backward pass) are what can be asked for.
    joint, forget, retain = (torch.cat([g.flatten() for g in gradient]) for gradient in (joint, *parts))
    error = (joint.double() - (0.3 * forget.double() + retain.double())).norm() / joint.double().norm()
    assert error < 2e-7


@pytest.mark.parametrize("weights", [(0.3, 1.0), (1.0, 0.0), (0.0, 2.0)])
def test_2_split_backward_gives_the_same_losses_and_gradients(objective, data, weights):
    losses, _, theta, run = objective(moved=True)
    split = attrs.evolve(losses, config=FadeConfig(split_backward=True))
    expected, found = losses(batches(data, run)), split(batches(data, run))
    for side in ("forget", "retain"):
        torch.testing.assert_close(found[side].detach(), expected[side].detach(), rtol=1e-5, atol=1e-8)
    one = gradients(theta, weights[0] * expected["forget"] + weights[1] * expected["retain"])
    two = gradients(theta, weights[0] * found["forget"] + weights[1] * found["retain"])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_2_split_backward_frees_the_first_side_before_the_second_runs(objective, data, monkeypatch):
    losses, recording, _, run = objective(moved=True, split_backward=True)
    alive: list[weakref.ref] = []
    seen = []
    predict = recording.model.predict

    def watching(*arguments):
        gc.collect()
        seen.append([ref() is not None for ref in alive])
        answer = predict(*arguments)
        alive.append(weakref.ref(answer))
        return answer

    monkeypatch.setattr(recording, "predict", watching, raising=False)
    losses(batches(data, run))
    # Passes: teacher and student of forget, teacher and student of retain.
    assert len(alive) == 4
    assert seen[3][:2] == [False, False]


def test_3_student_and_teacher_see_the_same_latents_and_the_sides_share_nothing(objective, data):
    losses, recording, _, run = objective()
    retain = attrs.evolve(data.retain, tensors=data.forget.tensors, captions=data.forget.captions)
    same = attrs.evolve(data, retain=retain)
    losses(batches(same, run))
    (teacher_z, teacher_t, teacher_c, _), (student_z, student_t, student_c, _) = recording.calls
    assert torch.equal(teacher_z, student_z)
    assert torch.equal(teacher_t, student_t)
    assert not torch.equal(teacher_c[:3], student_c[:3])
    assert torch.equal(teacher_c[3:], student_c[3:])
    assert not torch.equal(student_t[:3], student_t[3:])
    # The same images on both sides: only posterior sample, noise and timestep can differ, and the latter two must.
    noise = {side: batch.normal("noise", (2, 4, 4)) for side, batch in batches(same, run).items()}
    assert not torch.isclose(noise["forget"], noise["retain"]).all()
    model = recording.model
    for side, part in (("forget", slice(0, 3)), ("retain", slice(3, 6))):
        z = model.latents(batches(same, run)[side])
        torch.testing.assert_close(student_z[part], model.add_noise(z, noise[side], student_t[part]))


def test_3_one_teacher_pass_and_one_student_pass_per_step(objective, data):
    losses, recording, _, run = objective()
    losses(batches(data, run))
    assert [len(noisy) for noisy, *_ in recording.calls] == [6, 6]


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_one_side_alone_is_that_side(objective, data, side):
    losses, recording, _, run = objective(moved=True)
    both = losses(batches(data, run))
    recording.calls.clear()
    alone = losses({side: batches(data, run)[side]})
    assert set(alone) == {side}
    assert [len(noisy) for noisy, *_ in recording.calls] == [3, 3]
    torch.testing.assert_close(alone[side], both[side], rtol=1e-5, atol=1e-8)


def test_4_a_zero_weight_leaves_the_gradient_of_the_other_side(objective, data):
    losses, _, theta, run = objective(moved=True)
    found = losses(batches(data, run))
    retain = gradients(theta, found["retain"])
    for g, r in zip(gradients(theta, 0.0 * found["forget"] + 2.0 * found["retain"]), retain, strict=True):
        torch.testing.assert_close(g, 2.0 * r, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("forget", "retain"), [(0.3, 1.0), (0.0, 2.0), (0.7, 0.0), (0.5, 0.25)])
def test_4_fit_steps_along_the_weighted_gradients(forget, retain, first_gradient, make_axis, data):
    weighting = make_axis("weighting", "simple", forget_weight=forget, retain_weight=retain)
    used, parts = first_gradient(data, Training(steps=1, batch_size=3), weighting=weighting)
    weights = {"forget": forget, "retain": retain}
    assert set(parts) == {side for side, weight in weights.items() if weight}  # a weight of zero saves the side
    expected = sum(weights[side] * gradient for side, gradient in parts.items())
    assert all(gradient.norm() > 1e-3 for gradient in parts.values())
    torch.testing.assert_close(used, expected, rtol=1e-5, atol=1e-7)


def test_5_equal_prompts_give_zero_loss(objective):
    data = toy_data()
    data = attrs.evolve(data, forget=attrs.evolve(data.forget, overwrites=data.forget.captions))
    losses, _, _, run = objective()
    assert losses(batches(data, run))["forget"].item() == 0.0


def test_noise_offset_shifts_whole_channels(objective, data):
    losses, recording, _, run = objective()
    losses(batches(data, run))
    plain = recording.calls[0][0].clone()
    recording.calls.clear()
    attrs.evolve(losses, config=FadeConfig(noise_offset=0.5))(batches(data, run))
    difference = recording.calls[0][0] - plain  # (6, C, h, w)
    assert difference.abs().amax() > 1e-3
    torch.testing.assert_close(difference, difference[:, :, :1, :1].expand_as(difference), rtol=1e-4, atol=1e-5)


def test_timesteps_stay_in_their_range(objective, data):
    losses, recording, _, run = objective(timestep_low=40, timestep_high=43)
    for step in range(20):
        losses(batches(data, run, step))
    drawn = torch.cat([t for _, t, _, _ in recording.calls])
    assert set(drawn.tolist()) == {40, 41, 42}


@pytest.mark.parametrize("limits", [(50, 50), (99, 40)])
def test_an_empty_range_of_timesteps_is_no_config(limits):
    with pytest.raises(ValueError, match="timestep_low must be < timestep_high"):
        FadeConfig(timestep_low=limits[0], timestep_high=limits[1])


@pytest.mark.parametrize("limits", [(0, 101), (100, None)])
def test_an_impossible_range_of_timesteps_is_an_error(objective, limits):
    with pytest.raises(ConfigError) as caught:
        objective(timestep_low=limits[0], timestep_high=limits[1])
    assert caught.value.code == "VU-C090"
    assert "100" in caught.value.remedy


def test_retain_rows_are_drawn_anew_at_each_step_and_differ_within_it(objective):
    data = toy_data(forget=6, retain=6)
    losses, recording, _, run = objective(retain_sampling="with_replacement")
    rows: dict[str, list[tuple[int, ...]]] = {"forget": [], "retain": []}
    latents = recording.model.latents
    recording.latents = lambda batch: rows[batch.side].append(batch.rows) or latents(batch)
    for step in range(30):
        losses(batches(data, run, step, size=4))
    assert set(rows["forget"]) == {(0, 1, 2, 3)}  # forget rows are never redrawn
    assert all(len(set(part)) == 4 for part in rows["retain"])
    assert len(set(rows["retain"])) > 20  # of 360 ways to draw 4 of 6 in order
    assert {row for part in rows["retain"] for row in part} == set(range(6))


def test_retain_rows_drawn_anew_do_not_depend_on_the_portions(objective):
    data = toy_data(forget=6, retain=6)
    losses, recording, _, run = objective(retain_sampling="with_replacement")
    rows: list[int] = []
    latents = recording.model.latents
    recording.latents = lambda batch: rows.extend(batch.rows) or latents(batch)
    whole = batches(data, run, size=6)["retain"]
    losses.ask(whole)
    for first in (0, 2, 4):
        places = tuple(range(first, first + 2))
        losses.ask(attrs.evolve(whole, rows=places, positions=places))
    assert rows[:6] == rows[6:]
    assert sorted(rows[:6]) == list(range(6))


def test_settled_is_the_chain_rule():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.tensor(1.0, requires_grad=True)
    loss = settled(w.square().sum(), [w, unused])
    assert loss.item() == 5.0
    (loss * loss * 0.5).backward()
    torch.testing.assert_close(w.grad, torch.tensor([10.0, 20.0]))  # 5 * 2 w
    assert unused.grad is None


@pytest.mark.parametrize("half", [False, True])
def test_settled_divides_a_gradient_that_two_tensors_share_once(half):
    a, b = (torch.zeros(3, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.float16, enabled=half):
        loss = settled((a + b).sum(), [a, b])  # one gradient for both, expanded from a scalar
        loss.backward()
    assert a.grad.tolist() == b.grad.tolist() == [1.0, 1.0, 1.0]


class Narrow(torch.autograd.Function):
    """Pass on, but let gradients go through fp16."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().float()


@pytest.mark.parametrize(("size", "tolerance"), [(1e-10, 0.1), (1e-3, 1e-3), (1e2, 1e-3), (6e4, 1e-3)])
def test_settled_neither_loses_small_gradients_in_fp16_nor_overflows(size, tolerance):
    w = torch.tensor(1.0, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        settled(Narrow.apply(w) * size, [w]).backward()
    assert w.grad.item() == pytest.approx(size, rel=tolerance)


def test_settled_takes_the_largest_scale_that_overflows_nowhere():
    large, small = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.float16):
        settled(Narrow.apply(large) * 500 + Narrow.apply(small) * 1e-8, [large, small]).backward()
    assert large.grad.item() == pytest.approx(500, rel=1e-3)
    assert small.grad.item() == pytest.approx(1e-8, rel=0.3)  # 16 times it is three of the smallest steps of fp16


def test_settled_hands_on_what_overflows_at_every_scale():
    w = torch.tensor(1.0, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        settled(Narrow.apply(w) * 1e6, [w]).backward()
    assert not torch.isfinite(w.grad)


def test_mean_square_of_half_precision_predictions_is_taken_in_float32(objective, data, monkeypatch):
    losses, recording, _, run = objective(moved=True)
    predict = recording.predict
    monkeypatch.setattr(recording, "predict", lambda *arguments: predict(*arguments).bfloat16(), raising=False)
    found = losses(batches(data, run))
    teacher, student = recording.calls[0][3].bfloat16(), recording.calls[1][3].bfloat16()
    assert found["forget"].item() == pytest.approx(
        F.mse_loss(student[:3].float(), teacher[:3].float()).item(), rel=1e-6
    )
