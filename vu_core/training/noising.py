"""What a denoiser is trained on: latents with noise of a random timestep, drawn per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_core.contracts.model import Denoiser, Model
from vu_core.data import Batch
from vu_core.errors import ConfigError
from vu_core.setting import setting
from vu_core.training.settings import Training


@attrs.frozen
class NoisingConfig:
    """Settings of a method that trains a denoiser on noisy latents."""

    training: Training = setting(Training(epochs=1), help="settings of the training loop")
    noise_offset: float = setting(0.0, help="adds noise_offset * N(0, 1) per image and channel to the noise", ge=0)
    timestep_low: int = setting(0, help="lowest timestep that is drawn", ge=0)
    timestep_high: int | None = setting(
        None, help="one more than the highest timestep that is drawn; all timesteps of the model when absent", ge=1
    )

    def __attrs_post_init__(self) -> None:
        if self.timestep_high is not None and self.timestep_low >= self.timestep_high:
            raise ValueError(
                f"timestep_low must be < timestep_high, but they are {self.timestep_low} and {self.timestep_high}"
            )


def timestep_range(model: Model, config: NoisingConfig) -> tuple[int, int]:
    """Return the bounds of the timesteps that are drawn, ``low .. high - 1``.

    Raises:
        ConfigError: ``VU-C090`` when the range of timesteps is empty or leaves the model's.
    """
    timesteps = cast(Denoiser, model).timesteps
    low, high = config.timestep_low, timesteps if config.timestep_high is None else config.timestep_high
    if not low < high <= timesteps:
        raise ConfigError(
            "VU-C090",
            f"No timestep can be drawn from {low} to {high - 1}: the model has 0 to {timesteps - 1}.",
            f"Choose timestep_low < timestep_high <= {timesteps}, or leave both out for the full range.",
            where="unlearner.timestep_low, unlearner.timestep_high",
        )
    return low, high


class TimestepSampler(Protocol):
    """Draws timesteps: what a method of another plugin hands over to train on those that matter more."""

    def __call__(self, n: int, low: int, high: int, generator: torch.Generator) -> Tensor:
        """Return ``(n,)`` int64 from ``low .. high - 1``, with no other randomness than that of the generator."""
        ...


def uniform_timesteps(n: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Draw every timestep with equal probability, as the papers do.

    Example:
        >>> uniform_timesteps(2, 5, 6, torch.Generator())
        tensor([5, 5])
    """
    return torch.randint(low, high, (n,), generator=generator)


@attrs.frozen(eq=False)
class Timesteps:
    """Which timesteps are drawn.

    Args:
        low, high: they are drawn from ``low .. high - 1``; sampler: how.
    """

    low: int
    high: int
    sampler: TimestepSampler = uniform_timesteps

    def draw(self, batch: Batch) -> Tensor:
        """Return t, ``(B,)`` int64; the sampler is asked once per row, with a generator of the row.

        Raises:
            ValueError: the sampler returned something else.
        """
        t = torch.cat([self.sampler(1, self.low, self.high, g) for g in batch.generators("timestep")])  # (B,)
        if t.shape != (len(batch),) or t.dtype != torch.int64 or not bool(((t >= self.low) & (t < self.high)).all()):
            raise ValueError(
                f"a timestep_sampler must return n int64 numbers from {self.low} to {self.high - 1}, "
                f"but returned {t.tolist()} ({t.dtype}) for {len(batch)} examples"
            )
        return t.to(batch.device)


@attrs.frozen(eq=False)
class Noised:
    """The rows of a batch with noise.

    Args:
        latents: z, ``(B, C, h, w)``.
        noise: n, of the same shape and precision.
        timesteps: t, ``(B,)``.
        noisy: z_t, ``(B, C, h, w)``.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    noisy: Tensor

    @classmethod
    def of(cls, model: Denoiser, batch: Batch, timesteps: Timesteps, noise_offset: float = 0.0) -> Noised:
        """Draw noise and timesteps for the rows of a batch; every draw belongs to one row."""
        z = model.latents(batch)  # (B, C, h, w)
        n = batch.normal("noise", z.shape[1:])  # (B, C, h, w)
        if noise_offset:
            n = n + noise_offset * batch.normal("noise-offset", (z.shape[1], 1, 1))
        n = n.to(z.dtype)
        t = timesteps.draw(batch)  # (B,)
        return cls(z, n, t, model.add_noise(z, n, t))


def denoising_loss(model: Denoiser, drawn: Noised, captions: Sequence[str]) -> Tensor:
    """Return ``mean((prediction - target)^2)`` of the noisy rows, the loss that the denoiser was trained with.

    Args:
        model: the denoiser.
        drawn: the rows with their noise.
        captions: what the denoiser reads about each.

    Returns:
        A float32 scalar.
    """
    prediction = model.predict(drawn.noisy, drawn.timesteps, model.embed(captions))  # (B, C, h, w)
    target = model.target(drawn.latents, drawn.noise, drawn.timesteps)  # (B, C, h, w)
    return F.mse_loss(prediction.float(), target.float())
