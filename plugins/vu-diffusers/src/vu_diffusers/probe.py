"""Fixed inputs that tell whether two versions of a denoiser are the same."""

from __future__ import annotations

import torch
from torch import Tensor

from vu_diffusers.stable_diffusion import StableDiffusion

CAPTIONS = ("", "A photograph of a red circle.")
_LARGEST = 16  # latent pixels along a side: enough for every layer, cheap at every size


@torch.no_grad()
def outputs(model: StableDiffusion) -> Tensor:
    """Return the denoiser's predictions for two captions at two timesteps, ``(2, C, h, w)`` float32."""
    unet = model.network["unet"]
    side = min(_LARGEST, unet.config.sample_size)
    shape = (len(CAPTIONS), unet.config.in_channels, side, side)
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    timesteps = torch.tensor([model.timesteps // 4, 3 * model.timesteps // 4], device=model.device)
    return model.predict(noisy, timesteps, model.embed(CAPTIONS)).cpu()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return ``max|found - wanted| / (1 + max|wanted|)``.

    Example:
        >>> relative_error(torch.tensor([1.0]), torch.tensor([1.0]))
        0.0
    """
    return float((found - wanted).abs().max() / (1 + wanted.abs().max()))
