"""Fixed questions that tell whether two versions of a model are the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from vu_core import Check, Classifier, Edit, Model, ModelError, TextToImage
from vu_core.adapters import apply_edit
from vu_diffusers.stable_diffusion import StableDiffusion

CAPTIONS = ("", "A red circle.")
STEPS = 4
"""Sampling steps of the image: enough for every block to show, at the cost of few passes."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error of the outputs per precision: in half precision both sides round differently."""

# Measured on the embedded default and on tiny random pipelines, as mean difference of pixels in [0, 1]: right exports
# give at most 1e-5 in fp32, 8e-4 in fp16 and 6e-3 in bf16, those of half the strength 1e-3 to 1e-1, which is at least
# 0.45 of what the edit changes. Where an edit turns a model upside down, sampling amplifies rounding: to 0.07 of that.
IMAGE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest mean absolute difference of an image's pixels per precision, unless the share below is larger."""

IMAGE_SHARE = 0.2
"""Largest difference of an image as a share of the difference that the edit makes.

Coarse, because sampling amplifies rounding. A strength that is slightly off shows in what every format compares
besides: products of factors, weights, or the edit itself.
"""

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


@torch.no_grad()
def answers(model: Model) -> dict[str, Tensor]:
    """Return what a model says to the questions that its kind can be asked, float32 on the CPU.

    Returns:
        ``denoiser``: see `outputs`; ``logits`` of two images of noise, ``(2, K)``; ``image``: one image in [0, 1],
        ``(H, W, 3)``, of the model's own guidance.
    """
    said: dict[str, Tensor] = {}
    with _full_precision():
        if isinstance(model, StableDiffusion):
            said["denoiser"] = outputs(model)
        if isinstance(model, Classifier):
            side = model.facts.resolution
            noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
            said["logits"] = model.logits(noise.to(next(model.network.parameters()).device)).float().cpu()
        if isinstance(model, TextToImage):
            said["image"] = _image(model)
    return said


def _full_precision() -> AbstractContextManager[None]:
    """Keep convolutions on GPUs from rounding to ten bits: a changed weight to others than a weight and its change."""
    now = torch.backends.cudnn
    return now.flags(now.enabled, now.benchmark, deterministic=now.deterministic, allow_tf32=False)  # type: ignore[no-any-return]


@torch.no_grad()
def _image(model: Any) -> Tensor:
    """Return one image; models refuse to draw what is not finite, and then the comparison says so: one number, NaN."""
    guidance = model.facts.generation.get("guidance", 1.0)
    try:
        with _full_precision():
            images = model.generate([CAPTIONS[-1]], [0], steps=STEPS, guidance=guidance)
    except ModelError:
        return torch.tensor(float("nan"))
    return torch.from_numpy(images[0]).float() / 255  # (H, W, 3)


@attrs.frozen(eq=False)
class Wanted:
    """What every export of an edit has to say.

    Args:
        answers: of the model with the edit.
        effect: mean absolute difference that the edit makes to the pixels of the image.
    """

    answers: Mapping[str, Tensor]
    effect: float


def wanted_of(model: Model, edit: Edit) -> Wanted:
    """Ask the model with the edit applied; it comes back as it was."""
    with apply_edit(model.network, edit):
        said = answers(model)
    image = said.get("image")
    return Wanted(said, 0.0 if image is None else _distance(image, _image(model)))


def comparison(found: Mapping[str, Tensor], wanted: Wanted, precision: torch.dtype) -> tuple[Check, ...]:
    """Compare the answers of two versions of a model.

    Args:
        found: `answers` of the export.
        wanted: of the edited model.
        precision: the lowest one on either side; it decides the limits.

    Returns:
        One check per question: relative errors of outputs, and the mean absolute difference of the image's pixels.
    """
    precision = precision if precision in TOLERANCE else torch.float32  # the others are wider
    image_limit = max(IMAGE_TOLERANCE[precision], IMAGE_SHARE * wanted.effect)
    return tuple(
        Check(what, _distance(found[what], tensor), image_limit)
        if what == "image"
        else Check(what, relative_error(found[what], tensor), TOLERANCE[precision])
        for what, tensor in wanted.answers.items()
    )


def precision_of(network: nn.Module) -> torch.dtype:
    """Return the precision of a network's first parameter; float32 when it has none."""
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)


def coarser(*precisions: torch.dtype) -> torch.dtype:
    """Return the precision that rounds the most.

    Example:
        >>> coarser(torch.float32, torch.float16)
        torch.float16
    """
    return max(precisions, key=lambda precision: TOLERANCE[precision])


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().mean())


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return ``max|found - wanted| / (1 + max|wanted|)``.

    Example:
        >>> relative_error(torch.tensor([1.0]), torch.tensor([1.0]))
        0.0
    """
    return float((found - wanted).abs().max() / (1 + wanted.abs().max()))
