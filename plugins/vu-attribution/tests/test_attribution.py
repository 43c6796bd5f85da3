"""Acceptance truths of attributions (fade.md, sections 4 and 11, truth 14)."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F

from vu_attribution.fisher import Fisher, FisherConfig
from vu_attribution.gradients import LossGradients, OwnDraws, own_loss
from vu_attribution.magnitude import Magnitude, MagnitudeConfig
from vu_attribution.plugin import vu_register_attributions
from vu_attribution.random import Random, RandomConfig
from vu_attribution.saliency import Saliency, SaliencyConfig
from vu_core import Batch, DataError, PlanError, UnlearnError
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data

EVERY = [
    pytest.param(lambda: Saliency(SaliencyConfig()), id="saliency"),
    pytest.param(lambda: Saliency(SaliencyConfig(contrast="retain_ratio")), id="contrast"),
    pytest.param(lambda: Fisher(FisherConfig()), id="fisher"),
    pytest.param(lambda: Magnitude(MagnitudeConfig()), id="magnitude"),
    pytest.param(lambda: Random(RandomConfig()), id="random"),
]
TARGETS = ("unet.attn1.to_q.weight", "unet.attn2.to_out.0.weight", "unet.conv_in.weight")


@pytest.mark.parametrize("make", EVERY)
def test_scores_have_the_shape_of_their_parameters(make, model, data, make_run):
    scores = make().attribute(model, data, make_run(), candidates=TARGETS)
    parameters = dict(model.network.named_parameters())
    assert set(scores) == set(TARGETS)
    for name, score in scores.items():
        assert score.shape == parameters[name].shape
        assert score.dtype == torch.float32
        assert torch.isfinite(score).all()
        assert (score >= 0).all()
        assert (score > 0).any()


@pytest.mark.parametrize("make", EVERY)
def test_without_candidates_the_whole_denoiser_is_scored(make, model, data, make_run):
    scores = make().attribute(model, data, make_run())
    assert set(scores) == {name for name, _ in model.network.named_parameters() if name.startswith("unet.")}


@pytest.mark.parametrize("make", EVERY)
def test_same_seed_same_scores_and_nothing_is_left_behind(make, model, data, make_run):
    state = torch.get_rng_state()
    flags = [p.requires_grad for p in model.network.parameters()]
    first = make().attribute(model, data, make_run(), candidates=TARGETS)
    second = make().attribute(model, data, make_run(), candidates=TARGETS)
    assert all(torch.equal(first[name], second[name]) for name in TARGETS)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.network.parameters()] == flags
    assert all(p.grad is None for p in model.network.parameters())


@pytest.mark.parametrize("make", [p for p in EVERY if p.id != "magnitude"])
def test_another_seed_gives_other_scores(make, model, data, make_run):
    first = make().attribute(model, data, make_run(1), candidates=TARGETS)
    second = make().attribute(model, data, make_run(2), candidates=TARGETS)
    assert all(not torch.equal(first[name], second[name]) for name in TARGETS)


def by_hand(model, examples, run, prefix, batch_size):
    """Gradients of the loss per batch, written out with ``backward``."""
    names = dict(model.network.named_parameters())
    for first in range(0, len(examples), batch_size):
        rows = tuple(range(first, min(first + batch_size, len(examples))))
        batch = Batch(examples, rows, 0, rows, OwnDraws(run, prefix), torch.device("cpu"))
        z, t = model.latents(batch), batch.integers("timestep", 0, model.timesteps)
        n = batch.normal("noise", z.shape[1:])
        for name in TARGETS:
            names[name].requires_grad_(True)
            names[name].grad = None
        prediction = model.predict(model.add_noise(z, n, t), t, model.embed(batch.captions))
        F.mse_loss(prediction, model.target(z, n, t)).backward()
        yield {name: names[name].grad.clone() for name in TARGETS}
        for name in TARGETS:
            names[name].requires_grad_(False)
            names[name].grad = None


def rebuilt(model, data, run, config):
    gradients = list(by_hand(model, data.forget, run, "saliency", config.batch_size))
    if config.reduce == "abs_sum":
        return {name: sum(g[name] for g in gradients).abs() for name in TARGETS}
    divisor = len(gradients) if config.reduce == "mean" else 1
    return {name: sum(g[name].abs() for g in gradients) / divisor for name in TARGETS}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("reduce", ["sum_abs", "abs_sum", "mean"])
def test_saliency_is_its_formula(reduce, prediction, data, make_run):
    model, config = ToyDenoiser(prediction), SaliencyConfig(reduce=reduce)
    scores = Saliency(config).attribute(model, data, make_run(), candidates=TARGETS)
    for name, expected in rebuilt(model, data, make_run(), config).items():
        torch.testing.assert_close(scores[name], expected, rtol=1e-5, atol=1e-9)


def test_contrast_divides_by_the_retain_score(model, data, make_run):
    swapped = attrs.evolve(data, forget=data.retain, retain=data.forget)
    forget = Saliency(SaliencyConfig()).attribute(model, data, make_run(), candidates=TARGETS)
    retain = Saliency(SaliencyConfig()).attribute(model, swapped, make_run(), candidates=TARGETS)
    contrast = Saliency(SaliencyConfig(contrast="retain_ratio")).attribute(model, data, make_run(), candidates=TARGETS)
    for name in TARGETS:
        expected = forget[name] / (retain[name] + retain[name].mean())
        torch.testing.assert_close(contrast[name], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "change", [{"reduce": "abs_sum"}, {"reduce": "mean"}, {"contrast": "retain_ratio"}, {"batch_size": 3}]
)
def test_each_field_of_saliency_changes_the_scores(change, model, data, make_run):
    plain = Saliency(SaliencyConfig()).attribute(model, data, make_run(), candidates=TARGETS)
    other = Saliency(SaliencyConfig(**change)).attribute(model, data, make_run(), candidates=TARGETS)
    assert not torch.allclose(plain[TARGETS[0]], other[TARGETS[0]])


def test_fisher_squares_single_examples(model, data, make_run):
    scores = Fisher(FisherConfig()).attribute(model, data, make_run(), candidates=TARGETS)
    gradients = list(by_hand(model, data.forget, make_run(), "fisher", 1))
    for name in TARGETS:
        expected = sum(g[name].square() for g in gradients) / len(gradients)
        torch.testing.assert_close(scores[name], expected, rtol=1e-5, atol=1e-12)


def test_fisher_of_the_retain_side_is_another(model, data, make_run):
    forget = Fisher(FisherConfig()).attribute(model, data, make_run(), candidates=TARGETS)
    retain = Fisher(FisherConfig(side="retain")).attribute(model, data, make_run(), candidates=TARGETS)
    assert not torch.allclose(forget[TARGETS[0]], retain[TARGETS[0]])


def test_magnitude_is_the_absolute_value(model, data, make_run):
    scores = Magnitude(MagnitudeConfig()).attribute(model, data, make_run(), candidates=TARGETS)
    assert torch.equal(scores[TARGETS[0]], dict(model.network.named_parameters())[TARGETS[0]].abs())


def test_a_parameter_that_the_loss_does_not_see_scores_zero(model, data, make_run):
    model.network["unet"].register_parameter("unused", torch.nn.Parameter(torch.ones(3), requires_grad=False))
    scores = Saliency(SaliencyConfig()).attribute(model, data, make_run(), candidates=["unet.unused", TARGETS[0]])
    assert torch.equal(scores["unet.unused"], torch.zeros(3))


def test_a_half_precision_model_is_scored_in_float32(model, data, make_run):
    exact = Saliency(SaliencyConfig()).attribute(model, data, make_run(), candidates=TARGETS)
    model.network.bfloat16()
    scores = Saliency(SaliencyConfig()).attribute(model, data, make_run(), candidates=TARGETS)
    for name in TARGETS:
        assert scores[name].dtype == torch.float32
        torch.testing.assert_close(scores[name], exact[name], rtol=0.2, atol=0.02 * float(exact[name].max()))


def test_an_unknown_candidate_is_named_with_its_near_miss(model, data, make_run):
    with pytest.raises(PlanError, match=r"unet\.attn1\.to_q\.weight") as caught:
        Saliency(SaliencyConfig()).attribute(model, data, make_run(), candidates=["unet.attn1.to_q.weigth"])
    assert caught.value.code == "VU-L090"


def test_no_examples_is_an_error(model, make_run):
    with pytest.raises(DataError, match="retain") as caught:
        Saliency(SaliencyConfig(contrast="retain_ratio")).attribute(model, toy_data(retain=0), make_run())
    assert caught.value.code == "VU-D090"


def test_requires_grad_is_put_back_when_the_model_fails(model, data, make_run, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "predict", broken)
    with pytest.raises(RuntimeError, match="broken"):
        Saliency(SaliencyConfig()).attribute(model, data, make_run(), candidates=TARGETS)
    assert not any(p.requires_grad for p in model.network.parameters())


def test_registered_names():
    seen = {}
    vu_register_attributions(lambda name, target, **more: seen.update({name: more}))
    assert set(seen) == {"saliency", "fisher", "magnitude", "random"}
    assert [name for name, more in seen.items() if more.get("default")] == ["saliency"]


def shrunk(model, factor, monkeypatch):
    """Let the denoiser answer ``factor`` times as much, so that its gradients become that much smaller or larger."""
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda *arguments: predict(*arguments) * factor)


@pytest.mark.parametrize("factor", [1e-7, 1.0, 1e2])
@pytest.mark.parametrize("make", [p for p in EVERY if p.id in ("saliency", "fisher")])
def test_gradients_in_fp16_neither_vanish_nor_overflow(make, factor, data, make_run, monkeypatch):
    exact, half = ToyDenoiser(), ToyDenoiser()
    half.network.half()
    for model in (exact, half):
        shrunk(model, factor, monkeypatch)
    expected = make().attribute(exact, data, make_run(), candidates=TARGETS)
    found = make().attribute(half, data, attrs.evolve(make_run(), precision="fp16"), candidates=TARGETS)
    for name in TARGETS:
        assert found[name].dtype == torch.float32
        assert (found[name] - expected[name]).norm() < 0.05 * expected[name].norm()


def test_gradients_that_overflow_fp16_however_scaled_are_an_error(data, make_run, monkeypatch):
    model = ToyDenoiser()
    model.network.half()
    shrunk(model, 1e7, monkeypatch)
    with pytest.raises(UnlearnError, match="'saliency'") as caught:
        Saliency(SaliencyConfig()).attribute(model, data, attrs.evolve(make_run(), precision="fp16"))
    assert caught.value.code == "VU-U036"


def test_the_scale_of_fp16_changes_no_bit_in_fp32(data, make_run):
    plain = Saliency(SaliencyConfig()).attribute(ToyDenoiser(), data, make_run(), candidates=TARGETS)
    scaled = Saliency(SaliencyConfig()).attribute(
        ToyDenoiser(), data, attrs.evolve(make_run(), precision="fp16"), candidates=TARGETS
    )
    assert all(torch.equal(plain[name], scaled[name]) for name in TARGETS)


@pytest.mark.parametrize("make", [p for p in EVERY if p.id in ("saliency", "fisher")])
def test_the_draws_are_none_of_the_training(make, model, data, make_run, monkeypatch):
    noises, times = [], []
    add_noise = model.add_noise

    def watched(latents, noise, timesteps):
        noises.extend(noise)
        times.extend(timesteps.tolist())
        return add_noise(latents, noise, timesteps)

    monkeypatch.setattr(model, "add_noise", watched)
    make().attribute(model, data, make_run(), candidates=TARGETS)
    rows = tuple(range(len(data.forget)))
    step = Batch(data.forget, rows, 0, rows, make_run(), torch.device("cpu"))
    training = step.normal("noise", noises[0].shape)
    assert len(noises) == len(rows)
    assert not any(torch.equal(noise, other) for noise in noises for other in training)
    assert times != step.integers("timestep", 0, model.timesteps).tolist()


def test_gradients_are_copied_only_where_they_are_scaled(model, make_run):
    w = torch.ones(3, requires_grad=True)
    factor = torch.full((3,), 2.0)
    plain = LossGradients(own_loss(model), {"w": w}, OwnDraws(make_run(), "saliency"), 2)
    (found,) = plain._scaled((w * factor).sum(), [w])
    assert found.tolist() == [2.0, 2.0, 2.0]
    leaf: list[torch.Tensor] = []
    w.register_hook(leaf.append)
    (found,) = plain._scaled((w * factor).sum(), [w])
    assert found.data_ptr() == leaf[0].data_ptr()
