"""A randomly initialised pipeline of a third of a million parameters, for tests without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vu_diffusers.stable_diffusion import StableDiffusion

WORDS = 77
"""Tokens of a caption, start and end included."""

_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tiny_pipeline(
    folder: str | Path, *, prediction: str = "epsilon", variant: str | None = None, seed: int = 0
) -> Path:
    """Write a randomly initialised Stable Diffusion pipeline and return its folder.

    Images have 32 x 32 pixels, latents 4 x 8 x 8. ``epsilon`` looks like Stable Diffusion 1.x (PNDM, projections by
    convolution), ``v_prediction`` like 2.x (DDIM, linear projections). The tokenizer reads letter by letter.

    Args:
        folder: where to write.
        prediction: ``epsilon`` or ``v_prediction``.
        variant: ``None`` for float32 weights, ``fp16`` for half precision weights under the variant's file names.
        seed: of the weights.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(entry.name for entry in tiny_pipeline(folder).iterdir())
        ['model_index.json', 'scheduler', 'text_encoder', 'tokenizer', 'unet', 'vae']
    """
    from vu_diffusers.quiet import quiet

    with quiet():
        from diffusers import StableDiffusionPipeline

        parts = _components(prediction, seed)
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        if variant == "fp16":
            pipeline.to(dtype=_half())
        pipeline.save_pretrained(str(folder), variant=variant)
    return Path(folder)


def tiny_model(*, prediction: str = "epsilon", seed: int = 0) -> StableDiffusion:
    """Return the pipeline of `tiny_pipeline` in float32, without writing a file.

    Example:
        >>> tiny_model().embed(["a cat", "a dog"]).shape
        torch.Size([2, 77, 32])
    """
    from vu_diffusers.quiet import quiet

    with quiet():
        return StableDiffusion.assemble(**_components(prediction, seed))


def _half() -> Any:
    import torch

    return torch.float16


def _components(prediction: str, seed: int) -> dict[str, Any]:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    linear = prediction == "v_prediction"
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=2,
            cross_attention_dim=32,
            use_linear_projection=linear,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            sample_size=32,
        )
        ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                projection_dim=32,
                max_position_embeddings=WORDS,
                **ids,
            )
        )
    scheduler = (
        DDIMScheduler(**_SCHEDULE, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False)
        if linear
        else PNDMScheduler(**_SCHEDULE, prediction_type=prediction, skip_prk_steps=True)
    )
    return {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}


def _tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: row for row, token in enumerate(tokens)}, merges=[], model_max_length=WORDS)
