"""A folder with an image classifier of transformers as its files tell it, read without torch."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vu_classifiers.torch_module import capabilities, distinct, forward_gflops, is_parameter
from vu_core import ModelError, ModelFacts, StoredTensor, base_hash, did_you_mean, stored_tensors

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
KIND = "ForImageClassification"
"""End of the names of the architectures that map an image to logits."""

OTHER_STEPS = ("do_flip_channel_order", "rescale_offset", "include_top")
"""Steps of a preprocessing that mean and deviation cannot express."""

Settings = Mapping[str, Any]


@attrs.frozen
class Preprocessing:
    """What the network was shown in training.

    Args:
        size: height and width in pixels; 0 = not told.
        mean, std: of pixels in [0, 1], one per channel or one for all.
    """

    size: int = 0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


@attrs.frozen
class PretrainedFolder:
    """A folder with a configuration, weights and, as a rule, a preprocessing.

    Args:
        root: the folder; config: content of its ``config.json``; seen: what its preprocessing says.
        weights: its safetensors files.
    """

    root: Path
    config: Settings
    seen: Preprocessing
    weights: tuple[Path, ...]

    def facts(self, name: str, ref: str, size: int) -> ModelFacts:
        """Return what the files tell; reads every weight once for the hash (remembered afterwards)."""
        tensors = [tensor for path in self.weights for tensor in stored_tensors(path)]
        licence = read_licence(self.root / "README.md")
        return describe(name, ref, base_hash({"classifier": self.weights}), tensors, size, licence=licence)


def describe(
    name: str,
    ref: str,
    hashed: str,
    tensors: Sequence[StoredTensor],
    size: int,
    *,
    downloads: int = 0,
    licence: str = "",
) -> ModelFacts:
    """Put the facts together; ``bytes`` is the size in fp32."""
    parameters = sum(math.prod(tensor.shape) for tensor in tensors if is_parameter(tensor))
    return ModelFacts(
        name=name,
        ref=ref,
        base_hash=hashed,
        capabilities=capabilities(tensors),
        parameters=parameters,
        bytes=4 * parameters,
        resolution=size,
        forward_gflops=forward_gflops(tensors, size),
        downloads=downloads,
        licence=licence,
    )


def is_classifier(path: Path) -> bool:
    """Tell whether a folder's configuration names an image classifier of transformers."""
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and _names_a_classifier(content)


def open_folder(root: Path) -> PretrainedFolder:
    """Read the JSON files of a folder and find its weights.

    Raises:
        ModelError: another kind of model (``VU-M111``), files that are missing or damaged (``VU-M112``), a
            preprocessing that is not understood (``VU-M113``), or no safetensors weights (``VU-M114``).
    """
    config = read_config(root / CONFIG)
    file = root / PREPROCESSOR
    return PretrainedFolder(root, config, read_preprocessing(file if file.is_file() else None), _weights(root))


def read_config(path: Path) -> Settings:
    """Return the configuration of an image classifier. Raises: ModelError ``VU-M111``, ``VU-M112``."""
    if not path.is_file():
        raise not_a_classifier(str(path.parent), f"it has no {CONFIG}")
    config = read_json(path)
    if not _names_a_classifier(config):
        named = config.get("architectures")
        said = ", ".join(map(str, named)) if isinstance(named, list) and named else "no architecture"
        raise not_a_classifier(str(path.parent), f"its {CONFIG} names {said}, nothing that ends in {KIND}")
    return config


def _names_a_classifier(config: Settings) -> bool:
    named = config.get("architectures")
    return isinstance(named, list) and any(isinstance(name, str) and name.endswith(KIND) for name in named)


def class_names(config: Settings, where: str) -> tuple[str, ...]:
    """Return the names of the classes in the order of the logits.

    A name that several classes share gets the place of its logit behind it: ``crane 134`` and ``crane 517``. Without
    names, classes are ``LABEL_0``, ``LABEL_1``, ...

    Raises:
        ModelError: ``VU-M112`` when places are missing or are no numbers, or a name is what another one becomes.

    Example:
        >>> class_names({"id2label": {"0": "crane", "1": "duck", "2": "crane"}}, "here")
        ('crane 0', 'duck', 'crane 2')
    """
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", 2)
        named = {str(place): f"LABEL_{place}" for place in range(count if isinstance(count, int) else 0)}
    places = [str(place) for place in range(len(named))] if isinstance(named, dict) else []
    if len(places) < 2 or set(named) != set(places):
        raise damaged(where, "'id2label' does not name a class for each of 0, 1, 2, ...")
    names = [str(named[place]) for place in places]
    shared = Counter(names)
    made = tuple(name if shared[name] == 1 else f"{name} {place}" for place, name in enumerate(names))
    why = distinct(made)
    if why is not None:
        raise damaged(where, f"'id2label' {why}")
    return made


def image_size(config: Settings, seen: Preprocessing, where: str) -> int:
    """Return height and width of the images: of the preprocessing, else of the configuration, else 224."""
    return seen.size or _side(config.get("image_size"), where, "image_size") or 224


def read_preprocessing(path: Path | None) -> Preprocessing:
    """Return what a ``preprocessor_config.json`` says; ``None`` for a folder without one.

    With v the bytes of an image, a preprocessing computes ``(v * factor - mean) / std``; with pixels ``p = v / 255``
    that is ``(p - m) / s`` of ``m = mean / (255 factor)`` and ``s = std / (255 factor)``. How images are brought to
    the size is up to the data.

    Raises:
        ModelError: ``VU-M112`` for a damaged value, ``VU-M113`` for steps that are not understood.
    """
    if path is None:
        return Preprocessing()
    told, where = read_json(path), str(path)
    steps = [name for name in OTHER_STEPS if told.get(name)]
    if steps:
        raise _not_understood(f"{str(path)!r} asks for {' and '.join(steps)}, which vu does not compute.", where)
    factor = told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1.0
    if not _is_number(factor) or factor <= 0:
        raise damaged(where, "'rescale_factor' is no positive number")
    normalises = told.get("do_normalize", True)
    mean, std = (_numbers(told, key, usual, where) if normalises else (usual,) for key, usual in _NORMALISATION)
    if min(std) <= 0:
        raise damaged(where, "'image_std' is not positive")
    scale = 255 * factor
    return Preprocessing(_told_size(told, where), tuple(m / scale for m in mean), tuple(s / scale for s in std))


_NORMALISATION = (("image_mean", 0.0), ("image_std", 1.0))
"""Keys, and what they are where nothing is normalised."""


def _told_size(told: Settings, where: str) -> int:
    if told.get("crop_size") is not None and told.get("do_center_crop", True):
        return _side(told["crop_size"], where, "crop_size")
    return _side(told.get("size"), where, "size") if told.get("do_resize", True) else 0


def _side(value: object, where: str, key: str) -> int:
    """Return the one side of a size: ``224``, ``[224, 224]``, ``{"height": 224, ...}``, ``{"shortest_edge": 224}``."""
    if value is None:
        return 0
    if isinstance(value, dict):
        sides = [value[name] for name in ("height", "width", "shortest_edge") if value.get(name) is not None]
    else:
        sides = value if isinstance(value, list) else [value]
    if not sides or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise damaged(where, f"{key!r} is no size in pixels: {json.dumps(value)}")
    if len(set(sides)) > 1:
        raise _not_understood(f"Images of {str(where)!r} are not square: {key!r} is {json.dumps(value)}.", where)
    return int(sides[0])


def _numbers(told: Settings, key: str, usual: float, where: str) -> tuple[float, ...]:
    value = told.get(key, [0.5])
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) not in (1, 3) or not all(map(_is_number, numbers)):
        raise damaged(where, f"{key!r} is not one number or three")
    return tuple(map(float, numbers))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _weights(root: Path) -> tuple[Path, ...]:
    """Return the weights files, shards included. Raises: ModelError ``VU-M112``, ``VU-M114``."""
    if (root / WEIGHTS).is_file():
        return (root / WEIGHTS,)
    if (root / INDEX).is_file():
        names = shards(root / INDEX)
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            raise damaged(str(root), f"the file {missing[0]!r} is missing")
        return tuple(root / name for name in names)
    raise no_weights(str(root), [path.name for path in root.iterdir()])


def shards(index: Path) -> list[str]:
    """Return the file names that an index of shards lists. Raises: ModelError ``VU-M112``."""
    listed = read_json(index).get("weight_map")
    names = listed.values() if isinstance(listed, dict) else ()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise damaged(str(index), "'weight_map' is no table from tensors to file names")
    return sorted(set(names))


def read_licence(card: Path) -> str:
    """Return the ``license`` of a model card's header, or nothing."""
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"\A---\n.*?^license:\s*([^\n]+)$.*?^---", text, re.M | re.S)
    return found.group(1).strip().strip("\"'") if found else ""


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises: ModelError ``VU-M112``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(str(path), f"it is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise damaged(str(path), "it holds no JSON object")
    return value


def not_a_classifier(place: str, why: str) -> ModelError:
    """Return the error for another kind of model."""
    return ModelError(
        "VU-M111",
        f"{place!r} is no image classifier of transformers: {why}.",
        "Name a folder that save_pretrained() of an AutoModelForImageClassification wrote, or such a model on the hub.",
        where="model.ref",
    )


def damaged(place: str, why: str) -> ModelError:
    """Return the error for files that are incomplete or wrong."""
    return ModelError(
        "VU-M112", f"{place!r} is damaged: {why}.", "Copy or download the model again, or repair the file.", where=place
    )


def no_weights(place: str, names: Iterable[str]) -> ModelError:
    """Return the error for a folder or repository without safetensors weights."""
    there = sorted(names)
    pickled = [name for name in there if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))]
    problem = f"{place!r} has no weights {WEIGHTS!r}.{did_you_mean(WEIGHTS, there)}"
    if pickled:
        problem += f" {pickled[0]!r} is not read: such a file could run any program when it is opened."
    remedy = "Convert it once: AutoModelForImageClassification.from_pretrained(...).save_pretrained(folder)."
    return ModelError("VU-M114", problem, remedy, where="model.ref")


def _not_understood(problem: str, where: str) -> ModelError:
    return ModelError("VU-M113", problem, "Use a classifier whose images are square and only normalised.", where=where)
