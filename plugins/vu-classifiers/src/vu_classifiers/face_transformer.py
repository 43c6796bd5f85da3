"""The model plugin ``face-transformer``: the vision transformer that GS-LoRA forgets identities of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from vu_classifiers.architecture import ARCHITECTURE, CLASSES, WEIGHTS, Architecture, read_architecture
from vu_classifiers.pretrained_folder import describe
from vu_classifiers.torch_module import distinct
from vu_core import ModelError, ModelFacts, Source, base_hash, did_you_mean, setting, stored_tensors, torch_dtype

if TYPE_CHECKING:
    from vu_classifiers.image_classifier import ImageClassifier

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def _named(classes: tuple[str, ...]) -> str | None:
    return distinct(classes) if classes else None


@attrs.frozen
class FaceTransformerConfig:
    """Settings of `FaceTransformer`, the table ``[model]``."""

    classes: tuple[str, ...] = setting(
        (), help="names of the identities in the order of the logits; empty = those of classes.json", check=_named
    )
    axis: str = setting("", help="label of the data that names the identity; empty = the one whose values are classes")
    mean: tuple[float, ...] = setting((0.0,), help="subtracted from pixels in [0, 1]: one number, or three")
    std: tuple[float, ...] = setting((1.0,), help="then divided by: one number, or three", gt=0)

    def __attrs_post_init__(self) -> None:
        """Raise ValueError unless ``mean`` and ``std`` have one number or three."""
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, 3):
                raise ValueError(f"{name} must have 1 or 3 numbers, but has {len(getattr(self, name))}")


class FaceTransformer:
    """Load a vision transformer for faces, by default ViT-P8S8: 19,157,504 parameters for 100 identities.

    The weights are a safetensors file. Beside it may lie ``classes.json``, a list of the identities in the order of
    the logits, and ``face_transformer.json``, the architecture; without it, the shapes of the tensors tell it, with
    stride 8 and heads 64 wide as published. ``python -m vu_classifiers.pretrain`` writes all three.

    Logits are computed without labels: ``s cos`` for the heads ``cosface`` and ``arcface``, whose margins belong to
    training. ``margin_logits`` of the loaded model gives those with the margin.

    Deviates:
        Dropout of 0.1 is for the training of the network itself; while it is unlearned, it is in evaluation mode. The
        patches are a convolution, which is the published linear map of a patch with its inputs in another order.

    Args:
        ref: the safetensors file, or a folder with ``model.safetensors``.
        config: see `FaceTransformerConfig`.
    """

    Config: ClassVar[type[FaceTransformerConfig]] = FaceTransformerConfig
    source: ClassVar[Source] = Source(
        "Face Transformer for Recognition, Zhong and Deng 2021", "https://arxiv.org/abs/2103.14803", "paper"
    )
    name: ClassVar[str] = "face-transformer"

    def __init__(self, ref: str, config: FaceTransformerConfig) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is a folder with the architecture of a face transformer."""
        return (path / ARCHITECTURE).is_file()

    def inspect(self) -> ModelFacts:
        """Return what the files tell, without torch.

        Raises:
            ModelError: nothing of the name is there (``VU-M070``), it holds no safetensors weights (``VU-M114``) or
                damaged ones (``VU-M074``), no face transformer (``VU-M115``), or nothing names its classes
                (``VU-M116``).
        """
        return self._read()[1]

    def load(self, *, device: str, precision: str) -> ImageClassifier:
        """Make the network, fill it, freeze it; in evaluation mode.

        Raises:
            ModelError: as `inspect`; the weights do not fit the architecture (``VU-M095``).
        """
        import torch
        from safetensors.torch import load_file

        from vu_classifiers import face_network
        from vu_classifiers.image_classifier import ImageClassifier, Normalisation
        from vu_classifiers.state import fill

        architecture, facts, classes = self._read()
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and replaced
            module = face_network.FaceTransformer(architecture)
        fill(module, load_file(self._file()), self._file())
        return ImageClassifier(
            module.to(torch.device(device), torch_dtype(precision)),
            facts,
            classes=classes,
            axis=self.config.axis,
            head="head",
            normalisation=Normalisation(self.config.mean, self.config.std),
            make=lambda: face_network.FaceTransformer(architecture),
        )

    def _read(self) -> tuple[Architecture, ModelFacts, tuple[str, ...]]:
        """Return what the files tell: architecture, facts and the names of the classes."""
        file = self._file()
        tensors = stored_tensors(file)
        architecture = read_architecture(file, tensors)
        hashed = base_hash({"classifier": [file]})
        return (
            architecture,
            describe(self.name, self.ref, hashed, tensors, architecture.size),
            self._classes(file.parent / CLASSES, architecture.classes),
        )

    def _classes(self, file: Path, count: int) -> tuple[str, ...]:
        """Return the names of the identities. Raises: ModelError (``VU-M116``)."""
        if self.config.classes:
            names, place = self.config.classes, "model.classes"
        elif file.is_file():
            names, place = _read_names(file), str(file)
        else:
            raise _no_classes(f"Nothing names the {count} classes: there is no {file.name!r} beside the weights", "")
        if len(names) != count:
            raise _no_classes(f"{len(names)} classes are named, where the weights have {count}", place)
        return names

    def _file(self) -> Path:
        """Return the weights file. Raises: ModelError (``VU-M070``, ``VU-M114``)."""
        path = Path(self.ref).expanduser()
        if self.ref and path.is_dir():
            path = path / WEIGHTS
            if path.is_file():
                return path
            raise _no_weights(f"The folder {self.ref!r} has no {WEIGHTS!r}.")
        if self.ref and path.is_file():
            if path.suffix not in PICKLES:
                return path
            raise _no_weights(f"{path.name!r} is a pickle, which could run any program when it is read.")
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(
            "VU-M070",
            f"There is no file or folder {self.ref!r}.{did_you_mean(path.name, near)}"
            if self.ref
            else "Nothing says where the weights of the face transformer are.",
            "Write --model face-transformer=FOLDER; `python -m vu_classifiers.pretrain` trains one.",
            where="model.ref",
        )


def _read_names(file: Path) -> tuple[str, ...]:
    """Return the list of names in a JSON file. Raises: ModelError (``VU-M116``)."""
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _no_classes(f"{file.name!r} is no valid JSON: {error}", str(file)) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _no_classes(f"{file.name!r} is no list of names", str(file))
    why = distinct(tuple(names))
    if why is not None:
        raise _no_classes(f"{file.name!r} {why}", str(file))
    return tuple(names)


def _no_classes(problem: str, where: str) -> ModelError:
    remedy = f"Set model.classes, or write the names in the order of the logits into {CLASSES}, a list."
    return ModelError("VU-M116", f"{problem}.", remedy, where=where or "model.classes")


def _no_weights(problem: str) -> ModelError:
    remedy = "Write it once: safetensors.torch.save_file(network.state_dict(), 'model.safetensors')."
    return ModelError("VU-M114", problem, remedy, where="model.ref")
