"""Random label: both objectives written out, the labels, the signs, and what is refused (baselines.md, truth 4)."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F

from vu_baselines.plugin import vu_register_unlearners
from vu_baselines.random_label import OtherCaption, OtherLabel, RandomLabel, RandomLabelConfig
from vu_core import Batch, ConfigError, PlanError
from vu_core.adapters import Full, FullConfig, apply_edit, edit_digest
from vu_core.testing import ToyClassifier
from vu_core.testing.toy_denoiser import ToyDenoiser
from vu_core.training import Timesteps, Training, fit


def batch_of(examples, run, rows=(0, 2, 1), passed=0) -> Batch:
    return Batch(examples, rows, 0, tuple(range(len(rows))), run, torch.device("cpu"), (passed,) * len(rows))


def moved(theta):
    """Move what is trained off its base."""
    with torch.no_grad():
        for index, tensor in enumerate(theta.parameters()):
            tensor += 0.2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
    return theta


def noisy(model, batch):
    """Latents, noise, timesteps and noisy latents of the rows, drawn by hand."""
    t, n = batch.integers("timestep", 0, 100), batch.normal("noise", (2, 4, 4))
    z = batch["latent_mean"] + batch["latent_std"] * batch.normal("posterior", (2, 4, 4))
    a = model.alphas[t][:, None, None, None]
    return z, n, t, a.sqrt() * z + (1 - a).sqrt() * n


# Diffusion


@pytest.fixture
def asked(make_run, latents):
    """The losses of one batch per side with a moved network: ``(losses, batches, model, theta)``."""

    def make(model=None, **settings):
        model, run = model or ToyDenoiser(), make_run()
        theta = moved(run.parameterise(model))
        objective = OtherCaption(model, theta, RandomLabelConfig(**settings), Timesteps(0, 100))
        batches = {"forget": batch_of(latents.forget, run), "retain": batch_of(latents.retain, run)}
        return objective(batches), batches, model, theta

    return make


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_forgotten_caption_is_answered_as_its_overwrite_by_the_same_network(prediction, asked):
    found, batches, model, _ = asked(ToyDenoiser(prediction), forget_scale=3.0)
    batch = batches["forget"]
    _, _, t, z_t = noisy(model, batch)
    answer = model.predict(z_t, t, model.embed(batch.captions))
    wanted = model.predict(z_t, t, model.embed(batch.overwrites))
    assert batch.captions != batch.overwrites
    assert found["forget"].item() == pytest.approx(3 * (answer - wanted).square().mean().item(), rel=1e-5)
    assert found["forget"].item() > 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_retain_loss_is_that_of_the_denoiser(prediction, asked):
    found, batches, model, _ = asked(ToyDenoiser(prediction), forget_scale=3.0)
    batch = batches["retain"]
    z, n, t, z_t = noisy(model, batch)
    a = model.alphas[t][:, None, None, None]
    y = n if prediction == "epsilon" else a.sqrt() * n - (1 - a).sqrt() * z
    expected = (model.predict(z_t, t, model.embed(batch.captions)) - y).square().mean()
    assert found["retain"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_gradient_flows_through_the_teacher(asked):
    found, batches, model, theta = asked()
    batch = batches["forget"]
    _, _, t, z_t = noisy(model, batch)
    wanted = model.predict(z_t, t, model.embed(batch.overwrites)).detach()
    expected = F.mse_loss(model.predict(z_t, t, model.embed(batch.captions)), wanted)
    pairs = zip(
        torch.autograd.grad(found["forget"], theta.parameters(), allow_unused=True),
        torch.autograd.grad(expected, theta.parameters(), allow_unused=True),
        strict=True,
    )
    for got, due in pairs:
        torch.testing.assert_close(got, due)


def test_the_base_as_teacher_is_the_untouched_network(asked):
    found, batches, _, _ = asked(teacher="base")
    with_moved, _, model, _ = asked()
    batch, untouched = batches["forget"], ToyDenoiser()
    _, _, t, z_t = noisy(model, batch)
    answer = model.predict(z_t, t, model.embed(batch.captions))
    wanted = untouched.predict(z_t, t, untouched.embed(batch.overwrites))
    assert found["forget"].item() == pytest.approx((answer - wanted).square().mean().item(), rel=1e-5)
    assert found["forget"].item() != pytest.approx(with_moved["forget"].item(), rel=1e-2)


def test_both_losses_of_a_denoiser_are_descended(make_run, latents, denoiser):
    run = make_run(training=Training(steps=40, batch_size=5, lr=3e-3, schedule="constant", weight_decay=0.0))
    theta = run.parameterise(denoiser)
    objective = OtherCaption(denoiser, theta, RandomLabelConfig(), Timesteps(0, 100))
    batches = {"forget": batch_of(latents.forget, run), "retain": batch_of(latents.retain, run)}
    before = {side: loss.item() for side, loss in objective(batches).items()}
    fit(theta, objective, latents, run)
    after = {side: loss.item() for side, loss in objective(batches).items()}
    assert after["forget"] < 0.7 * before["forget"]
    assert after["retain"] < before["retain"]


@pytest.mark.parametrize("which", ["x", "x-strict", "u", "self", "all"])
def test_only_the_subset_is_trained(which, make_run, latents, denoiser):
    names = {name for name, _ in denoiser.network["unet"].named_parameters()}
    belongs = {
        "x": lambda name: "attn2" in name,
        "x-strict": lambda name: "attn2.to_k" in name or "attn2.to_v" in name,
        "u": lambda name: "attn2" not in name,
        "self": lambda name: "attn1" in name,
        "all": lambda name: True,
    }[which]
    edit = RandomLabel(RandomLabelConfig(subset=which)).unlearn(denoiser, latents, make_run())
    assert set(edit.parts) == {f"unet.{name}" for name in names if belongs(name)}


def test_an_empty_subset_is_an_error(make_run, latents, denoiser):
    run = make_run(parameters=Full(FullConfig(targets=("conv_in",))))
    with pytest.raises(PlanError) as caught:
        RandomLabel(RandomLabelConfig(subset="x")).unlearn(denoiser, latents, run)
    assert caught.value.code == "VU-L092"


def test_noise_offset_and_timesteps_are_those_of_the_settings(make_run, latents, denoiser, monkeypatch):
    seen = []
    add_noise = denoiser.add_noise
    monkeypatch.setattr(denoiser, "add_noise", lambda z, n, t: seen.append((n, t)) or add_noise(z, n, t))
    plain = RandomLabelConfig(timestep_low=30, timestep_high=50)
    for config in (plain, attrs.evolve(plain, noise_offset=0.5)):
        RandomLabel(config).unlearn(denoiser, latents, make_run())
    half = len(seen) // 2
    assert half > 0
    assert all(bool(((t >= 30) & (t < 50)).all()) for _, t in seen)
    assert all(not torch.equal(n, m) for (n, _), (m, _) in zip(seen[:half], seen[half:], strict=True))


def test_an_impossible_range_of_timesteps_is_an_error(make_run, latents, denoiser):
    with pytest.raises(ConfigError) as caught:
        RandomLabel(RandomLabelConfig(timestep_high=101)).unlearn(denoiser, latents, make_run())
    assert caught.value.code == "VU-C090"


# Classifiers


def labels_over(examples, run, relabel, passes=200, classes=3):
    """The labels of every row in many passes, ``(passes, N)``, and the true ones ``(N,)``."""
    model = ToyClassifier()
    objective = OtherLabel(model, 1.0, relabel)
    rows = tuple(range(len(examples)))
    drawn = torch.stack([objective.wrong_labels(batch_of(examples, run, rows, p)) for p in range(passes)])
    assert drawn.dtype == torch.int64
    return drawn, model.labels(batch_of(examples, run, rows))


def test_labels_never_equal_the_truth_and_are_uniform_over_the_others(make_run, images):
    for examples in (images.forget, images.retain):  # red; green and blue
        drawn, truth = labels_over(examples, make_run(), "uniform")
        assert not bool((drawn == truth).any())
        for y in truth.unique():
            counts = torch.bincount(drawn[:, truth == y].flatten(), minlength=3)
            others = counts[counts > 0].double()
            assert len(others) == 2
            assert bool(((others / others.sum()) - 0.5).abs().max() < 0.08)


def test_parity_may_draw_the_truth(make_run, images):
    drawn, truth = labels_over(images.forget, make_run(), "parity")
    counts = torch.bincount(drawn.flatten(), minlength=3).double()
    assert bool((counts / counts.sum() - 1 / 3).abs().max() < 0.07)
    assert bool((drawn == truth).any())


def test_next_is_the_class_after(make_run, images):
    drawn, truth = labels_over(images.retain, make_run(), "next", passes=2)
    assert drawn.tolist() == [[(y + 1) % 3 for y in truth.tolist()]] * 2
    assert 0 in drawn[0].tolist()  # blue, the last one, becomes red


def test_a_label_stays_for_a_pass_and_changes_with_it(make_run, images):
    objective, run = OtherLabel(ToyClassifier(), 1.0, "uniform"), make_run()
    once = objective.wrong_labels(batch_of(images.forget, run, (0, 1, 2, 3)))
    shuffled = attrs.evolve(batch_of(images.forget, run, (2, 0)), step=5, positions=(3, 1))
    assert objective.wrong_labels(shuffled).tolist() == once[[2, 0]].tolist()
    later = [objective.wrong_labels(batch_of(images.forget, run, (0, 1, 2, 3), p)).tolist() for p in range(6)]
    assert any(labels != once.tolist() for labels in later)


def test_labels_of_a_run_are_fixed_per_epoch(make_run, images, classifier, monkeypatch):
    seen: dict[tuple[int, int], set[int]] = {}
    wrong_labels = OtherLabel.wrong_labels

    def watched(self, batch):
        drawn = wrong_labels(self, batch)
        for key in zip(batch.rows, batch.passes, drawn.tolist(), strict=True):
            seen.setdefault(key[:2], set()).add(key[2])
        return drawn

    monkeypatch.setattr(OtherLabel, "wrong_labels", watched)
    run = make_run(training=Training(epochs=3, batch_size=2, lr=1e-2))
    RandomLabel(RandomLabelConfig()).unlearn(classifier, images, run)
    assert set(seen) == {(row, passed) for row in range(len(images.forget)) for passed in range(3)}
    assert all(len(drawn) == 1 for drawn in seen.values())


def test_the_losses_of_a_classifier_are_cross_entropies(make_run, images, classifier):
    run = make_run()
    objective = OtherLabel(classifier, 3.0, "uniform")
    batches = {"forget": batch_of(images.forget, run), "retain": batch_of(images.retain, run)}
    found = objective(batches)
    for side, scale, labels in (
        ("forget", 3.0, objective.wrong_labels(batches["forget"])),
        ("retain", 1.0, classifier.labels(batches["retain"])),
    ):
        log_p = classifier.logits(classifier.images(batches[side])).log_softmax(dim=1)
        expected = -scale * log_p[torch.arange(3), labels].mean()
        assert found[side].item() == pytest.approx(expected.item(), rel=1e-5)
        assert found[side].dtype == torch.float32


def test_a_classifier_unlearns_the_forgotten_class_and_keeps_the_others(make_run, images, classifier):
    run = make_run(training=Training(steps=60, batch_size=4, lr=2e-2, schedule="constant", weight_decay=0.0))
    edit = RandomLabel(RandomLabelConfig()).unlearn(classifier, images, run)

    def accuracy(examples):
        batch = batch_of(examples, run, tuple(range(len(examples))))
        right = classifier.logits(classifier.images(batch)).argmax(dim=1) == classifier.labels(batch)
        return right.double().mean().item()

    assert (accuracy(images.validation_forget), accuracy(images.validation_retain)) == (1.0, 1.0)
    with apply_edit(classifier.network, edit):
        assert accuracy(images.validation_forget) == 0.0
        assert accuracy(images.validation_retain) == 1.0


@pytest.mark.parametrize(
    "change",
    [{"subset": "x"}, {"teacher": "base"}, {"noise_offset": 0.1}, {"timestep_low": 1}, {"timestep_high": 50}],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_of_denoisers_is_refused_with_a_classifier(change, make_run, images, classifier):
    with pytest.raises(ConfigError, match=next(iter(change))) as caught:
        RandomLabel(RandomLabelConfig(**change)).unlearn(classifier, images, make_run())
    assert caught.value.code == "VU-C113"


@pytest.mark.parametrize(
    "change", [{"relabel": "next"}, {"order": "sequential"}], ids=lambda change: next(iter(change))
)
def test_a_setting_of_classifiers_is_refused_with_a_denoiser(change, make_run, latents, denoiser):
    with pytest.raises(ConfigError, match=next(iter(change))) as caught:
        RandomLabel(RandomLabelConfig(**change)).unlearn(denoiser, latents, make_run())
    assert caught.value.code == "VU-C113"


def test_a_classifier_of_one_class_is_an_error(make_run, images, classifier):
    classifier.classes = ("red",)
    with pytest.raises(PlanError) as caught:
        RandomLabel(RandomLabelConfig()).unlearn(classifier, images, make_run())
    assert caught.value.code == "VU-L095"


# Both


def test_the_forget_scale_weighs_the_forget_loss(make_run, make_axis, latents):
    def unlearn(scale, weight):
        weighting = make_axis("weighting", "simple", forget_weight=weight, retain_weight=1.0)
        edit = RandomLabel(RandomLabelConfig(forget_scale=scale)).unlearn(
            ToyDenoiser(), latents, make_run(weighting=weighting)
        )
        return torch.cat([edit.parts[name].tensor.flatten() for name in sorted(edit.parts)])

    torch.testing.assert_close(unlearn(4.0, 1.0), unlearn(1.0, 4.0))
    assert not torch.allclose(unlearn(4.0, 1.0), unlearn(1.0, 1.0))


@pytest.mark.parametrize(("scale", "scale_free", "warned"), [(3.0, True, 1), (1.0, True, 0), (3.0, False, 0)])
def test_a_scale_that_does_nothing_is_warned_of(scale, scale_free, warned, make_run, make_axis, latents):
    weighting, events = make_axis("weighting", "simple"), []
    weighting.scale_free = scale_free
    run = make_run(weighting=weighting, emit_event=events.append)
    RandomLabel(RandomLabelConfig(forget_scale=scale)).unlearn(ToyDenoiser(), latents, run)
    told = [event.values["text"] for event in events if event.type == "warning"]
    assert len(told) == warned
    assert all("forget_scale = 3" in text for text in told)


def test_the_default_settings_are_those_of_the_paper():
    config = RandomLabelConfig()
    assert (config.training.epochs, config.training.batch_size, config.training.lr) == (5, 8, 1e-5)
    assert config.training.weight_decay == 0.0
    assert (config.forget_scale, config.teacher, config.relabel, config.subset) == (1.0, "current", "uniform", None)


# In turns


def in_turns(make_run, images, config=None, **fields):
    """Run with sequential order and return the edit and what each step was handed: (side, rows, learning rate)."""
    seen = []

    class Watched(ToyClassifier):
        def images(self, batch):
            seen.append((batch.side, batch.rows))
            return super().images(batch)

    rates = []
    run = make_run(
        emit_event=lambda event: rates.append(event.values["lr"]) if "lr" in event.values else None, **fields
    )
    edit = RandomLabel(config or RandomLabelConfig(order="sequential")).unlearn(Watched(), images, run)
    run.release()
    return edit, seen, rates


def test_in_sequential_order_each_epoch_passes_over_one_side_after_the_other(make_run, images):
    training = Training(epochs=2, batch_size=2, lr=1e-2, schedule="linear")
    edit, seen, rates = in_turns(make_run, images, training=training)
    n_f, n_r = len(images.forget), len(images.retain)
    sides = ["forget"] * (n_f // 2) + ["retain"] * (n_r // 2)
    assert [side for side, _ in seen] == sides * 2
    for start in (0, len(sides)):
        first, then = seen[start : start + n_f // 2], seen[start + n_f // 2 : start + len(sides)]
        assert sorted(row for _, rows in first for row in rows) == list(range(n_f))
        assert sorted(row for _, rows in then for row in rows) == list(range(n_r))
    assert rates == pytest.approx([1e-2] * len(sides) + [5e-3] * len(sides))
    mixed = RandomLabel(RandomLabelConfig()).unlearn(ToyClassifier(), images, make_run(training=training))
    assert edit_digest(attrs.evolve(edit, facts={})) != edit_digest(attrs.evolve(mixed, facts={}))


def test_labels_of_later_epochs_are_drawn_anew(make_run, images, monkeypatch):
    drawn = []
    wrong_labels = OtherLabel.wrong_labels

    def watched(self, batch):
        labels = wrong_labels(self, batch)
        drawn.append(dict(zip(batch.rows, labels.tolist(), strict=True)))
        return labels

    monkeypatch.setattr(OtherLabel, "wrong_labels", watched)
    in_turns(make_run, images, training=Training(epochs=6, batch_size=100, lr=1e-3))
    assert len(drawn) == 6
    assert any(labels != drawn[0] for labels in drawn[1:])


@pytest.mark.parametrize("reason", ["steps", "weighting"])
def test_sides_that_cannot_take_turns(reason, make_run, make_axis, images):
    training = Training(steps=2, batch_size=2) if reason == "steps" else Training(epochs=1, batch_size=2)
    weighting = make_axis("weighting", "munba" if reason == "weighting" else "simple")
    with pytest.raises(ConfigError, match=reason) as caught:
        in_turns(make_run, images, training=training, weighting=weighting)
    assert caught.value.code == "VU-C148"


def test_registered_names():
    seen = {}
    vu_register_unlearners(lambda name, target, **more: seen.update({name: more}))
    assert seen["random-label"]["aliases"] == ("rl",)
    assert all(seen[name]["needs"] == ("denoise|classify",) for name in ("random-label", "salun"))
    assert "attribution" in seen["salun"]["axes"]
    assert "attribution" not in seen["random-label"]["axes"]
