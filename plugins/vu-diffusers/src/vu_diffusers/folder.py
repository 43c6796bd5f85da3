"""A pipeline folder as its files tell it, read without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from vu_core import Capability, ModelError, ModelFacts, StoredTensor, base_hash, stored_tensors
from vu_diffusers.cost import forward_gflops

PIPELINE = "StableDiffusionPipeline"
CLASSES = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "vae": "AutoencoderKL"}
"""Components that are loaded, and the classes that are understood."""

STEMS = {"unet": "diffusion_pytorch_model", "text_encoder": "model", "vae": "diffusion_pytorch_model"}
PREDICTIONS = ("epsilon", "v_prediction")
MODEL_INDEX = "model_index.json"
CONFIGS = {**{part: f"{part}/config.json" for part in CLASSES}, "scheduler": "scheduler/scheduler_config.json"}
"""Where each component keeps its configuration."""


@attrs.frozen
class PipelineFolder:
    """A complete pipeline folder.

    Args:
        root: the folder; variant: middle part of the weights' names, such as ``fp16``.
        configs: content of the configuration file per component, the scheduler's included.
        weights: weights files per component.
    """

    root: Path
    variant: str | None
    configs: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, tuple[Path, ...]]

    def facts(self, name: str, ref: str, generation: Mapping[str, float]) -> ModelFacts:
        """Return what the files tell; reads every weight once for the hash (remembered afterwards)."""
        tensors = {
            part: tuple(t for path in paths for t in stored_tensors(path)) for part, paths in self.weights.items()
        }
        hashed = base_hash(self.weights)
        return describe(
            name, ref, hashed, self.configs, tensors, generation, licence=read_licence(self.root / "README.md")
        )


def open_folder(root: Path, variant: str | None) -> PipelineFolder:
    """Read the JSON files of a pipeline folder and find its weights.

    Raises:
        ModelError: VU-M071 for another kind of pipeline, VU-M072 when files are missing, VU-M073 when weights are
            missing, of another variant, or pickled.
    """
    check_index(root / MODEL_INDEX)
    configs = {part: read_json(root / file) for part, file in CONFIGS.items()}
    check_configs(configs, str(root))
    if not (root / "tokenizer").is_dir() or not any((root / "tokenizer").iterdir()):
        raise _half(root / "tokenizer", "folder")
    weights = {part: _weights(root / part, STEMS[part], variant) for part in CLASSES}
    return PipelineFolder(root, variant, configs, weights)


def check_index(path: Path) -> None:
    """Refuse what is no Stable Diffusion pipeline. Raises: ModelError VU-M071, VU-M072."""
    if not path.is_file():
        raise ModelError(
            "VU-M071",
            f"The folder {str(path.parent)!r} is no pipeline: it has no {MODEL_INDEX}.",
            "Name the folder that diffusers wrote with save_pretrained(); a single .safetensors or .ckpt file must be"
            " converted to such a folder first.",
            where=str(path.parent),
        )
    index = read_json(path)
    found = index.get("_class_name")
    if found != PIPELINE:
        raise ModelError(
            "VU-M071",
            f"{str(path)!r} describes a {found}; the model 'diffusers' reads {PIPELINE}.",
            "Use a Stable Diffusion 1.x or 2.x text-to-image pipeline.",
            where=str(path),
        )
    for part, expected in CLASSES.items():
        entry = index.get(part)
        kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if kind != expected:
            raise ModelError(
                "VU-M071",
                f"{str(path)!r} names {kind!r} as {part}; expected is {expected!r}.",
                "Use a pipeline with the usual components, or repair the file.",
                where=str(path),
            )


def check_configs(configs: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Refuse prediction types and values that are not understood.

    Args:
        configs: content of the configuration file per component.
        where: the folder or the repository.

    Raises:
        ModelError: VU-M071 for another prediction type; VU-M072, with file and key, for a missing or damaged value.
    """
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ModelError(
            "VU-M071",
            f"The scheduler of this model predicts {prediction!r}; understood are {' and '.join(PREDICTIONS)}.",
            "Use a model of one of these kinds.",
            where=where,
        )
    for part, key, needed, fits, wanted in _VALUES:
        if key not in configs[part] and not needed:
            continue
        problem = f"lacks {key!r}"
        if key in configs[part]:
            problem = f"has {key!r} = {json.dumps(configs[part][key])}, which is not {wanted}"
        if key not in configs[part] or not fits(configs[part][key]):
            raise ModelError(
                "VU-M072",
                f"The configuration of {part} {problem}.",
                "Copy or download the model again.",
                where=f"{where}/{CONFIGS[part]}",
            )


def _size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _sizes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_size, value))


def _side(value: object) -> bool:
    return value is None or _size(value) or (_sizes(value) and len(value) == 2)  # type: ignore[arg-type]


def _factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


_VALUES: tuple[tuple[str, str, bool, Callable[[object], bool], str], ...] = (
    ("unet", "block_out_channels", True, _sizes, "a list of positive whole numbers"),
    ("unet", "cross_attention_dim", True, lambda v: _size(v) or _sizes(v), "a positive whole number or a list of them"),
    ("unet", "sample_size", False, _side, "a positive whole number, two of them, or null"),
    ("unet", "in_channels", False, _size, "a positive whole number"),
    ("vae", "block_out_channels", True, _sizes, "a list of positive whole numbers"),
    ("vae", "scaling_factor", False, _factor, "a positive number"),
    ("text_encoder", "max_position_embeddings", False, _size, "a positive whole number"),
)
"""Component, key, whether it must be there, what its value must be, and that in words: what the facts are made of."""


def describe(
    name: str,
    ref: str,
    hashed: str,
    configs: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, tuple[StoredTensor, ...]],
    generation: Mapping[str, float],
    *,
    downloads: int = 0,
    licence: str = "",
) -> ModelFacts:
    """Put the facts together; ``bytes`` is the size in fp32."""
    import math

    unet = configs["unet"]
    levels = len(unet["block_out_channels"])
    size = latent_size(configs)
    numbers = (
        tensor for found in tensors.values() for tensor in found if "F" in tensor.dtype.upper()
    )  # no position ids
    parameters = sum(math.prod(tensor.shape) for tensor in numbers)
    words = int(configs["text_encoder"].get("max_position_embeddings", 77))
    return ModelFacts(
        name=name,
        ref=ref,
        base_hash=hashed,
        capabilities=frozenset({Capability.DENOISE, Capability.GENERATE, Capability.TOKENS, Capability.TRAJECTORY}),
        parameters=parameters,
        bytes=4 * parameters,
        resolution=size * latent_factor(configs),
        prediction=str(configs["scheduler"].get("prediction_type", "epsilon")),
        forward_gflops=forward_gflops(tensors.get("unet", ()), size=size, levels=levels, words=words),
        downloads=downloads,
        licence=licence,
        generation=generation,
    )


def latent_size(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the native side of a latent."""
    size = configs["unet"].get("sample_size") or 64
    return int(size[0] if isinstance(size, list) else size)


def latent_factor(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the number of pixels along one side of a latent pixel."""
    return 2 ** int(len(configs["vae"]["block_out_channels"]) - 1)


def read_licence(card: Path) -> str:
    """Return the ``license`` of a model card's header, or nothing."""
    if not card.is_file():
        return ""
    found = re.search(
        r"\A---\n.*?^license:\s*([^\n]+)$.*?^---", card.read_text(encoding="utf-8", errors="replace"), re.M | re.S
    )
    return found.group(1).strip().strip("\"'") if found else ""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises: ModelError VU-M072 when it is missing or damaged."""
    if not path.is_file():
        raise _half(path, "file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            "VU-M072", f"{str(path)!r} is no valid JSON: {error}.", "Copy or download the model again.", where=str(path)
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            "VU-M072", f"{str(path)!r} holds no JSON object.", "Copy or download the model again.", where=str(path)
        )
    return value


def _half(path: Path, kind: str) -> ModelError:
    root = path.parent if kind == "folder" else path.parent.parent
    return ModelError(
        "VU-M072",
        f"The pipeline {str(root)!r} is incomplete: the {kind} {str(path.relative_to(root))!r} is missing.",
        "Copy or download the whole pipeline; its parts are unet, text_encoder, vae, tokenizer and scheduler.",
        where=str(path),
    )


def _weights(folder: Path, stem: str, variant: str | None) -> tuple[Path, ...]:
    """Return the weights files of a component, shards included."""
    middle = f".{variant}" if variant else ""
    single = folder / f"{stem}{middle}.safetensors"
    if single.is_file():
        return (single,)
    index = folder / f"{stem}.safetensors.index{middle}.json"
    if index.is_file():
        names = _shards(index)
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise _half(folder / missing[0], "file")
        if names:
            return tuple(folder / name for name in names)
    raise _no_weights(folder, stem, single, variant)


def _shards(index: Path) -> list[str]:
    """Return the file names that an index of shards lists. Raises: ModelError VU-M072."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(n, str) and Path(n).name == n for n in listed.values()):
        raise ModelError(
            "VU-M072",
            f"The key 'weight_map' of {str(index)!r} is no table from tensors to file names.",
            "Copy or download the model again.",
            where=str(index),
        )
    return sorted(set(listed.values()))


def _no_weights(folder: Path, stem: str, expected: Path, variant: str | None) -> ModelError:
    others = sorted({m.group(1) or "" for p in folder.glob("*.safetensors") if (m := _variant_of(stem, p.name))})
    others = [name for name in others if name != (variant or "")]
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    problem = f"There are no weights {expected.name!r} in {str(folder)!r}."
    if others:
        named = ", ".join(repr(name) if name else "none" for name in others)
        first = f'"{others[0]}"' if others[0] else "none (leave the key out)"
        remedy = f"The folder has other variants ({named}): set model.variant = {first}."
    elif pickled:
        problem += f" There is only the pickled file {pickled[0]!r}, which could run any program when it is read."
        remedy = "Convert it once in diffusers: load the pipeline and call save_pretrained(folder)."
    else:
        remedy = "Copy or download the whole pipeline, weights included."
    return ModelError("VU-M073", problem, remedy, where=str(folder))


def _variant_of(stem: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(re.escape(stem) + r"(?:\.([a-z0-9_]+))?(?:-\d{5}-of-\d{5})?\.safetensors", name)
