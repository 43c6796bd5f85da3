"""The conformance kit on `transformers`, with and without transformer blocks, and on `face-transformer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vu_classifiers.face_transformer import FaceTransformer
from vu_classifiers.transformers_model import Transformers
from vu_core.testing import ModelTests


class ClassifierTests(ModelTests):
    """The outcome is what the model answers, too."""

    folder: Path

    def make_ref(self) -> str:
        return str(self.folder)

    def outcome(self, config: Any, folder: Path) -> Any:
        model = self.plugin(self.make_ref(), config).load(device="cpu", precision="fp32")
        batch = self.batch(model, folder)
        images = model.images(batch)
        answers = (model.logits(images).tolist(), model.features(images).tolist(), model.labels(batch).tolist())
        return super().outcome(config, folder), answers, model.classes


class TestTransformersVit(ClassifierTests):
    plugin = Transformers
    other_values: ClassVar[Mapping[str, Any]] = {
        "revision": "v2",
        "classes": ("red", "green", "blue"),
        "size": 32,
        "axis": "colour",
        "head": "vit.layernorm",
        "mean": (0.4,),
        "std": (0.25, 0.5, 0.5),
    }

    @pytest.fixture(autouse=True)
    def _folder(self, tiny_vit: Path) -> None:
        self.folder = tiny_vit


class TestTransformersConvNext(ClassifierTests):
    """A network without transformer blocks: the facts do not name the capability."""

    plugin = Transformers
    other_values: ClassVar[Mapping[str, Any]] = {
        **TestTransformersVit.other_values,
        "size": 64,
        "head": "convnext.layernorm",
    }

    @pytest.fixture(autouse=True)
    def _folder(self, tiny_convnext: Path) -> None:
        self.folder = tiny_convnext


class TestFaceTransformer(ClassifierTests):
    plugin = FaceTransformer
    other_values: ClassVar[Mapping[str, Any]] = {
        "classes": ("c", "b", "a"),
        "axis": "colour",
        "mean": (0.4,),
        "std": (0.25, 0.5, 0.5),
    }

    @pytest.fixture(autouse=True)
    def _folder(self, tiny_face: Path) -> None:
        self.folder = tiny_face
