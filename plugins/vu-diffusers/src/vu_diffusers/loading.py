"""Reading a pipeline folder: networks, tokenizer and scheduler, and what is said when they do not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vu_core import ModelError, ModelFacts, torch_dtype
from vu_diffusers.folder import CONFIGS, PipelineFolder
from vu_diffusers.quiet import quiet
from vu_diffusers.stable_diffusion import StableDiffusion

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers that diffusers offers for Stable Diffusion and that have a noise schedule over discrete timesteps."""

DAMAGE = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What the libraries raise on values in a configuration that they did not expect."""


def load_pipeline(
    place: PipelineFolder, facts: ModelFacts, *, device: str, precision: str, gradient_checkpointing: bool
) -> StableDiffusion:
    """Read networks, tokenizer and scheduler of a pipeline folder.

    Raises:
        ModelError: VU-M074 for missing or misshapen tensors, VU-M072 for a tokenizer or scheduler that cannot be read,
            VU-M078 for an absent device.
    """
    _check_device(device)
    with quiet():
        import diffusers
        from transformers import CLIPTextModel

        classes = {
            "unet": diffusers.UNet2DConditionModel,
            "text_encoder": CLIPTextModel,
            "vae": diffusers.AutoencoderKL,
        }
        dtype = torch_dtype(precision)
        network = nn.ModuleDict({part: _load(kind, place, part, dtype).to(device) for part, kind in classes.items()})
        tokenizer, scheduler = _words_and_schedule(place, network)
        if gradient_checkpointing:
            network["unet"].enable_gradient_checkpointing()  # type: ignore[operator]
    return StableDiffusion(network, tokenizer, scheduler, facts)


def _words_and_schedule(place: PipelineFolder, network: nn.ModuleDict) -> tuple[Any, Any]:
    """Return tokenizer and scheduler; diffusers' pipeline class corrects settings of old schedulers."""
    from transformers import CLIPTokenizer

    scheduler = _scheduler(place)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(place.root / "tokenizer"), local_files_only=True)
        known, expected = len(tokenizer), int(network["text_encoder"].config.vocab_size)
        if not expected // 2 < known <= expected:  # what is left of a tokenizer whose files are missing
            raise ValueError(f"the tokenizer knows {known} tokens, the text encoder {expected}")
    except DAMAGE as error:
        raise ModelError(
            "VU-M072",
            f"The tokenizer of {str(place.root)!r} cannot be read: {cause_of(error)}.",
            "Copy or download the model again.",
            where=str(place.root / "tokenizer"),
        ) from error
    pipeline = as_pipeline(network, tokenizer, scheduler)
    return pipeline.tokenizer, pipeline.scheduler


def _scheduler(place: PipelineFolder) -> Any:
    """Return the scheduler. Raises: ModelError VU-M072 for one that cannot be made or has no noise schedule."""
    import diffusers

    settings = place.configs["scheduler"]
    name = str(settings.get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    try:
        if not name.endswith("Scheduler") or not hasattr(kind, "from_config"):
            raise ValueError("diffusers has no such scheduler")
        scheduler = kind.from_config(dict(settings))
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError("it has no noise schedule of the kind that Stable Diffusion is trained with")
    except (ImportError, *DAMAGE) as error:
        cause = cause_of(error)
        raise ModelError(
            "VU-M072",
            f"The scheduler {name} of {str(place.root)!r} cannot be used: {cause}.",
            f"Supported are {', '.join(SCHEDULERS)}, with the beta_schedule linear, scaled_linear or squaredcos_cap_v2."
            " Repair the file, or copy or download the model again.",
            where=str(place.root / CONFIGS["scheduler"]),
        ) from error
    return scheduler


def as_pipeline(network: nn.ModuleDict, tokenizer: Any, scheduler: Any) -> Any:
    """Return diffusers' StableDiffusionPipeline around the same networks, without safety checker."""
    with quiet():
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            **dict(network.items()),
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def cause_of(error: Exception) -> str:
    """Return what a library says went wrong, in one line of at most 300 characters."""
    line = " ".join(str(error).split())
    named = line if " " in line else f"{type(error).__name__} {line}".strip()
    return named[:300].removesuffix(".")


def _load(kind: Any, place: PipelineFolder, part: str, dtype: torch.dtype) -> nn.Module:
    from huggingface_hub.errors import StrictDataclassError

    precision = {"torch_dtype": dtype} if part != "text_encoder" else {"dtype": dtype}
    try:
        network, report = kind.from_pretrained(
            str(place.root),
            subfolder=part,
            variant=place.variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=True,  # weights go straight to their place: never a second copy
            output_loading_info=True,
            **precision,
        )
    except (StrictDataclassError, *DAMAGE) as error:
        raise _damaged(place, part, cause_of(error)) from error
    missing = sorted(report["missing_keys"])
    mismatched = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report["mismatched_keys"])
    if missing or mismatched:  # the libraries would go on with random numbers there
        wrong = f"{len(missing)} tensors are missing and {len(mismatched)} misshapen"
        raise _damaged(place, part, f"{wrong}, such as {(missing + mismatched)[0]!r}")
    return network  # type: ignore[no-any-return]


def _damaged(place: PipelineFolder, part: str, cause: str) -> ModelError:
    return ModelError(
        "VU-M074",
        f"The weights of {part} do not fit its configuration: {cause}.",
        "Copy or download the model again.",
        where=str(place.root / part),
    )


def _check_device(device: str) -> None:
    kind = torch.device(device).type
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, True)
    if not there:
        raise ModelError(
            "VU-M078", f"This machine has no device {device!r}.", 'Set run.device = "cpu".', where="run.device"
        )
