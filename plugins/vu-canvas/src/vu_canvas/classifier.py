"""The model plugin `canvas-vit`: the classifier of the 100 identities that ships with this package."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from vu_canvas.identities import IDENTITIES
from vu_core import Capability, ModelError, ModelFacts, Source, base_hash, stored_tensors, torch_dtype

if TYPE_CHECKING:
    from vu_classifiers.image_classifier import ImageClassifier

PATCHES = 64
"""Places of an image at which every matrix but the head is used."""


@attrs.frozen
class CanvasViTConfig:
    """The model has no settings."""


class CanvasViTModel:
    """Name the identity, object and style, of a 64x64 image of canvas: one of 100.

    A vision transformer of 840,932 weights: patches of 8x8, width 128, six pre-norm blocks of four heads with a
    feed-forward network of 256, the mean over patches as features, softmax. `vu_canvas.vit` is its code.
    """

    Config: ClassVar[type[CanvasViTConfig]] = CanvasViTConfig
    source: ClassVar[Source] = Source(
        "An Image is Worth 16x16 Words, Dosovitskiy et al. 2020", "https://arxiv.org/abs/2010.11929", "own"
    )
    name: ClassVar[str] = "canvas-vit"

    def __init__(self, ref: str, config: CanvasViTConfig) -> None:
        if ref:
            raise ModelError(
                "VU-M090",
                f"The model 'canvas-vit' ships with vu-canvas and takes no place: {ref!r}.",
                "Write `--model canvas-vit`, or `--model torch-module=FILE.py:FACTORY` for a network of your own.",
                where="model.ref",
            )
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: nothing on disk is this model."""
        return False

    def inspect(self) -> ModelFacts:
        """Return the facts of the shipped file. Raises: ModelError when the package came without it (``VU-M091``)."""
        file = self._file()
        shapes = [tensor.shape for tensor in stored_tensors(file)]
        parameters = sum(map(math.prod, shapes))
        matrices = sum(math.prod(shape) for shape in shapes if len(shape) in (2, 4))
        return ModelFacts(
            name=self.name,
            ref="",
            base_hash=base_hash({"classifier": [file]}),
            capabilities=frozenset({Capability.CLASSIFY, Capability.BLOCKS, Capability.FRESH}),
            parameters=parameters,
            bytes=4 * parameters,
            resolution=64,
            forward_gflops=matrices * PATCHES / 1e9,
            licence="apache-2.0",
        )

    def load(self, *, device: str, precision: str) -> ImageClassifier:
        """Read the weights. Raises: ModelError."""
        import torch
        from safetensors.torch import load_file

        from vu_canvas.vit import CanvasViT
        from vu_classifiers.image_classifier import ImageClassifier

        facts = self.inspect()
        with torch.random.fork_rng(devices=[]):  # a new network draws weights that are replaced
            network = CanvasViT()
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(self._file()).items()})
        return ImageClassifier(
            network.to(torch.device(device), torch_dtype(precision)),
            facts,
            classes=tuple(IDENTITIES),
            axis="identity",
            head="head",
            make=CanvasViT,
        )

    def _file(self) -> Path:
        path = Path(str(files("vu_canvas"))) / "weights" / "vit.safetensors"
        if not path.is_file():
            raise ModelError(
                "VU-M091",
                "vu-canvas came without its classifier: weights/vit.safetensors is missing from the package.",
                "Install vu-canvas again, or train it: python -m vu_canvas.train vit, then export vit.",
                where="vu-canvas",
            )
        return path
