"""Acceptance truths of ESD: targets, prompts, latents on the way (baselines.md, sections 5.1 and 6.9)."""

from __future__ import annotations

import attrs
import pytest
import torch

from vu_concept_editing.esd import EsdConfig, NegativeGuidance, away_from
from vu_concept_editing.esd_latents import Partway
from vu_concept_editing.esd_prompts import tables
from vu_core import Batch, ConfigError, Examples, ForgetRetain
from vu_core.adapters import Full, FullConfig
from vu_core.testing import ToyDenoiser, toy_data, toy_run
from vu_core.training import Training

QUICK = {"training": Training(steps=3, batch_size=2, lr=1e-2), "sampling_steps": 4}
EVERY_START = (
    {"erase_from": "none"},
    {"erase_from": "concept"},
    {"erase_from": "overwrite"},
    {"erase_from": "prompts", "from_prompts": ("a street",)},
    {"erase_from": "common"},
)


class Recording:
    """Wraps a model and keeps what it was asked."""

    def __init__(self, model):
        self.model, self.predicted, self.denoised = model, [], []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def embed(self, captions):
        self.asked = tuple(captions)
        return self.model.embed(captions)

    def predict(self, noisy, timesteps, embedding):
        answer = self.model.predict(noisy, timesteps, embedding)
        self.predicted.append((noisy, timesteps, self.asked, answer))
        return answer

    def denoise_partly(self, captions, noise, **how):
        base = torch.equal(self.model.network["unet"].attn2.to_k.weight, self.untouched)
        x = self.model.denoise_partly(captions, noise, **how)
        self.denoised.append((tuple(captions), noise, how, "base" if base else "student", x))
        return x


@pytest.fixture
def objective(tmp_path):
    """Make the losses on a moved copy of the toy's weights: ``(losses, recording, theta, batches)``."""

    def make(*, moved: bool = True, prediction: str = "epsilon", rows: int = 2, **settings):
        config = EsdConfig(**{**QUICK, **settings})
        run = toy_run(tmp_path, training=config.training, parameters=Full(FullConfig()))
        recording = Recording(ToyDenoiser(prediction))
        recording.untouched = recording.network["unet"].attn2.to_k.weight
        theta = run.parameterise(recording)
        if moved:
            with torch.no_grad():
                for index, tensor in enumerate(theta.parameters()):
                    tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
        data = tables(toy_data(), config, run)
        places = tuple(range(rows))
        batches = {
            side: Batch(getattr(data, side), places, 5, places, run, torch.device("cpu"))
            for side in ("forget", "retain")
        }
        return NegativeGuidance(recording, theta, config), recording, theta, batches

    return make


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_target_from_the_concept_equals_the_original_with_one_more_eta(eta):
    g = torch.Generator().manual_seed(0)
    concept, empty = torch.randn(2, 3, 2, 4, 4, generator=g, dtype=torch.float64)
    original = away_from(empty, concept, empty, eta)
    newer = away_from(concept, concept, empty, eta + 1)
    assert torch.allclose(original, newer, atol=1e-12)
    assert torch.allclose(original, empty - eta * (concept - empty), atol=1e-12)
    assert not torch.allclose(original, away_from(concept, concept, empty, eta), atol=1e-2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_newer_release_with_eta_2_has_the_losses_of_the_paper(objective, prediction):
    paper, *_, batches = objective(prediction=prediction, erase_from="none", negative_guidance=1.0)
    newer, *_ = objective(prediction=prediction, erase_from="concept", negative_guidance=2.0)
    assert newer(batches)["forget"].item() == pytest.approx(paper(batches)["forget"].item(), rel=1e-5)
    half, *_ = objective(prediction=prediction, erase_from="concept", negative_guidance=1.0)
    assert half(batches)["forget"].item() != pytest.approx(paper(batches)["forget"].item(), rel=1e-3)


@pytest.mark.parametrize("settings", EVERY_START)
def test_losses_are_those_of_the_formula(objective, settings):
    eta = 1.7
    losses, recording, theta, batches = objective(negative_guidance=eta, **settings)
    found = losses(batches)
    asked = losses.ask(batches["forget"])
    kept = losses.ask(batches["retain"])
    plain = ToyDenoiser()

    def e(question, captions):
        return plain.predict(question.noisy, question.timesteps, plain.embed(captions))

    empty = e(asked, [""] * 2)
    start = empty if settings["erase_from"] == "none" else e(asked, asked.captions)
    concept = torch.stack([e(asked, captions) for captions in zip(*asked.erased, strict=True)]).mean(dim=0)
    target = start - eta * (concept - empty)
    student = recording.model.predict(asked.noisy, asked.timesteps, recording.model.embed(asked.captions))
    assert found["forget"].item() == pytest.approx((student - target).square().mean().item(), rel=1e-5)
    student = recording.model.predict(kept.noisy, kept.timesteps, recording.model.embed(kept.captions))
    gap = (student - e(kept, kept.captions)).square().mean()
    assert found["retain"].item() == pytest.approx(gap.item(), rel=1e-5)
    assert found["forget"].dtype == found["retain"].dtype == torch.float32
    theta.detach()


def test_student_and_erased_prompts_of_every_start(objective):
    asked = {}
    for settings in EVERY_START:
        losses, _, _, batches = objective(**settings)
        question = losses.ask(batches["forget"])
        asked[settings["erase_from"]] = (question.captions, question.erased)
    captions = ("forget 0", "forget 1")
    each = tuple((caption,) for caption in captions)
    assert asked["none"] == asked["concept"] == (captions, each)
    assert asked["overwrite"] == (("plain 0", "plain 1"), each)
    assert asked["prompts"] == (("a street",) * 2, each)
    assert asked["common"] == (captions, (captions, captions)), "a mean over all of them"


def test_common_draws_different_prompts_among_all_when_there_are_too_many(objective):
    prompts = ("a", "b", "c", "d")
    losses, _, _, batches = objective(erase_from="common", prompts=prompts, common_prompts=3)
    seen = set()
    for step in range(12):
        question = losses.ask(attrs.evolve(batches["forget"], step=step))
        assert question.captions == ("a", "b")
        assert all(len(set(erased)) == 3 for erased in question.erased)
        seen |= {(s, c) for s, erased in zip(question.captions, question.erased, strict=True) for c in erased}
    assert seen == {(s, c) for s in ("a", "b") for c in prompts}
    assert losses.ask(batches["retain"]).erased == ()


def test_common_with_one_prompt_is_the_newer_release(objective):
    one, *_, batches = objective(erase_from="common", prompts=("a",), negative_guidance=2.0)
    newer, *_ = objective(erase_from="concept", prompts=("a",), negative_guidance=2.0)
    assert one(batches)["forget"].item() == pytest.approx(newer(batches)["forget"].item(), rel=1e-6)


@pytest.mark.parametrize("settings", EVERY_START)
def test_untouched_student_has_no_retain_loss_and_no_retain_gradient(objective, settings):
    losses, _, theta, batches = objective(moved=False, **settings)
    found = losses(batches)
    assert found["retain"].item() == 0.0
    gradients = torch.autograd.grad(found["retain"], theta.parameters(), retain_graph=True)
    assert all(not gradient.any() for gradient in gradients)
    assert any(gradient.any() for gradient in torch.autograd.grad(found["forget"], theta.parameters()))


def test_one_side_alone_has_the_loss_it_has_beside_the_other(objective):
    losses, *_, batches = objective()
    both = losses(batches)
    for side, batch in batches.items():
        assert losses({side: batch})[side].item() == pytest.approx(both[side].item(), rel=1e-5)


def test_descending_both_losses_erases_and_keeps(objective):
    """The sign is in the target: a step down the forget loss moves the student away from the concept."""
    losses, recording, theta, batches = objective(moved=False, negative_guidance=1.0)
    asked = losses.ask(batches["forget"])
    plain = ToyDenoiser()
    concept, empty = (plain.predict(asked.noisy, asked.timesteps, plain.embed(c)) for c in (asked.captions, [""] * 2))
    loss = losses(batches)["forget"]
    gradients = torch.autograd.grad(loss, theta.parameters(), allow_unused=True)
    with torch.no_grad():
        for tensor, gradient in zip(theta.parameters(), gradients, strict=True):
            if gradient is not None:
                tensor -= 0.05 * gradient
    moved = recording.model.predict(asked.noisy, asked.timesteps, recording.model.embed(asked.captions))
    assert ((moved.detach() - concept) * (concept - empty)).sum() < 0
    assert losses(batches)["forget"] < loss


def test_teacher_carries_no_gradient_and_is_the_untouched_model(objective):
    losses, recording, _, batches = objective()
    losses(batches)
    own, away, student = recording.predicted
    assert not own[3].requires_grad
    assert not away[3].requires_grad
    assert student[3].requires_grad
    assert own[2] == student[2], "teacher and student are asked in the same layout"
    assert away[2] == ("", "")
    plain = ToyDenoiser()
    assert torch.allclose(own[3], plain.predict(own[0], own[1], plain.embed(own[2])), atol=1e-6)


@pytest.mark.parametrize("sampler", ["student", "base"])
def test_latents_are_denoised_by_whom_the_configuration_says(objective, sampler):
    losses, recording, _, batches = objective(sampled_by=sampler, start_guidance=2.5)
    losses(batches)
    captions, noise, how, who, x = recording.denoised[0]
    assert who == sampler
    assert captions == batches["forget"].captions
    assert how["guidance"] == 2.5
    assert how["steps"] == 4
    assert not x.requires_grad
    assert not torch.equal(noise[0], noise[1])


def test_number_of_steps_is_uniform_and_timestep_is_in_the_bin(objective):
    losses, recording, theta, batches = objective(timestep_sampling="scheduler")
    assert recording.sampling_timesteps(4) == (99, 74, 49, 24)
    bins = {99: range(99, 100), 74: range(74, 99), 49: range(49, 74), 24: range(24, 49)}
    binned = Partway(recording, theta, attrs.evolve(losses.config, timestep_sampling="bin"))
    seen, inside = [], set()
    for step in range(60):
        batch = attrs.evolve(batches["forget"], step=step)
        x, t = losses.partway.of(batch)
        again, spread = binned.of(batch)
        assert torch.equal(x, again), "the timestep decides nothing about the latent"
        assert t.dtype == spread.dtype == torch.int64
        done = recording.denoised[-1][2]["done"]
        assert [recording.sampling_timesteps(4)[k] for k in done] == t.tolist()
        assert all(int(s) in bins[int(low)] for low, s in zip(t, spread, strict=True))
        seen += t.tolist()
        inside |= {int(s) - int(low) for low, s in zip(t, spread, strict=True) if low != 99}
    assert all(15 <= seen.count(t) <= 45 for t in bins), "30 of 120 are due to each"
    assert len(inside) > 15, "the timestep is spread over its bin"


def test_row_has_the_same_draws_in_every_batch(objective):
    losses, *_, batches = objective()
    whole = losses.partway.of(batches["forget"])
    batch = batches["forget"]
    alone = losses.partway.of(attrs.evolve(batch, rows=(1,), positions=(1,)))
    assert torch.equal(whole[0][1], alone[0][0])
    assert whole[1][1] == alone[1][0]


def prompts_of(data, tmp_path, **settings):
    config = EsdConfig(**{**QUICK, **settings})
    found = tables(data, config, toy_run(tmp_path, training=config.training))
    return found.forget, found.retain


def test_every_distinct_caption_counts_once(tmp_path):
    forget, retain = prompts_of(toy_data(forget=5, retain=6), tmp_path)
    assert forget.captions == forget.overwrites == ("forget 0", "forget 1")
    assert retain.captions == ("retain 0", "retain 1")
    assert not forget.tensors
    assert forget.load is None


def test_prompts_take_the_place_of_captions_and_fill_a_batch(tmp_path):
    forget, retain = prompts_of(toy_data(), tmp_path, prompts=("Van Gogh",))
    assert forget.captions == ("Van Gogh", "Van Gogh"), "a batch of one prompt has several latents of it"
    assert len(retain) == 2
    many = Training(steps=1, batch_size=3, accumulation=2)
    forget, _ = prompts_of(toy_data(), tmp_path, prompts=("a", "b", "c", "d"), training=many)
    assert forget.captions == ("a", "b", "c", "d") * 2


def test_prompts_are_erased_from_one_or_one_each(tmp_path):
    forget, _ = prompts_of(
        toy_data(), tmp_path, prompts=("blood", "knife"), erase_from="prompts", from_prompts=("a", "b")
    )
    assert (forget.captions, forget.overwrites) == (("blood", "knife"), ("a", "b"))
    forget, _ = prompts_of(
        toy_data(), tmp_path, prompts=("blood", "knife"), erase_from="prompts", from_prompts=("a", "a")
    )
    assert (forget.captions, forget.overwrites) == (("blood", "knife"), ("a", "a"))
    forget, _ = prompts_of(toy_data(), tmp_path, erase_from="prompts", from_prompts=("a",))
    assert forget.overwrites == ("a", "a")


def without_captions(examples: Examples) -> Examples:
    return attrs.evolve(examples, captions=("",) * len(examples))


def test_nothing_to_erase_is_an_error(tmp_path):
    data = toy_data()
    silent = attrs.evolve(data, forget=without_captions(data.forget))
    with pytest.raises(ConfigError) as caught:
        prompts_of(silent, tmp_path)
    assert caught.value.code == "VU-C110"
    assert prompts_of(silent, tmp_path, prompts=("Van Gogh",))[0].captions[0] == "Van Gogh"
    nothing = Examples("forget", ())
    with pytest.raises(ConfigError) as caught:
        prompts_of(ForgetRetain(nothing, data.retain, nothing, nothing), tmp_path)
    assert caught.value.code == "VU-C110"


def test_from_prompts_that_fit_nothing_are_an_error(tmp_path):
    with pytest.raises(ConfigError) as caught:
        prompts_of(toy_data(), tmp_path, erase_from="prompts", from_prompts=("a", "b", "c"))
    assert caught.value.code == "VU-C111"


def test_no_overwrite_is_an_error(tmp_path):
    data = toy_data()
    alone = attrs.evolve(data, forget=attrs.evolve(data.forget, overwrites=None))
    with pytest.raises(ConfigError) as caught:
        prompts_of(alone, tmp_path, erase_from="overwrite")
    assert caught.value.code == "VU-C112"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts": ("a", " ")}, "empty prompt"),
        ({"prompts": ("a", "a")}, "twice"),
        ({"from_prompts": ("a",)}, "go together"),
        ({"erase_from": "prompts"}, "go together"),
        ({"erase_from": "overwrite", "prompts": ("a",)}, "no overwrite"),
        ({"erase_from": "prompts", "prompts": ("a", "b", "c"), "from_prompts": ("d", "e")}, "2 from_prompts for 3"),
        ({"bank": 4}, "sampled_by"),
        ({"bank": 1, "sampled_by": "base"}, "whole batch of 2"),
        ({"bank": 4, "sampled_by": "base", "training": Training(steps=3, exhausted="retain_only")}, "starts over"),
        ({"subset": "x-strct"}, "x-strict"),
        ({"erase_from": "nothing"}, "one of"),
        ({"negative_guidance": -1.0}, ">= 0"),
    ],
)
def test_settings_that_fit_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        EsdConfig(**{**QUICK, **settings})
