"""Negation: the loss, the sign of the edit, and that retain examples take no part (fade.md, sections 7 and 9)."""

from __future__ import annotations

import attrs
import pytest
import torch

from vu_core import Batch, ConfigError, Examples, LowRank, PlanError, Run
from vu_core.adapters import (
    Full,
    FullConfig,
    Lora,
    LoraConfig,
    MaskedLora,
    apply_edit,
    compose,
    edit_digest,
    load_edit,
    negated,
    save_edit,
)
from vu_core.config import Override
from vu_core.plugins import discover
from vu_core.stages.read import read
from vu_core.stages.structure import structure
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_examples
from vu_core.training import Training
from vu_fade.fade import Distillation, FadeConfig
from vu_fade.lora_negation import DenoisingLoss, LoraNegation, LoraNegationConfig

QUICK = Training(steps=4, batch_size=2, lr=1e-2, schedule="constant")


@pytest.fixture
def unlearn(make_run, data):
    """Run the method: ``(the edit, the edit that was learned, the run)``."""

    def make(config=None, model=None, data=data, **fields):
        run = make_run(**{"training": QUICK, "weighting": None, **fields})
        edit = LoraNegation(config or LoraNegationConfig()).unlearn(model or ToyDenoiser(), data, run)
        return edit, run.attached[-1].edit(), run

    return make


def listening(key):
    """What a run tells of its steps under a key, and the listener that collects it."""
    told = []
    return told, lambda event: told.append(event.values[key]) if "loss_forget" in event.values else None


def forget_batch(run: Run, step: int = 0) -> Batch:
    return Batch(toy_examples("forget", 5), (0, 2, 4), step, (0, 1, 2), run, torch.device("cpu"))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_denoiser(prediction, make_run):
    model, run = ToyDenoiser(prediction), make_run()
    found = DenoisingLoss.of(model, LoraNegationConfig())({"forget": forget_batch(run)})
    assert set(found) == {"forget"}
    batch, squares = forget_batch(run), []
    t, n = batch.integers("timestep", 0, 100), batch.normal("noise", (2, 4, 4))
    z = batch["latent_mean"] + batch["latent_std"] * batch.normal("posterior", (2, 4, 4))
    for row in range(3):
        a, b = model.alphas[t[row]].sqrt(), (1 - model.alphas[t[row]]).sqrt()
        asked = (a * z[row] + b * n[row])[None], t[row : row + 1], model.embed([batch.captions[row]])
        y = n[row] if prediction == "epsilon" else a * n[row] - b * z[row]
        squares += [(model.predict(*asked)[0] - y).square()]
    assert found["forget"].item() == pytest.approx(torch.stack(squares).mean().item(), rel=1e-5)
    assert found["forget"].item() > 0.1
    assert found["forget"].dtype == torch.float32


def test_noise_and_timesteps_are_those_of_fade(make_run, model):
    config = FadeConfig(noise_offset=0.2, timestep_low=30, timestep_high=50)
    run, seen = make_run(), []
    fade = Distillation.of(model, run.parameterise(model), config).ask(forget_batch(run))
    run.release()
    predict = model.predict
    model.predict = lambda noisy, t, c: seen.append((noisy, t)) or predict(noisy, t, c)
    DenoisingLoss.of(model, config)({"forget": forget_batch(run)})
    assert torch.equal(seen[0][0], fade.noisy)
    assert torch.equal(seen[0][1], fade.timesteps)
    assert bool(((fade.timesteps >= 30) & (fade.timesteps < 50)).all())


def test_the_offset_of_the_noise_is_part_of_the_target(make_run, model):
    run, targets = make_run(), []
    target = model.target
    model.target = lambda z, n, t: targets.append(target(z, n, t)) or targets[-1]
    for offset in (0.0, 0.5):
        DenoisingLoss.of(model, LoraNegationConfig(noise_offset=offset))({"forget": forget_batch(run)})
    shift = targets[1] - targets[0]  # (3, C, h, w)
    assert shift.abs().amin() > 1e-4
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift))


def test_the_loss_of_half_precision_predictions_is_taken_in_float32(make_run, model):
    run, seen = make_run(), []
    predict, target = model.predict, model.target
    model.predict = lambda *asked: seen.append(predict(*asked).bfloat16()) or seen[-1]
    model.target = lambda *asked: seen.append(target(*asked).bfloat16()) or seen[-1]
    found = DenoisingLoss.of(model, LoraNegationConfig())({"forget": forget_batch(run)})["forget"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx((seen[0].float() - seen[1].float()).square().mean().item(), rel=1e-6)


@pytest.mark.parametrize("limits", [(0, 101), (100, None)])
def test_an_impossible_range_of_timesteps_is_an_error(limits, unlearn):
    with pytest.raises(ConfigError) as caught:
        unlearn(LoraNegationConfig(timestep_low=limits[0], timestep_high=limits[1]))
    assert caught.value.code == "VU-C090"


@pytest.mark.parametrize("parameters", [Lora, MaskedLora])
def test_the_edit_is_what_was_learned_with_the_sign_of_a_changed(parameters, unlearn):
    edit, learned, _ = unlearn(parameters=parameters(LoraConfig(rank=2, alpha=3.0)))
    assert edit.parts.keys() == learned.parts.keys()
    assert len(edit.parts) == 8
    for name, part in edit:
        was = learned.parts[name]
        assert isinstance(part, LowRank)
        assert was.delta().any()
        assert torch.equal(part.A, -was.A)
        assert torch.equal(part.B, was.B)
        assert (part.alpha, part.mask) == (3.0, None)
    assert edit_digest(attrs.evolve(negated(edit), facts={})) == edit_digest(learned)


class OneMasked(MaskedLora):
    """Trains one weight within a mask, as an attribution would choose it."""

    name = "unet.attn1.to_q.weight"
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.3

    def attach(self, model, run, **chosen):
        return super().attach(model, run, targets=[self.name], masks={self.name: self.mask})


def test_the_mask_of_what_was_learned_stays(unlearn):
    edit, learned, _ = unlearn(parameters=OneMasked(LoraConfig(rank=2)))
    assert list(edit.parts) == [OneMasked.name]
    part = edit.parts[OneMasked.name]
    assert torch.equal(part.mask, OneMasked.mask)
    assert torch.equal(part.delta(), -learned.parts[OneMasked.name].delta())
    assert part.delta()[part.mask].any()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_learning_lowers_the_forget_loss_and_negation_raises_it(prediction, unlearn, make_run):
    model, (told, listen) = ToyDenoiser(prediction), listening("loss_forget")
    training = Training(steps=60, batch_size=5, lr=1e-2, schedule="constant")
    edit, learned, run = unlearn(model=model, training=training, emit_event=listen)
    assert sum(told[-10:]) < 0.95 * sum(told[:10])
    run.release()
    loss = DenoisingLoss.of(model, LoraNegationConfig())

    def on_forget(*edits):
        with apply_edit(model.network, *edits), torch.no_grad():
            return sum(loss({"forget": forget_batch(run, step)})["forget"].item() for step in range(1000, 1030))

    before = on_forget()
    assert on_forget(learned) < 0.95 * before
    assert on_forget(edit) > 1.05 * before


@pytest.mark.parametrize("strength", [0.25, 1.0, 3.0])
def test_the_strength_multiplies_what_is_subtracted(strength, unlearn):
    edit, learned, _ = unlearn(LoraNegationConfig(strength=strength))
    for name, part in edit:
        torch.testing.assert_close(part.delta(), -strength * learned.parts[name].delta(), rtol=1e-6, atol=1e-9)
        assert part.alpha == strength * learned.parts[name].alpha
    assert edit.facts["strength"] == strength
    assert edit.facts["tuned_parameters"] == sum(p.A.numel() + p.B.numel() for _, p in learned)


def test_whole_weights_are_negated_too(model, unlearn):
    # A rank of 8 numbers: few changes are sparse parts, many are replaced tensors; both are taken from the base.
    edit, learned, run = unlearn(
        LoraNegationConfig(strength=2.0), model, parameters=Full(FullConfig(targets=("to_q", "to_out.0")))
    )
    run.release()
    assert len(edit.parts) == 6
    for name, part in edit:
        base = model.network.get_parameter(name).detach()
        expected = base.double() - 2 * (compose(base, [learned.parts[name]]).double() - base.double())
        assert not torch.equal(compose(base, [part]), base)
        torch.testing.assert_close(compose(base, [part]).double(), expected, rtol=0, atol=1e-6)


class Untouchable:
    """A table of retain examples that may be counted and no more."""

    side = "retain"

    def __len__(self):
        return 6

    def __getattr__(self, name):
        pytest.fail(f"{name} of the retain examples was looked at")


def test_no_retain_example_is_touched(data, unlearn):
    model, sides = ToyDenoiser(), set()
    latents = model.latents
    model.latents = lambda batch: sides.add(batch.side) or latents(batch)
    spied = attrs.evolve(data, retain=Untouchable(), validation_retain=Untouchable())
    edit, _, _ = unlearn(model=model, data=spied)
    assert sides == {"forget"}
    empty = attrs.evolve(data, retain=Examples("retain", ()), validation_retain=Examples("retain", ()))
    assert edit_digest(unlearn(data=empty)[0]) == edit_digest(edit)


def test_an_epoch_counts_the_forget_examples_alone(data, unlearn):
    few, (totals, listen) = attrs.evolve(data, retain=toy_examples("retain", 1)), listening("total")
    unlearn(data=few, training=Training(epochs=2, batch_size=2), emit_event=listen)
    assert set(totals) == {6}  # 2 passes over 5 examples in batches of 2


class Norm:
    """Penalises the squared change, on the retain side; keeps the data it was prepared on."""

    side = "retain"

    def __init__(self, factor):
        self.factor, self.prepared = factor, []

    def prepare(self, model, theta, data, run):
        self.prepared.append(data)
        self.theta = theta

    def penalty(self):
        return self.factor * sum(delta.square().sum() for _, delta in self.theta.named_deltas())

    def after_step(self, optimizer):
        pass

    def state(self):
        return {}


def test_a_norm_shrinks_the_change_whatever_its_sign(data, unlearn):
    def size(factor):
        norm = Norm(factor)
        training = Training(steps=30, batch_size=2, lr=1e-2, schedule="constant", max_grad_norm=0.0)
        edit, _, _ = unlearn(regularizers=(norm,), training=training)
        assert norm.prepared == [data]  # the retain examples too, which a regularizer may look at
        return sum(part.delta().square().sum().item() for _, part in edit)

    assert size(10.0) < 0.3 * size(0.0)


@pytest.mark.parametrize("way", ["flag", "file"])
@pytest.mark.parametrize("method", ["lora-negation", "direct"])
def test_a_weighting_is_refused(way, method, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[weighting]\nname = 'simple'\nretain_weight = 1.0\n", encoding="utf-8")
    flags = [Override("unlearner.method", method, "--method")]
    if way == "flag":
        flags.append(Override("weighting.name", "simple", "--weighting"))
    with pytest.raises(PlanError, match="'lora-negation' does not use weighting") as caught:
        structure(read(path if way == "file" else None, flags), discover())
    assert caught.value.code == "VU-L001"
    assert "It honours parameters, regularizer." in caught.value.remedy


def test_it_has_one_name_and_its_defaults():
    entry = discover().registry.get("unlearner", "direct")
    assert (entry.name, entry.load(), entry.axes) == ("lora-negation", LoraNegation, ("parameters", "regularizer"))
    config = LoraNegationConfig()
    assert (config.strength, config.noise_offset, config.timestep_low, config.timestep_high) == (1.0, 0.0, 0, None)
    assert config.training == Training(epochs=1)
    assert LoraNegation.defaults == {"parameters": {"name": "lora", "rank": 4, "alpha": 4.0}}


def test_the_adapter_comes_off_when_training_fails(model, unlearn, monkeypatch):
    def broken(batch):
        raise RuntimeError("broken")

    modules = [id(module) for module in model.network.modules()]
    monkeypatch.setattr(model, "latents", broken)
    with pytest.raises(RuntimeError, match="broken"):
        unlearn(model=model)
    assert [id(module) for module in model.network.modules()] == modules


def test_saved_and_loaded_the_edit_is_the_same(unlearn, tmp_path):
    edit, _, _ = unlearn(LoraNegationConfig(strength=1.5))
    save_edit(edit, tmp_path / "edit.safetensors")
    assert edit_digest(load_edit(tmp_path / "edit.safetensors")) == edit_digest(edit)


def test_an_interrupted_and_resumed_run_gives_bitwise_the_same_edit(unlearn, tmp_path):
    training = Training(steps=9, lr=1e-2, batch_size=2, checkpoint_every=0.0)
    whole, _, _ = unlearn(training=training)
    folder, (steps, listen) = tmp_path / "stopped", listening("step")
    folder.mkdir()

    def stop(event):
        if event.values.get("step") == 5 and "loss_forget" in event.values:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(training=training, folder=folder, emit_event=stop)
    resumed, _, _ = unlearn(training=training, folder=folder, resuming=True, emit_event=listen)
    assert edit_digest(resumed) == edit_digest(whole)
    assert min(steps) >= 5
