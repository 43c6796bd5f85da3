"""Images from prompts, each from its own noise."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from vu_diffusers.stable_diffusion import StableDiffusion

_LATENT_PIXELS_AT_ONCE = 1 << 14  # four latents of 64 x 64, 64 of 16 x 16


@torch.no_grad()
def sample(
    model: StableDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray[Any, Any]:
    """Generate one image per prompt with the pipeline's own scheduler.

    Image i starts from CPU noise of ``seeds[i]`` and draws all further noise from the same generator, so that neither
    device nor batch decides what it shows. Classifier-free guidance predicts ``u + w (c - u)`` from the predictions for
    the empty caption (u) and the prompt (c); with w = 1 the empty caption is not asked.

    Args:
        model: the loaded pipeline.
        prompts: one per image.
        seeds: one per image.
        steps: sampling steps.
        guidance: w.
        progress: called with (passes done, passes in all).

    Returns:
        uint8 array ``(N, H, W, 3)`` at the model's native size.

    Raises:
        ValueError: when there are not as many seeds as prompts.
        ModelError: VU-M079 when an image is not finite.
    """
    import numpy as np

    if len(prompts) != len(seeds):
        raise ValueError(f"there are {len(prompts)} prompts and {len(seeds)} seeds")
    side, shape = model.facts.resolution, (1, *model.latent_shape)
    at_once = _rows_at_once(model)
    starts = range(0, len(prompts), at_once)
    images = []
    for turn, start in enumerate(starts):
        chosen = slice(start, start + at_once)

        def tell(step: int, turn: int = turn) -> None:
            if progress is not None:
                progress(turn * steps + min(step, steps), len(starts) * steps)

        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        noise = torch.cat([torch.randn(shape, generator=g) for g in generators])  # (B, C, h, w)
        rows = _Rows(model, prompts[chosen], generators, steps, guidance)
        images.append(_to_uint8(model, rows.denoise(noise, [steps] * len(generators), tell)))
    return np.concatenate(images) if images else np.zeros((0, side, side, 3), dtype=np.uint8)


@torch.no_grad()
def sample_partly(
    model: StableDiffusion,
    captions: Sequence[str],
    noise: Tensor,
    *,
    steps: int,
    done: Sequence[int],
    guidance: float,
) -> Tensor:
    """Go a part of the way from noise to an image, each row its own part; see `vu_core.Trajectory`.

    Rows that have come to their end are not computed any further. Further noise of a scheduler that draws some comes
    from a generator seeded by the starting noise, so that a row depends on nothing but itself.

    Args:
        model: the loaded pipeline.
        captions: one per row.
        noise: standard normal, ``(B, C, h, w)``.
        steps: sampling steps of the whole way.
        done: how many of them each row goes, 0 .. steps.
        guidance: w of ``u + w (c - u)``.

    Returns:
        Latents ``(B, C, h, w)`` float32, scaled as the denoiser reads them at
        ``sampling_timesteps(model, steps)[done[i]]``; finished ones as the autoencoder reads them.

    Raises:
        ValueError: when the numbers of rows differ, or a row would leave the way.
    """
    if not len(captions) == len(noise) == len(done):
        raise ValueError(f"there are {len(captions)} captions, {len(noise)} rows of noise and {len(done)} stops")
    if any(not 0 <= each <= steps for each in done):
        raise ValueError(f"done must be 0 .. {steps}, but is {list(done)}")
    latents = torch.empty(noise.shape, device=model.device)  # (B, C, h, w)
    order = sorted(range(len(done)), key=lambda row: done[row])  # rows of one portion end at about the same time
    at_once = _rows_at_once(model)
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        generators = [_generator_of(noise[row]) for row in chosen]
        rows = _Rows(model, [captions[row] for row in chosen], generators, steps, guidance)
        latents[chosen] = rows.denoise(noise[chosen].float(), [done[row] for row in chosen])
    return latents


def sampling_timesteps(model: StableDiffusion, steps: int) -> tuple[int, ...]:
    """Return the training timesteps where each of ``steps`` sampling steps begins, the noisiest first.

    A scheduler that looks twice at a timestep, to correct itself, takes two passes for one step.
    """
    scheduler = copy.deepcopy(model.scheduler)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    return tuple(round(timesteps[stop]) for stop in _stops(timesteps, steps)[:-1])


def _stops(timesteps: Sequence[float], steps: int) -> list[int]:
    """Return the number of passes of the first 0, 1, ..., ``steps`` sampling steps.

    A timestep that is looked at twice counts once, and is reached with the last pass before it is left. Schedulers that
    go through timesteps in between have more of them than steps; every k-th one counts then.
    """
    distinct = list(dict.fromkeys(timesteps))
    left = {t: index for index, t in enumerate(timesteps)}
    places = [min(-(-step * len(distinct) // steps), len(distinct) - 1) for step in range(steps)]
    return [0, *(left[distinct[place]] for place in places[1:]), len(timesteps)]


def _rows_at_once(model: StableDiffusion) -> int:
    _, height, width = model.latent_shape
    return max(1, _LATENT_PIXELS_AT_ONCE // (height * width))


def _generator_of(noise: Tensor) -> torch.Generator:
    content = noise.float().cpu().numpy().tobytes()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1)


@attrs.frozen(eq=False)
class _Rows:
    """Latents that are denoised together.

    Args:
        model: the pipeline; captions: one per row; generators: of the further noise, one per row.
        steps: sampling steps of the whole way; guidance: w.
    """

    model: StableDiffusion
    captions: Sequence[str]
    generators: Sequence[torch.Generator]
    steps: int
    guidance: float

    def denoise(self, noise: Tensor, done: Sequence[int], tell: Callable[[int], None] = lambda passes: None) -> Tensor:
        """Return the latents after ``done[i]`` steps, ``(B, C, h, w)``; ``tell`` is told the passes that are done."""
        scheduler = copy.deepcopy(self.model.scheduler)
        scheduler.set_timesteps(self.steps, device=self.model.device)
        timesteps = scheduler.timesteps
        stops = _stops(timesteps.tolist(), self.steps)
        # Schedulers remember earlier passes, all rows in one tensor: rows that end together share one.
        groups = [
            _Group(copy.deepcopy(scheduler), [row for row, each in enumerate(done) if each == end], stops[end])
            for end in sorted(set(done))
        ]
        words = self.model.embed(self.captions)  # (B, L, D)
        z = noise.to(self.model.device) * scheduler.init_noise_sigma  # (B, C, h, w)
        for index in range(max(group.stop for group in groups)):
            t = timesteps[index]
            going = [group for group in groups if group.stop > index]
            z_in = torch.cat([group.scheduler.scale_model_input(z[group.rows], t) for group in going])
            out = self._predict(z_in, t, words[[row for group in going for row in group.rows]])
            for group, part in zip(going, out.split([len(group.rows) for group in going]), strict=True):
                z[group.rows] = group.step(part, t, z[group.rows], self.generators)
            tell(index + 1)
        for group in groups:
            if group.stop < len(timesteps):
                z[group.rows] = group.scheduler.scale_model_input(z[group.rows], timesteps[group.stop])
        return z

    def _predict(self, z: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """Return ``u + w (c - u)``; with w = 1 the empty caption is not asked."""
        if self.guidance == 1:
            return self.model.predict(z, t.expand(len(z)), words)
        empty = self.model.embed([""]).expand(len(z), -1, -1)
        out = self.model.predict(torch.cat([z, z]), t.expand(2 * len(z)), torch.cat([empty, words]))
        unconditional, conditional = out.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)


@attrs.frozen(eq=False)
class _Group:
    """Rows that end after the same pass.

    Args:
        scheduler: their own; rows: of the batch; stop: number of passes.
    """

    scheduler: Any
    rows: list[int]
    stop: int

    def step(self, out: Tensor, t: Tensor, z: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        draws: dict[str, Any] = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            draws = {"generator": [generators[row] for row in self.rows]}
        return self.scheduler.step(out, t, z, return_dict=False, **draws)[0]  # type: ignore[no-any-return]


def _to_uint8(model: StableDiffusion, latents: Tensor) -> np.ndarray[Any, Any]:
    from vu_diffusers.stable_diffusion import PIXELS_AT_ONCE, not_finite

    at_once = max(1, PIXELS_AT_ONCE // model.facts.resolution**2)
    stacked = torch.cat([model.decode(part) for part in latents.split(at_once)])  # (B, 3, H, W)
    if not torch.isfinite(stacked).all():
        raise not_finite("images", model.dtype)
    scaled = (stacked / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
