"""The exporter ``diffusers``: a LoRA file that ``pipe.load_lora_weights`` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from vu_core import Edit, EditError, LowRank, Model, Run, Source, setting
from vu_core.adapters import apply_edit
from vu_diffusers.loading import as_pipeline
from vu_diffusers.probe import outputs, relative_error
from vu_diffusers.quiet import quiet
from vu_diffusers.stable_diffusion import StableDiffusion

FILE = "pytorch_lora_weights.safetensors"
COMPONENTS = ("unet", "text_encoder")
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error of the outputs per precision of the model: in half precision both sides round differently."""


@attrs.frozen
class Config:
    """Settings of the exporter ``diffusers``."""

    precision: str = setting("fp32", help="precision of the factors in the file", choices=("fp32", "fp16"))


class DiffusersLora:
    """Write low-rank edits as ``pytorch_lora_weights.safetensors``.

    Readers take alpha for r when a file says nothing, so the scale ``gamma = alpha / r`` is multiplied into B and
    alpha = r is written beside it: ``B' = gamma B``, ``A' = A``. An edit with a mask per weight is not of low rank, and
    a changed tensor is no product of factors: both are refused, never approximated.

    Args:
        config: see `Config`.

    Source: keys and metadata as diffusers' ``save_lora_weights`` writes them.
    """

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source("LoRA, Hu et al. 2021", "https://arxiv.org/abs/2106.09685", "code")

    def __init__(self, config: Config) -> None:
        self.config = config

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write the file into ``folder``.

        Raises:
            EditError: VU-E070 when the format cannot express the edit.
        """
        from safetensors.torch import save_file

        dtype = {"fp32": torch.float32, "fp16": torch.float16}[self.config.precision]
        tensors: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        for name, part in edit:
            factors = _expressible(name, part)
            module = name.removesuffix(".weight")
            a, b = _as_layers(factors, model.network.get_parameter(name).shape)
            tensors[f"{_key(module)}.lora_A.weight"] = a.to("cpu", dtype).contiguous()
            tensors[f"{_key(module)}.lora_B.weight"] = b.to("cpu", dtype).contiguous()
            ranks[module] = factors.rank
        if not tensors:
            raise EditError("VU-E070", "The edit is empty: there is nothing to write.", "Export another edit.")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        temporary = folder / f".{FILE}"
        save_file(tensors, str(temporary), metadata=_metadata(ranks))
        temporary.replace(path)
        return (path,)

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> float:
        """Load the file with diffusers' own loader and compare the denoiser's outputs on fixed inputs.

        First the products of the stored factors are compared with the edit's, which half precision does not blur.

        Returns:
            ``max|y_export - y_edit| / (1 + max|y_edit|)``.

        Raises:
            EditError: VU-E071 when that exceeds 1e-4 in fp32 (1e-2 in fp16, 5e-2 in bf16), when a product differs by
                more than 1e-5 (1e-2 for factors stored in fp16) of its largest number, or when the file does nothing.
        """
        if not isinstance(model, StableDiffusion):
            raise TypeError(f"expected a loaded Stable Diffusion model, but got {type(model).__name__}")
        self._check_products(files[0], edit)
        with apply_edit(model.network, edit):
            wanted = outputs(model)
        found = _through_diffusers(model, files[0])
        error = relative_error(found, wanted)
        limit = max(TOLERANCE[model.dtype], TOLERANCE[torch.float16] if self.config.precision == "fp16" else 0)
        if not error <= limit:  # not "error > limit": NaN must fail, too
            raise EditError(
                "VU-E071",
                f"The exported file does not reproduce the edit: outputs differ by {error:.1e}, allowed {limit:.0e}.",
                "Do not use the file; export with precision fp32, or use the native format.",
                where=str(files[0]),
            )
        return error

    def _check_products(self, path: Path, edit: Edit) -> None:
        from safetensors import safe_open

        limit = 1e-5 if self.config.precision == "fp32" else 1e-2
        with safe_open(str(path), "pt") as file:
            for name, part in edit:
                key = _key(name.removesuffix(".weight"))
                a, b = (file.get_tensor(f"{key}.lora_{side}.weight").double().flatten(1) for side in "AB")
                wanted = _expressible(name, part).delta().to("cpu", torch.float64)
                if not (b @ a - wanted).abs().max() <= limit * wanted.abs().max():
                    raise EditError(
                        "VU-E071",
                        f"The exported change of {name!r} is not that of the edit.",
                        "Do not use the file; export with precision fp32, or use the native format.",
                        where=str(path),
                    )


def _expressible(name: str, part: Any) -> LowRank:
    """Return the factors of a part that a LoRA file can hold. Raises: EditError VU-E070."""
    component = name.partition(".")[0]
    problem = ""
    if not isinstance(part, LowRank):
        problem = f"the change of {name!r} is a new tensor, not a product of two factors"
    elif part.mask is not None and not bool(part.mask.all()):
        problem = f"the change of {name!r} is masked weight by weight, and a masked product is not of low rank"
    elif component not in COMPONENTS or not name.endswith(".weight"):
        problem = f"{name!r} is no weight of {' or '.join(COMPONENTS)}"
    if problem:
        raise EditError(
            "VU-E070",
            f"The LoRA format of diffusers cannot express this edit: {problem}.",
            "Export it in the native format, which holds every edit exactly.",
            where=name,
        )
    return part  # type: ignore[no-any-return]


def _as_layers(part: LowRank, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return A and the scaled B in the shapes of the layers that read them: linear, or convolution ``k`` then 1."""
    a, b = part.A.float(), part.B.float() * (part.alpha / part.rank)
    if len(shape) == 2:
        return a, b  # (r, in), (out, r)
    ones = (1,) * (len(shape) - 2)
    return a.reshape(part.rank, *shape[1:]), b.reshape(shape[0], part.rank, *ones)


def _key(module: str) -> str:
    """Return the key of a module; this form of the text encoder's layers is read by old and new versions alike."""
    component, _, rest = module.partition(".")
    if component == "text_encoder" and not rest.startswith("text_model."):
        return f"text_encoder.text_model.{rest}"
    return module


def _metadata(ranks: dict[str, int]) -> dict[str, str] | None:
    """Return the adapter's configuration, alpha = r; one key, since several are written in random order.

    With layers of the text encoder it is left out: their names differ between versions of the reader, and the factors
    alone say the same.
    """
    if any(not module.startswith("unet.") for module in ranks):
        return None
    names = {module.removeprefix("unet."): rank for module, rank in sorted(ranks.items())}
    usual = max(names.values())
    pattern = {name: rank for name, rank in names.items() if rank != usual}
    config = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(names),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
    return {
        "lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)
    }


def _through_diffusers(model: StableDiffusion, path: Path) -> Tensor:
    """Return the outputs with the file loaded by diffusers into the same networks; it is taken off again."""
    before = list(model.network.modules())
    pipeline = as_pipeline(model.network, model.tokenizer, model.scheduler)
    with quiet():
        try:
            pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="vu_export")
            if len(list(model.network.modules())) == len(before):
                raise _unreadable(path, "it finds no adapter in it")
            return outputs(model)
        except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
            raise _unreadable(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        finally:
            pipeline.unload_lora_weights()
            model.network.requires_grad_(False).eval()


def _unreadable(path: Path, cause: str) -> EditError:
    return EditError(
        "VU-E071",
        f"diffusers cannot load the exported file: {cause}.",
        "Do not use the file; use the native format.",
        where=str(path),
    )
