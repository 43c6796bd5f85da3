"""What the gradients are taken of: classifiers, guided denoisers, and batches that are not full (baselines.md, 2.2)."""

from __future__ import annotations

import attrs
import pytest
import torch

from vu_attribution.fisher import Fisher, FisherConfig
from vu_attribution.gradients import OwnDraws, own_loss
from vu_attribution.plugin import vu_register_attributions
from vu_attribution.saliency import Saliency, SaliencyConfig
from vu_core import Batch, PlanError
from vu_core.testing import AttributionTests, ToyClassifier, toy_forget_retain
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data

TARGETS = ("unet.attn1.to_q.weight", "unet.attn2.to_out.0.weight", "unet.conv_in.weight")


class OfAClassifier(AttributionTests):
    def make_model(self):
        return ToyClassifier()

    def make_data(self, run):
        return toy_forget_retain(run, model=ToyClassifier())

    def candidates(self):
        return ["classifier.conv.weight", "classifier.fc.weight"]


class TestSaliencyOfAClassifier(OfAClassifier):
    plugin = Saliency
    settings = {"batch_size": 3}
    tested_elsewhere = ("guidance",)  # a classifier has none


class TestFisherOfAClassifier(OfAClassifier):
    plugin = Fisher


def whole(examples, run, prefix="saliency") -> Batch:
    rows = tuple(range(len(examples)))
    return Batch(examples, rows, 0, rows, OwnDraws(run, prefix), torch.device("cpu"))


def gradient(loss, tensor):
    tensor.requires_grad_(True)
    (found,) = torch.autograd.grad(loss(), [tensor])
    tensor.requires_grad_(False)
    return found


@pytest.fixture
def images(make_run):
    return toy_forget_retain(make_run(), model=ToyClassifier())


def test_a_classifier_is_scored_by_its_cross_entropy(make_run, images):
    model, batch = ToyClassifier(), whole(images.forget, make_run())
    name, labels = "classifier.hidden.weight", model.labels(whole(images.forget, make_run()))

    def loss():
        logits = model.network["classifier"](model.images(batch))
        return -logits.log_softmax(dim=1)[torch.arange(len(labels)), labels].mean()

    expected = gradient(loss, model.network.get_parameter(name)).abs()
    found = Saliency(SaliencyConfig(batch_size=len(labels))).attribute(model, images, make_run(), candidates=[name])
    torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-9)
    assert float(expected.max()) > 0


def test_without_candidates_a_classifier_is_scored_as_a_whole(make_run, images):
    model = ToyClassifier()
    found = Saliency(SaliencyConfig()).attribute(model, images, make_run())
    assert set(found) == {name for name, _ in model.network.named_parameters()}


def test_fisher_squares_single_images(make_run, images):
    model, name = ToyClassifier(), "classifier.fc.weight"
    batch, squares = whole(images.forget, make_run(), "fisher"), []
    for row in range(len(batch)):
        one = attrs.evolve(batch, rows=(row,), positions=(row,))
        loss = lambda one=one: torch.nn.functional.cross_entropy(  # noqa: E731
            model.network["classifier"](model.images(one)), model.labels(one)
        )
        squares.append(gradient(loss, model.network.get_parameter(name)).square())
    found = Fisher(FisherConfig()).attribute(model, images, make_run(), candidates=[name])
    torch.testing.assert_close(found[name], torch.stack(squares).mean(dim=0), rtol=1e-5, atol=1e-12)


def test_guidance_does_nothing_to_a_classifier(make_run, images):
    name = "classifier.fc.weight"
    plain, guided = (
        Saliency(SaliencyConfig(guidance=w)).attribute(ToyClassifier(), images, make_run(), candidates=[name])[name]
        for w in (0.0, 7.5)
    )
    assert torch.equal(plain, guided)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("w", [0.0, 1.0, 7.5])
def test_the_guided_loss_is_its_formula(w, prediction, make_run):
    model, data = ToyDenoiser(prediction), toy_data()
    batch = whole(data.forget, make_run())
    z, t = model.latents(batch), batch.integers("timestep", 0, model.timesteps)
    n = batch.normal("noise", z.shape[1:])
    z_t = model.add_noise(z, n, t)
    y = n if prediction == "epsilon" else model.target(z, n, t)

    def loss():
        with_caption = model.predict(z_t, t, model.embed(batch.captions))
        without = model.predict(z_t, t, model.embed([""] * len(batch)))
        return ((1 + w) * with_caption - w * without - y).square().mean()

    assert own_loss(model, w)(batch).item() == pytest.approx(loss().item(), rel=1e-5)
    config = SaliencyConfig(guidance=w, batch_size=len(batch))
    found = Saliency(config).attribute(model, data, make_run(), candidates=TARGETS)
    for name in TARGETS:
        expected = gradient(loss, model.network.get_parameter(name)).abs()
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)


def test_without_guidance_the_denoiser_is_asked_once(make_run, monkeypatch):
    model, asked = ToyDenoiser(), []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda captions: asked.extend(captions) or embed(captions))
    Saliency(SaliencyConfig()).attribute(model, toy_data(), make_run(), candidates=TARGETS)
    assert "" not in asked
    assert len(asked) == 5


@pytest.mark.parametrize("reduce", ["sum_abs", "abs_sum", "mean"])
def test_a_batch_that_is_not_full_weighs_by_its_size_if_asked(reduce, make_run):
    model, data, name = ToyDenoiser(), toy_data(), TARGETS[0]  # 5 examples: batches of 2, 2 and 1

    def score(weighted):
        config = SaliencyConfig(reduce=reduce, weight_by_batch_size=weighted)
        return Saliency(config).attribute(model, data, make_run(), candidates=[name])[name]

    parts = []
    for rows in ((0, 1), (2, 3), (4,)):
        batch = attrs.evolve(whole(data.forget, make_run()), rows=rows, positions=rows)
        parts.append(gradient(lambda batch=batch: own_loss(model)(batch), model.network.get_parameter(name)))
    for weighted, last in ((False, 1.0), (True, 0.5)):
        if reduce == "abs_sum":
            expected = (parts[0] + parts[1] + last * parts[2]).abs()
        else:
            expected = parts[0].abs() + parts[1].abs() + last * parts[2].abs()
        expected = expected / (2 + last) if reduce == "mean" else expected
        torch.testing.assert_close(score(weighted), expected, rtol=1e-5, atol=1e-9)


def test_signed_batches_cancel_before_the_absolute_value_is_taken(make_run):
    model, data, name = ToyDenoiser(), toy_data(), TARGETS[0]
    of = {
        reduce: Saliency(SaliencyConfig(reduce=reduce)).attribute(model, data, make_run(), candidates=[name])[name]
        for reduce in ("abs_sum", "sum_abs")
    }
    assert bool((of["abs_sum"] <= of["sum_abs"] * (1 + 1e-5) + 1e-9).all())
    assert bool((of["abs_sum"] < 0.5 * of["sum_abs"]).any())


def test_a_model_that_is_neither_is_refused(make_run, images):
    model = ToyClassifier()

    class Other:
        network, facts = model.network, model.facts

    with pytest.raises(PlanError, match="neither") as caught:
        Saliency(SaliencyConfig()).attribute(Other(), images, make_run())
    assert caught.value.code == "VU-L091"


def test_one_of_two_capabilities_will_do():
    seen = {}
    vu_register_attributions(lambda name, target, **more: seen.update({name: more}))
    assert seen["saliency"]["needs"] == seen["fisher"]["needs"] == ("denoise|classify",)
