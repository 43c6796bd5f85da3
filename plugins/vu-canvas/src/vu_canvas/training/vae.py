"""Stage 1: the autoencoder, 64x64 RGB to 16x16x4 latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from vu_canvas.training.data import draw, to_signed
from vu_canvas.training.loop import Say, Schedule, Trainer, averaged_weights

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 64,
}
"""Arguments of diffusers' AutoencoderKL."""

SCHEDULE = Schedule(steps=3300, learning_rate=4e-3, warmup=100, average=0.995)
BATCH = 16
IMAGES_PER_PAIR = 100
KL_WEIGHT = 3e-4
EDGE_WEIGHT = 0.5
COLOUR_WEIGHT = 10.0


def build() -> Any:
    """Return an untrained autoencoder."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**CONFIG)


def edges(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the differences between neighbouring columns and rows."""
    return images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]


def colours(images: torch.Tensor) -> torch.Tensor:
    """Return what distinguishes the colour channels from their mean, on a grid four times coarser."""
    coarse = functional.avg_pool2d(images, 4)
    return coarse - coarse.mean(dim=1, keepdim=True)


def train(folder: Path, say: Say, schedule: Schedule = SCHEDULE, device: str = "cpu") -> None:
    """Train the autoencoder on renders of the training split.

    The loss is the mean absolute and squared error of the pixels, plus that of the differences between neighbours
    (fine lines and textures), plus that of the colours on a coarse grid (without it the autoencoder spends a long time
    in grey), plus a small KL term that keeps the latents smooth.

    Args:
        folder: Where checkpoints live.
        say: Where progress lines go.
        schedule: How long and how fast.
        device: Where to train; weights and draws begin on the processor and are the same on every device.
    """
    torch.manual_seed(schedule.seed)
    model = build()
    with torch.no_grad():  # begin with little noise in the latents
        model.quant_conv.bias[4:] = -5
        model.quant_conv.weight[4:] *= 0.1
        model.quant_conv.weight[:4] *= 3
    model.to(device)
    trainer = Trainer(model, schedule, folder, "vae", say)
    trainer.resume()
    renders = draw("train", IMAGES_PER_PAIR)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows = torch.randint(len(renders.images), (BATCH,), generator=generator)
        x = to_signed(renders.images[rows]).to(device)  # (B, 3, 64, 64)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            posterior = model.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator).to(device)
            y = model.decode(mean + (0.5 * logvar).exp() * noise).sample
        y = y.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        pixels = (x - y).abs().mean() + (x - y).square().mean()
        sharp = torch.stack([(a - b).abs().mean() for a, b in zip(edges(x), edges(y), strict=True)]).mean()
        colour = (colours(x) - colours(y)).square().mean()
        total = pixels + EDGE_WEIGHT * sharp + COLOUR_WEIGHT * colour + KL_WEIGHT * kl
        return total, {"pixels": pixels, "edges": sharp, "colours": colour, "kl": kl}

    trainer.run(loss)


@torch.no_grad()
def standardise(model: Any, moments: torch.Tensor) -> None:
    """Rescale the latents to mean 0 and deviation 1 per channel, without changing any reconstruction.

    Both 1x1 convolutions around the latents absorb the change: the encoder's divides by the deviation,
    the decoder's multiplies by it.

    Args:
        model: The autoencoder, changed in place.
        moments: Posterior moments of training images, (N, 8, 16, 16).
    """
    mean, logvar = moments.chunk(2, dim=1)
    shift = mean.mean(dim=(0, 2, 3))  # (4,)
    spread = (mean.var(dim=(0, 2, 3), correction=0) + logvar.exp().mean(dim=(0, 2, 3))).sqrt()
    before, after = model.quant_conv, model.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ shift
    after.weight *= spread.view(1, -1, 1, 1)
    before.bias[:4] -= shift
    before.bias[:4] /= spread
    before.weight[:4] /= spread.view(-1, 1, 1, 1)
    before.bias[4:] -= 2 * spread.log()


@torch.no_grad()
def load(folder: Path) -> Any:
    """Return the trained autoencoder in float32, its latents standardised and its scaling factor measured.

    The scaling factor is one over the standard deviation of the latents of 2,000 training images, which is 1
    up to rounding once `standardise` has run on the same images.
    """
    model = build()
    model.load_state_dict(averaged_weights(folder, "vae"))
    model.eval()
    images = draw("train", 20).images
    standardise(model, encode(model, images))
    mean, logvar = encode(model, images).chunk(2, dim=1)
    spread = (mean.var(correction=0) + logvar.exp().mean()).sqrt()
    model.register_to_config(scaling_factor=round(1 / float(spread), 5))
    return model


@torch.no_grad()
def encode(model: Any, images: torch.Tensor, batch: int = 100) -> torch.Tensor:
    """Return the posterior moments (mean and log-variance, as 8 channels) of uint8 images, on the processor."""
    parts = [to_signed(part).to(model.device) for part in torch.split(images, batch)]
    rows = [model.encode(part).latent_dist.parameters.cpu() for part in parts]
    return torch.cat(rows)  # (N, 8, 16, 16)


@torch.no_grad()
def reconstruct(model: Any, images: torch.Tensor, batch: int = 100) -> torch.Tensor:
    """Return what is left of uint8 images after encoding and decoding, as uint8 (N, 64, 64, 3)."""
    rows = []
    for part in torch.split(images, batch):
        decoded = model.decode(model.encode(to_signed(part).to(model.device)).latent_dist.mode()).sample
        rows.append((decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(rows)
