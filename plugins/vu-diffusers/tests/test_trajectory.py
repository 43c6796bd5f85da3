"""Latents on the way from noise to an image, whatever the scheduler."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from vu_diffusers.sampling import _stops, _to_uint8

CAPTIONS = ["a cat", "a dog"]
SCHEDULERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)


def noise(*seeds):
    return torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@pytest.fixture
def with_scheduler(model):
    import diffusers

    own = model.scheduler

    def make(name):
        model.scheduler = getattr(diffusers, name).from_config(own.config)
        if name == "PNDMScheduler":
            model.scheduler.register_to_config(skip_prk_steps=True)  # the others need four steps at least
        return model

    yield make
    model.scheduler = own


@pytest.mark.parametrize("name", SCHEDULERS)
def test_whole_way_is_the_image_and_no_way_is_the_noise(with_scheduler, name):
    model = with_scheduler(name)
    before = copy.deepcopy(model.scheduler.__dict__)
    images = model.generate(CAPTIONS, [1, 2], steps=3, guidance=2.0)
    start = noise(1, 2)
    z = model.denoise_partly([*CAPTIONS, "a cat"], torch.cat([start, start[:1]]), steps=3, done=[3, 3, 0], guidance=2.0)
    assert np.abs(_to_uint8(model, z[:2]).astype(int) - images.astype(int)).max() <= 1
    assert torch.allclose(z[2], start[0], atol=0.02)
    assert model.scheduler.__dict__.keys() == before.keys(), "the model's own scheduler was used"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rows_that_stop_earlier_change_nothing_for_the_others(with_scheduler, name):
    """Schedulers with memory keep one of all rows: each group of rows that end together has its own."""
    model, start = with_scheduler(name), noise(1, 2, 3, 4)
    done = [4, 1, 3, 2]
    captions = CAPTIONS * 2
    mixed = model.denoise_partly(captions, start, steps=4, done=done, guidance=2.0)
    for row, end in enumerate(done):
        alone = model.denoise_partly([captions[row]], start[row : row + 1], steps=4, done=[end], guidance=2.0)[0]
        assert torch.allclose(mixed[row], alone, atol=1e-3), f"row {row}"
    assert len({float(latent.sum()) for latent in mixed}) == 4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_stand_at_the_timestep_that_is_told(with_scheduler, name):
    """Had the denoiser taken all noise for what it is, a latent at t would be the noised image of that timestep."""
    model = with_scheduler(name)
    if name == "PNDMScheduler" and model.prediction == "v_prediction":
        pytest.skip("it mixes velocities of several timesteps, which differ even when the noise is known")
    start, x0 = noise(5), torch.full((1, 4, 8, 8), 0.7)

    def knowing(noisy, timesteps, embedding):
        rates = model._alphas[timesteps.round().long().clamp(max=model.timesteps - 1)].reshape(-1, 1, 1, 1)
        n = (noisy - rates.sqrt() * x0) / (1 - rates).sqrt()
        return n if model.prediction == "epsilon" else rates.sqrt() * n - (1 - rates).sqrt() * x0

    model.predict = knowing
    try:
        for done, t in enumerate(model.sampling_timesteps(5)):
            if done == 0 or t < 50:  # where hardly any noise is left, that of rounding timesteps is larger
                continue
            z = model.denoise_partly(["a"], start, steps=5, done=[done], guidance=1.0)
            n = (z - model.add_noise(x0, torch.zeros_like(x0), torch.tensor([t]))) / (1 - model._alphas[t]).sqrt()
            assert float(n.std()) == pytest.approx(float(start.std()), rel=0.1)
    finally:
        del model.predict


def test_rows_that_are_done_are_not_computed(model, monkeypatch):
    asked = []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda z, t, c: asked.append(len(z)) or predict(z, t, c))
    model.denoise_partly(["a"] * 4, noise(1, 2, 3, 4), steps=4, done=[0, 1, 1, 3], guidance=1.0)
    assert asked[0] == 3, "three rows begin"
    assert asked[-1] == 1, "one goes to the end"
    assert sum(asked) < 3 * len(asked)
    asked.clear()
    model.denoise_partly(["a"], noise(1), steps=4, done=[0], guidance=2.0)
    assert not asked


def test_noise_of_a_stochastic_sampler_belongs_to_the_row(with_scheduler):
    model, start = with_scheduler("EulerAncestralDiscreteScheduler"), noise(1, 2)
    mixed = model.denoise_partly(CAPTIONS, start, steps=3, done=[3, 2], guidance=1.0)
    again = model.denoise_partly(CAPTIONS[1:], start[1:], steps=3, done=[2], guidance=1.0)
    assert torch.allclose(mixed[1], again[0], atol=1e-3)


def test_passes_of_a_step():
    assert _stops([9, 6, 3], 3) == [0, 1, 2, 3]
    assert _stops([9, 6, 6, 3], 3) == [0, 2, 3, 4], "a timestep that is looked at twice is one step"
    assert _stops([9, 8, 8, 7, 7, 6, 6, 5], 3)[0] == 0
    assert _stops([9, 8, 6, 5, 3], 3) == [0, 2, 4, 5], "timesteps in between are no steps"
    assert _stops([5.0], 1) == [0, 1]


def test_numbers_of_rows_must_agree(model):
    with pytest.raises(ValueError, match="2 captions, 1 rows"):
        model.denoise_partly(CAPTIONS, noise(1), steps=2, done=[1], guidance=1.0)
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        model.denoise_partly(["a"], noise(1), steps=2, done=[3], guidance=1.0)


def test_latents_are_in_float32_without_gradient(model):
    model.network["unet"].requires_grad_(True)
    try:
        z = model.denoise_partly(["a"], noise(1).double(), steps=2, done=[1], guidance=1.0)
    finally:
        model.network["unet"].requires_grad_(False)
    assert z.dtype == torch.float32
    assert not z.requires_grad
    assert model.latent_shape == (4, 8, 8)
