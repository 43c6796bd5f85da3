"""Latents on the way from noise to an image: what ESD trains on instead of images."""

from __future__ import annotations

from collections.abc import Callable
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

TARGETS = "vu-concept-editing/esd/targets"
"""Column of what the student should answer there; forget side only."""

_AT_ONCE = 64  # latents of the bank: enough that rows which end early leave full passes to the others


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
        if self.bank and self.training.exhausted != "cycle":
            raise ValueError("a bank is as long for both sides, so each starts over: it needs exhausted = 'cycle'")
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


def bank(
    partway: Partway, steered: Callable[[Batch], Tensor], data: ForgetRetain, rows: int, run: Run
) -> tuple[ForgetRetain, Run]:
    """Replace the tables of the sides in use by ``rows`` rows that have been denoised, the forget ones with targets.

    Prompts are used in turn. What the untouched model makes and answers never goes stale; only the variety of latents
    is limited. The number of steps stays what the original tables would give.

    Args:
        partway: how latents are made.
        steered: returns the targets of forget rows, ``(B, C, h, w)``.
        data: the prompts.
        rows: per side, at least 1.
        run: as handed to the method.

    Returns:
        The data with the tables replaced, and the run with the number of steps spelled out.
    """
    training = run.training
    if training is None:
        raise RuntimeError("a bank needs run.training")
    steps = total_steps(data, run)
    sides = [side for call in calls_per_step(data, run) for side in call]
    banks = {side: _filled(getattr(data, side), rows, partway, run) for side in sides}
    if "forget" in banks:
        targets = _in_portions(banks["forget"], training.batch_size, steered, run, "targets")
        banks["forget"] = banks["forget"].with_tensors(**{TARGETS: targets})
    return attrs.evolve(data, **banks), attrs.evolve(run, training=attrs.evolve(training, steps=steps, epochs=None))


def _filled(prompts: Examples, rows: int, partway: Partway, run: Run) -> Examples:
    """Return the prompts in turn with their latents and timesteps."""
    chosen = [place % len(prompts) for place in range(rows)]
    overwrites = prompts.overwrites
    table = Examples(
        side=prompts.side,
        captions=tuple(prompts.captions[row] for row in chosen),
        overwrites=None if overwrites is None else tuple(overwrites[row] for row in chosen),
    )
    timesteps: list[Tensor] = []

    def latents(batch: Batch) -> Tensor:
        x, t = partway.of(batch)
        timesteps.append(t.cpu())
        return x

    x = _in_portions(table, _AT_ONCE, latents, run, f"latents of the {prompts.side} prompts")
    return table.with_tensors(**{LATENTS: x, TIMESTEPS: torch.cat(timesteps)})


def _in_portions(table: Examples, size: int, make: Callable[[Batch], Tensor], run: Run, what: str) -> Tensor:
    """Return what is made of all rows, on the CPU; computed as in training."""
    device, half, made = torch.device(run.device), run.precision != "fp32", []
    for first in range(0, len(table), size):
        rows = tuple(range(first, min(first + size, len(table))))
        batch = Batch(table, rows, 0, rows, run, device)
        with torch.autocast(device.type, torch_dtype(run.precision), enabled=half, cache_enabled=False):
            made.append(make(batch).cpu())
        if process_group(device).first:
            run.progress(what, rows[-1] + 1, len(table))
    return torch.cat(made)
