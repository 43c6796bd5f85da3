"""A toy denoiser: an attention block with the layer names of Stable Diffusion, milliseconds per step."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vu_core.data import Batch, Examples, ForgetRetain, Side
from vu_core.run import Run

CHANNELS, SIZE, WIDTH, TOKENS = 2, 4, 8, 3


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        weights = torch.softmax(self.to_q(x) @ self.to_k(c).transpose(1, 2) / WIDTH**0.5, dim=-1)
        out: Tensor = x + self.to_out[0](weights @ self.to_v(c))
        return out


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.time = nn.Linear(1, WIDTH)
        self.attn1, self.attn2 = _Attention(), _Attention()
        self.conv_out = nn.Conv2d(WIDTH, CHANNELS, 1)

    def forward(self, z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        x = self.conv_in(z) + self.time(t[:, None].to(z.dtype) / 100)[:, :, None, None]  # (B, W, h, w)
        # Contiguous, as a layer norm hands them on: torch multiplies others by one kernel for weights that are trained
        # and another one for those that are not, and an untouched adapter would not equal its teacher bit for bit.
        tokens = x.flatten(2).transpose(1, 2).contiguous()  # (B, h*w, W)
        tokens = self.attn2(self.attn1(tokens, tokens), c)
        out: Tensor = self.conv_out(torch.tanh(tokens.transpose(1, 2).reshape(x.shape)))
        return out


class ToyDenoiser:
    """A `Model` and `Denoiser` with 100 timesteps and random weights; equal captions have equal embeddings.

    Args:
        prediction: ``epsilon`` or ``v_prediction``.
        seed: seed of the weights.

    Example:
        >>> ToyDenoiser().embed(["a star"]).shape
        torch.Size([1, 3, 8])
    """

    denoiser = "unet"
    timesteps = 100
    latent_shape = (CHANNELS, SIZE, SIZE)

    def __init__(self, prediction: str = "epsilon", seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.ModuleDict({"unet": _UNet(), "text_encoder": nn.Linear(WIDTH, WIDTH)})
        self.network.requires_grad_(False).eval()
        self.facts: Any = SimpleNamespace(name="toy-denoiser", base_hash=f"toy-{seed}", prediction=prediction)
        self.alphas = torch.linspace(0.99, 0.01, self.timesteps)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the denoiser."""
        dtype: torch.dtype = next(self.network["unet"].parameters()).dtype
        return dtype

    def prepare(self, examples: Examples, run: Run) -> Examples:
        """Return the table as it is: `toy_data` is encoded already."""
        return examples

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Return ``(B, 3, 8)``."""
        rows = [
            torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(caption.encode())))
            for caption in captions
        ]
        out: Tensor = self.network["text_encoder"](torch.stack(rows).to(self.dtype))
        return out

    def tokens(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Return start (0), one id per word, and end (1); words that no row is left for are cut."""
        words = [caption.split()[: TOKENS - 2] for caption in captions]
        return [(0, *(2 + zlib.crc32(word.encode()) for word in each), 1) for each in words]

    def latents(self, batch: Batch) -> Tensor:
        """Return a posterior sample, ``(B, 2, 4, 4)``."""
        mean = batch["latent_mean"]
        return mean + batch["latent_std"] * batch.normal("posterior", mean.shape[1:])

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``sqrt(a_t) z + sqrt(1 - a_t) n``."""
        a = self.alphas[timesteps][:, None, None, None]
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def predict(self, noisy: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        """Return the prediction in float32, ``(B, 2, 4, 4)``."""
        out: Tensor = self.network["unet"](noisy.to(self.dtype), timesteps, embedding.to(self.dtype)).float()
        return out

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, or the velocity ``sqrt(a_t) n - sqrt(1 - a_t) z``."""
        if self.facts.prediction == "epsilon":
            return noise
        a = self.alphas[timesteps][:, None, None, None]
        return a.sqrt() * noise - (1 - a).sqrt() * latents

    def sampling_timesteps(self, steps: int) -> tuple[int, ...]:
        """Return ``99 - k * 100 // steps`` for step k."""
        return tuple(self.timesteps - 1 - step * self.timesteps // steps for step in range(steps))

    @torch.no_grad()
    def denoise_partly(
        self, captions: Sequence[str], noise: Tensor, *, steps: int, done: Sequence[int], guidance: float
    ) -> Tensor:
        """Return ``(B, 2, 4, 4)``; a step subtracts the guided prediction over ``steps``, and each row goes alone."""
        rows = []
        for caption, z, end in zip(captions, noise, done, strict=True):
            u, c = self.embed([""]), self.embed([caption])
            z = z[None].to(torch.float32)
            for t in self.sampling_timesteps(steps)[:end]:
                empty, there = (self.predict(z, torch.tensor([t]), words) for words in (u, c))
                z = z - (empty + guidance * (there - empty)) / steps
            rows.append(z)
        return torch.cat(rows)


def toy_examples(side: Side, count: int) -> Examples:
    """Return ``count`` encoded examples of one side, with two captions that take turns."""
    generator = torch.Generator().manual_seed(zlib.crc32(side.encode()))
    shape = (count, CHANNELS, SIZE, SIZE)
    return Examples(
        side=side,
        captions=tuple(f"{side} {i % 2}" for i in range(count)),
        overwrites=tuple(f"plain {i % 2}" for i in range(count)) if side == "forget" else None,
        tensors={"latent_mean": torch.randn(shape, generator=generator), "latent_std": torch.full(shape, 0.1)},
    )


def toy_data(forget: int = 5, retain: int = 6) -> ForgetRetain:
    """Return train examples of both sides and one validation example each."""
    return ForgetRetain(
        toy_examples("forget", forget),
        toy_examples("retain", retain),
        toy_examples("forget", 1),
        toy_examples("retain", 1),
    )
