"""The loaded toy model: a denoiser that also paints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vu_core.data import Examples
from vu_core.run import Run
from vu_core.testing.toy_denoiser import CHANNELS, ToyDenoiser
from vu_core.testing.toy_denoiser import SIZE as LATENT
from vu_core.testing.toys import toy_facts


class ToyPainter(ToyDenoiser):
    """A `Model` with ``denoise``, ``tokens``, ``trajectory`` and ``generate``; encodes and paints 8x8 images.

    Args:
        weights_seed: seed of the random weights.

    Example:
        >>> ToyPainter().generate(["a red dot"], [0], steps=1, guidance=1.0).shape
        (1, 8, 8, 3)
    """

    def __init__(self, weights_seed: int = 0) -> None:
        super().__init__("epsilon", weights_seed)
        self.facts = toy_facts(weights_seed)

    def prepare(self, examples: Examples, run: Run) -> Examples:
        """Return the table with the columns ``latent_mean`` and ``latent_std``, ``(N, 2, 4, 4)``."""
        if examples.load is None or "latent_mean" in examples.tensors or not len(examples):
            return examples
        rows = range(len(examples))
        pixels = torch.stack([examples.load(row, run.generator("pixels", examples.side, row)) for row in rows])
        mean = functional.avg_pool2d(pixels, 2)[:, :CHANNELS]  # (N, 2, 4, 4)
        return examples.with_tensors(latent_mean=mean, latent_std=torch.full_like(mean, 0.1))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
    ) -> np.ndarray[Any, Any]:
        """Return images, uint8 ``(N, 8, 8, 3)``; each is painted by itself, so batches change nothing."""
        return np.stack([self._paint(p, s, steps, guidance) for p, s in zip(prompts, seeds, strict=True)])

    def decode(self, latents: Tensor) -> Tensor:
        """Return images ``(B, 3, 8, 8)`` in [-1, 1] of latents ``(B, 2, 4, 4)``."""
        light = torch.sigmoid(torch.cat([latents, latents.mean(dim=1, keepdim=True)], dim=1))  # (B, 3, 4, 4)
        return functional.interpolate(light, scale_factor=2) * 2 - 1

    def _paint(self, prompt: str, seed: int, steps: int, guidance: float) -> np.ndarray[Any, Any]:
        noise: Tensor = torch.randn(1, CHANNELS, LATENT, LATENT, generator=torch.Generator().manual_seed(seed))
        z = self.denoise_partly([prompt], noise, steps=steps, done=[steps], guidance=guidance)
        image = (self.decode(z)[0].permute(1, 2, 0) + 1) / 2
        return (image * 255).round().to(torch.uint8).numpy()
