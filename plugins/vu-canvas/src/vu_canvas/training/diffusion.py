"""Stage 3: the text-to-image model, text encoder and UNet trained together on cached latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vu_canvas.render import OBJECTS, STYLES, prompt
from vu_canvas.training import vae as vae_stage
from vu_canvas.training.data import draw
from vu_canvas.training.loop import Say, Schedule, Trainer, averaged_weights, write_tensors
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
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (48, 128, 192),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "attention_head_dim": (2, 4, 4),  # diffusers reads these as numbers of heads
    "cross_attention_dim": 128,
}
"""Arguments of diffusers' UNet2DConditionModel."""

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

SCHEDULE = Schedule(steps=8000, learning_rate=1.2e-3, warmup=200, weight_decay=1e-3, average=0.999, save_every=400)
BATCH = 64
IMAGES_PER_PAIR = 300
DROPOUT = 0.1  # of captions, for classifier-free guidance


class TextToImage(nn.Module):
    """The two networks that are trained together."""

    def __init__(self) -> None:
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
        self.unet = UNet2DConditionModel(**UNET)

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


def cached_moments(folder: Path, say: Say) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return posterior moments (N, 8, 16, 16), caption rows (N,) and the scaling factor; encode once.

    The result is stored in `folder` and read back by a resumed run.
    """
    from safetensors.torch import load_file

    path = folder / "latents.safetensors"
    if not path.is_file():
        say("rendering and encoding the training images")
        autoencoder = vae_stage.load(folder)
        renders = draw("train", IMAGES_PER_PAIR)
        moments = vae_stage.encode(autoencoder, renders.images)
        rows = renders.objects * len(STYLES) + renders.styles
        factor = torch.tensor(float(autoencoder.config.scaling_factor), dtype=torch.float64)
        write_tensors(path, {"moments": moments.half(), "rows": rows, "scaling_factor": factor})
    tensors = load_file(str(path))
    return tensors["moments"], tensors["rows"], float(tensors["scaling_factor"])


def train(folder: Path, say: Say, schedule: Schedule = SCHEDULE) -> None:
    """Train text encoder and UNet on latents of the training split.

    The loss is the mean squared error of the velocity at timesteps that are spread evenly over a batch.

    Args:
        folder: Where checkpoints live; the autoencoder's checkpoint must be there.
        say: Where progress lines go.
        schedule: How long and how fast.
    """
    from diffusers import DDIMScheduler

    torch.manual_seed(schedule.seed)
    model = TextToImage()
    trainer = Trainer(model, schedule, folder, "diffusion", say)
    trainer.resume()
    moments, rows, factor = cached_moments(folder, say)
    tokens = captions()
    kept = DDIMScheduler(**SCHEDULER).alphas_cumprod  # (1000,)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, str]:
        picked = torch.randint(len(rows), (BATCH,), generator=generator)
        mean, logvar = moments[picked].float().chunk(2, dim=1)
        noise = torch.randn(2, *mean.shape, generator=generator)
        x = (mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise[0]) * factor  # (B, 4, 16, 16)
        spread = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        t = (spread * len(kept)).long()
        alpha, sigma = kept[t].sqrt().view(-1, 1, 1, 1), (1 - kept[t]).sqrt().view(-1, 1, 1, 1)
        caption = torch.where(torch.rand(BATCH, generator=generator) < DROPOUT, len(tokens) - 1, rows[picked])
        with torch.autocast("cpu", torch.bfloat16):
            v = model(alpha * x + sigma * noise[1], t, tokens[caption])
        return (v.float() - (alpha * noise[1] - sigma * x)).square().mean(), ""

    trainer.run(loss)


def load(folder: Path) -> TextToImage:
    """Return the trained networks with averaged weights, in float32."""
    model = TextToImage()
    model.load_state_dict(averaged_weights(folder, "diffusion"))
    return model.eval()
