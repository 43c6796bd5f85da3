"""The conformance kit, for the model and the exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from vu_core import Edit
from vu_core.testing import ExporterTests, ModelTests
from vu_diffusers.lora_file import DiffusersLora
from vu_diffusers.model import Diffusers
from vu_diffusers.native import Native
from vu_diffusers.tiny import tiny_model


class TestDiffusersModel(ModelTests):
    plugin = Diffusers
    other_values = {"variant": "fp16", "revision": "v2"}

    @pytest.fixture(autouse=True)
    def _folder(self, pipelines: dict[tuple[str, str | None], Path]) -> None:
        self.folder = pipelines["v_prediction", None]

    def make_ref(self) -> str:
        return str(self.folder)


class TestDiffusersLora(ExporterTests):
    plugin = DiffusersLora

    def make_model(self) -> Any:
        return tiny_model()

    def make_edit(self, model: Any) -> Edit:
        edit = super().make_edit(model)  # it changes the autoencoder, too, which no LoRA file holds
        return attrs.evolve(edit, parts={name: part for name, part in edit if name.startswith("unet.")})


class TestNative(ExporterTests):
    plugin = Native

    def make_model(self) -> Any:
        return tiny_model(prediction="v_prediction")
