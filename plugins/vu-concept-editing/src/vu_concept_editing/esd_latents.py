"""Latents on the way from noise to an image: what ESD trains on instead of images."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import attrs
import torch
from torch import Tensor

from vu_core import Batch, Denoiser, Examples, ForgetRetain, Run, Theta, Trajectory, setting, torch_dtype
from vu_core.training import Training, calls_per_step, process_group, total_steps

LATENTS = "vu-concept-editing/esd/latents"
"""Column of latents that were computed beforehand; no dataset names one so."""

TIMESTEPS = "vu-concept-editing/esd/timesteps"
"""Column of their timesteps."""

_AT_ONCE = 64  # rows of the bank between two reports of progress


@attrs.frozen
class PartwayConfig:
    """Settings of where latents come from."""

    training: Training = setting(Training(steps=1), help="settings of the training loop")
    start_guidance: float = setting(3.0, help="guidance scale of the partial denoising; 1 = off", ge=0)
    sampling_steps: int = setting(50, help="sampling steps of the whole way from noise to an image", ge=1)
    sampled_by: str = setting(
        "student",
        help="who denoises: the model being trained, as in the paper, or the untouched base, as in the newer release",
        choices=("student", "base"),
    )
    timestep_sampling: str = setting(
        "bin",
        help="bin: uniform from the timestep where a latent stands up to the one before, as in the paper; scheduler: "
        "where it stands, as in the newer release",
        choices=("bin", "scheduler"),
    )
    bank: int = setting(
        0,
        help="latents per side, denoised once by the base and reused; 0 = fresh ones at each step, as in the paper",
        ge=0,
    )

    def __attrs_post_init__(self) -> None:
        if self.bank and self.sampled_by != "base":
            raise ValueError("a bank holds latents that never go stale: it needs sampled_by = 'base'")
        batch = self.training.batch_size * self.training.accumulation
        if 0 < self.bank < batch:
            raise ValueError(f"bank must be 0, or hold a whole batch of {batch}, but is {self.bank}")


class SampledDenoiser(Denoiser, Trajectory, Protocol):
    """A denoiser that can stop on the way from noise to an image."""


@attrs.frozen(eq=False)
class Partway:
    """Denoise each row for a random number of steps.

    A row starts from noise of its own and goes ``k`` of the ``sampling_steps`` steps, ``k`` uniform in ``0 ..
    sampling_steps - 1``, guided towards its prompt with ``start_guidance``. With ``t_0 > t_1 > ...`` the timesteps of
    the sampler it then stands at ``t_k``. It is asked at ``t_k`` (``scheduler``), or at a timestep that is uniform in
    ``t_k .. t_(k-1) - 1`` (``bin``; for ``k = 0`` up to the noisiest of the model).

    Args:
        model: the denoiser; theta: its trainable change; config: settings.
    """

    model: SampledDenoiser
    theta: Theta
    config: PartwayConfig

    @torch.no_grad()
    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return latents ``(B, C, h, w)`` and timesteps ``(B,)``; every draw belongs to one row."""
        steps = self.config.sampling_steps
        noise = batch.normal("noise", self.model.latent_shape)  # (B, C, h, w)
        done = batch.integers("done", 0, steps).tolist()
        with self._sampler():
            x = self.model.denoise_partly(
                batch.overwrites, noise, steps=steps, done=done, guidance=self.config.start_guidance
            )
        bins = [self._bin(k) for k in done]
        if self.config.timestep_sampling == "scheduler":
            t = [low for low, _ in bins]
        else:
            draws = zip(bins, batch.generators("timestep"), strict=True)
            t = [int(torch.randint(low, high, (1,), generator=g)) for (low, high), g in draws]
        return x, torch.tensor(t, device=batch.device)

    def _sampler(self) -> AbstractContextManager[None]:
        return self.theta.base() if self.config.sampled_by == "base" else nullcontext()

    def _bin(self, k: int) -> tuple[int, int]:
        """Return the timesteps of a latent after k steps, ``low .. high - 1``."""
        timesteps = self.model.sampling_timesteps(self.config.sampling_steps)
        above = timesteps[k - 1] if k else self.model.timesteps
        return timesteps[k], max(above, timesteps[k] + 1)


def bank(partway: Partway, data: ForgetRetain, rows: int, run: Run) -> tuple[ForgetRetain, Run]:
    """Replace the tables of the sides in use by ``rows`` rows that have been denoised already.

    Prompts are used in turn. What was denoised by the base never goes stale; only the variety of latents is limited.
    The number of steps stays what the original tables would give.

    Args:
        partway: how latents are made.
        data: the prompts.
        rows: per side, at least 1.
        run: as handed to the method.

    Returns:
        The data with the tables replaced, and the run with the number of steps spelled out.
    """
    if run.training is None:
        raise RuntimeError("a bank needs run.training")
    steps = total_steps(data, run)
    sides = [side for call in calls_per_step(data, run) for side in call]
    banks = {side: _filled(partway, getattr(data, side), rows, run) for side in sides}
    return attrs.evolve(data, **banks), attrs.evolve(run, training=attrs.evolve(run.training, steps=steps, epochs=None))


def _filled(partway: Partway, prompts: Examples, rows: int, run: Run) -> Examples:
    device = torch.device(run.device)
    chosen = [place % len(prompts) for place in range(rows)]
    latents, timesteps = [], []
    for first in range(0, rows, _AT_ONCE):
        places = range(first, min(first + _AT_ONCE, rows))
        batch = Batch(prompts, tuple(chosen[place] for place in places), 0, tuple(places), run, device)
        half = run.precision != "fp32"
        # As in training, so that a latent is what it would be without a bank.
        with torch.autocast(device.type, torch_dtype(run.precision), enabled=half, cache_enabled=False):
            x, t = partway.of(batch)
        latents.append(x.cpu())
        timesteps.append(t.cpu())
        if process_group(device).first:
            run.progress(f"latents of the {prompts.side} prompts", places.stop, rows)
    overwrites = prompts.overwrites
    return Examples(
        side=prompts.side,
        captions=tuple(prompts.captions[row] for row in chosen),
        overwrites=None if overwrites is None else tuple(overwrites[row] for row in chosen),
        tensors={LATENTS: torch.cat(latents), TIMESTEPS: torch.cat(timesteps)},
    )
