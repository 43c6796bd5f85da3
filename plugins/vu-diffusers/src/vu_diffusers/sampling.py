"""Images from prompts, each from its own noise."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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
    side = model.facts.resolution
    size = side // 2 ** (len(model.network["vae"].config.block_out_channels) - 1)
    at_once = max(1, _LATENT_PIXELS_AT_ONCE // size**2)
    starts = range(0, len(prompts), at_once)
    images = []
    for turn, start in enumerate(starts):
        chosen = slice(start, start + at_once)

        def tell(step: int, turn: int = turn) -> None:
            if progress is not None:
                progress(turn * steps + step, len(starts) * steps)

        latents = _denoise(model, prompts[chosen], seeds[chosen], size, (steps, guidance), tell)
        images.append(_to_uint8(model, latents))
    return np.concatenate(images) if images else np.zeros((0, side, side, 3), dtype=np.uint8)


def _denoise(
    model: StableDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: int,
    how: tuple[int, float],
    tell: Callable[[int], None],
) -> Tensor:
    steps, guidance = how
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (1, model.network["unet"].config.in_channels, size, size)
    noise = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(model.device)  # (B, C, h, w)
    scheduler = copy.deepcopy(model.scheduler)  # schedulers remember earlier steps
    scheduler.set_timesteps(steps, device=model.device)
    draws = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    guided = guidance != 1
    words = model.embed([*[""] * len(prompts) * guided, *prompts])  # (B or 2B, L, D)
    z = noise * scheduler.init_noise_sigma
    for done, t in enumerate(scheduler.timesteps, start=1):
        z_in = scheduler.scale_model_input(torch.cat([z, z]) if guided else z, t)
        out = model.predict(z_in, t.expand(len(z_in)), words)
        if guided:
            unconditional, conditional = out.chunk(2)
            out = unconditional + guidance * (conditional - unconditional)
        z = scheduler.step(out, t, z, return_dict=False, **draws)[0]
        tell(min(done, steps))
    return z  # type: ignore[no-any-return]


def _to_uint8(model: StableDiffusion, latents: Tensor) -> np.ndarray[Any, Any]:
    from vu_diffusers.stable_diffusion import PIXELS_AT_ONCE, not_finite

    at_once = max(1, PIXELS_AT_ONCE // model.facts.resolution**2)
    stacked = torch.cat([model.decode(part) for part in latents.split(at_once)])  # (B, 3, H, W)
    if not torch.isfinite(stacked).all():
        raise not_finite("images", model.dtype)
    scaled = (stacked / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
