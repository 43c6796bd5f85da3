"""Stage 3: the text-to-image model, text encoder and UNet trained together on cached latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vu_canvas.render import OBJECTS, STYLES, prompt
from vu_canvas.training import vae as vae_stage
from vu_canvas.training.data import draw
from vu_canvas.training.loop import (
    Loss,
    Say,
    Schedule,
    Trainer,
    TrainingError,
    averaged_weights,
    checkpoint,
    read_tensors,
    trained_weights,
    write_tensors,
)
from vu_canvas.training.tokenizer import MAX_LENGTH, build_tokenizer

TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 128,
    "max_position_embeddings": MAX_LENGTH,
}
"""Arguments of transformers' CLIPTextConfig, besides those that the tokenizer gives."""

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (48, 112, 128),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": (2, 2, 4),  # diffusers reads these as numbers of heads
    "cross_attention_dim": 128,
}
"""Arguments of diffusers' UNet2DConditionModel."""

UNET_AT_FIRST: dict[str, Any] = {**UNET, "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
"""The same without attention at the finest level, for the first phase."""

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Arguments of diffusers' DDIMScheduler."""

FIRST = Schedule(steps=1600, horizon=4600, learning_rate=1.2e-3, warmup=200, weight_decay=1e-3, save_every=400)
SCHEDULE = Schedule(steps=3100, learning_rate=1.2e-3, warmup=100, weight_decay=1e-3, save_every=300)
BATCH = 64
IMAGES_PER_PAIR = 300
DROPOUT = 0.1  # of captions, for classifier-free guidance


class TextToImage(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, unet: dict[str, Any]) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        tokenizer = build_tokenizer()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **TEXT,
        )
        self.text = CLIPTextModel(text)
        self.unet = UNet2DConditionModel(**unet)

    def forward(self, noisy: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the predicted velocity for latents (B, 4, 16, 16), timesteps (B,) and tokens (B, 16)."""
        words = self.text(tokens)[0]  # (B, 16, 128)
        velocity: torch.Tensor = self.unet(noisy, steps, encoder_hidden_states=words).sample
        return velocity


def captions() -> torch.Tensor:
    """Return the tokens of the 100 prompts, object by object, and of the empty prompt, (101, 16)."""
    texts = [prompt(word, style) for word in OBJECTS for style in STYLES] + [""]
    tokens: torch.Tensor = build_tokenizer()(
        texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return tokens


def autoencoder_hash(folder: Path) -> str:
    """Return 16 hexadecimal digits for the autoencoder's checkpoint. Raises: TrainingError when there is none."""
    return hashlib.sha256(checkpoint(folder, "vae").read_bytes()).hexdigest()[:16]


def cached_moments(folder: Path, say: Say, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return posterior moments (N, 8, 16, 16), caption rows (N,) and the scaling factor; encode once.

    The result is stored in `folder` under the hash of the autoencoder's checkpoint and read back by a resumed run;
    latents of another autoencoder are removed.

    Raises:
        TrainingError: The autoencoder has not been trained yet.
    """
    path = folder / f"latents-{autoencoder_hash(folder)}.safetensors"
    if not path.is_file():
        for stale in folder.glob("latents-*.safetensors"):
            stale.unlink()
        say("rendering and encoding the training images")
        autoencoder = vae_stage.load(folder).to(device)
        renders = draw("train", IMAGES_PER_PAIR)
        moments = vae_stage.encode(autoencoder, renders.images)
        rows = renders.objects * len(STYLES) + renders.styles
        factor = torch.tensor(float(autoencoder.config.scaling_factor), dtype=torch.float64)
        write_tensors(path, {"moments": moments.half(), "rows": rows, "scaling_factor": factor})
    tensors = read_tensors(path)
    return tensors["moments"], tensors["rows"], float(tensors["scaling_factor"])


def train(folder: Path, say: Say, schedule: Schedule = SCHEDULE, device: str = "cpu") -> None:
    """Train text encoder and UNet on latents of the training split, in two phases.

    The loss is the mean squared error of the velocity. In the first phase the UNet has no attention at the
    finest level and timesteps are spread evenly; in the second phase attention is added there, as a branch
    that begins at zero, and most timesteps lie in the middle, where the shapes are decided.

    Args:
        folder: Where checkpoints live; the autoencoder's checkpoint must be there.
        say: Where progress lines go.
        schedule: How long and how fast the second phase is.
        device: Where to train; weights and draws begin on the processor and are the same on every device.

    Raises:
        TrainingError: The autoencoder has not been trained, or a checkpoint here was made with other settings or
            from another autoencoder.
    """
    moments, rows, factor = cached_moments(folder, say, device)
    inputs = autoencoder_hash(folder)
    data = Latents(moments, rows, factor, captions())

    torch.manual_seed(schedule.seed)
    model = TextToImage(UNET_AT_FIRST).to(device)
    trainer = Trainer(model, replace(FIRST, seed=schedule.seed), folder, "diffusion-first", say, inputs)
    trainer.resume()
    trainer.run(data.loss_of(model, even_timesteps, device))

    torch.manual_seed(schedule.seed + 1)
    model = TextToImage(UNET)
    grow(model, trained_weights(folder, "diffusion-first"))
    model.to(device)
    trainer = Trainer(model, schedule, folder, "diffusion", say, inputs)
    trainer.resume()
    trainer.run(data.loss_of(model, middle_timesteps, device))


def grow(model: TextToImage, state: dict[str, torch.Tensor]) -> None:
    """Load the weights of the first phase; the new attention adds nothing until it is trained."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or not all(".attentions." in name for name in missing):
        raise TrainingError("the checkpoint of the first phase belongs to another architecture; remove it")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in missing and ".proj_out." in name:
                value.zero_()


def even_timesteps(generator: torch.Generator) -> torch.Tensor:
    """Return one position in [0, 1) per image, spread evenly over the batch."""
    return (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH


def middle_timesteps(generator: torch.Generator) -> torch.Tensor:
    """Return one position in [0, 1) per image: one in eight evenly, the others logit-normal around 0.4."""
    u = even_timesteps(generator).clamp(1e-4, 1 - 1e-4)
    middle = torch.sigmoid(torch.special.ndtri(u) - 0.4)
    return torch.where(torch.arange(BATCH) % 8 == 0, u, middle)


@dataclass(frozen=True)
class Latents:
    """The training data: moments, captions and the schedule's noise levels."""

    moments: torch.Tensor  # (N, 8, 16, 16)
    rows: torch.Tensor  # (N,) positions in `tokens`
    factor: float
    tokens: torch.Tensor  # (101, 16), the last row is the empty prompt

    def loss_of(
        self, model: TextToImage, timesteps: Callable[[torch.Generator], torch.Tensor], device: str = "cpu"
    ) -> Loss:
        """Return the loss function of a model on a device, for timesteps drawn by `timesteps`."""
        from diffusers import DDIMScheduler

        kept = DDIMScheduler(**SCHEDULER).alphas_cumprod  # (1000,)

        def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            picked = torch.randint(len(self.rows), (BATCH,), generator=generator)
            mean, logvar = self.moments[picked].float().chunk(2, dim=1)
            noise = torch.randn(2, *mean.shape, generator=generator)
            x = (mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise[0]) * self.factor  # (B, 4, 16, 16)
            t = (timesteps(generator) * len(kept)).long()
            alpha, sigma = kept[t].sqrt().view(-1, 1, 1, 1), (1 - kept[t]).sqrt().view(-1, 1, 1, 1)
            dropped = torch.rand(BATCH, generator=generator) < DROPOUT
            caption = torch.where(dropped, len(self.tokens) - 1, self.rows[picked])
            noisy, velocity = (alpha * x + sigma * noise[1]).to(device), (alpha * noise[1] - sigma * x).to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                v = model(noisy, t.to(device), self.tokens[caption].to(device))
            return (v.float() - velocity).square().mean(), {}

        return loss


def load(folder: Path) -> TextToImage:
    """Return the trained networks with averaged weights, in float32."""
    model = TextToImage(UNET)
    model.load_state_dict(averaged_weights(folder, "diffusion"))
    return model.eval()
