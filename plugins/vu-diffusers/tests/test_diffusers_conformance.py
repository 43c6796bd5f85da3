"""The conformance kit, for the model and the exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from vu_core import Edit
from vu_core.testing import ExporterTests, ModelTests
from vu_diffusers.delta_file import Delta
from vu_diffusers.kohya_file import Kohya
from vu_diffusers.lora_file import DiffusersLora
from vu_diffusers.merged import Merged
from vu_diffusers.model import Diffusers
from vu_diffusers.native import Native
from vu_diffusers.peft_folder import Peft
from vu_diffusers.tiny import tiny_model


class TestDiffusersModel(ModelTests):
    plugin = Diffusers
    other_values = {"variant": "fp16", "revision": "v2"}

    @pytest.fixture(autouse=True)
    def _folder(self, pipelines: dict[tuple[str, str | None], Path]) -> None:
        self.folder = pipelines["v_prediction", None]

    def make_ref(self) -> str:
        return str(self.folder)


class PipelineTests(ExporterTests):
    """Exporters on a pipeline of a third of a million parameters."""

    def make_model(self) -> Any:
        return tiny_model()


class LoraTests(PipelineTests):
    """The edit of the kit changes the autoencoder, too, which no LoRA file holds."""

    def make_edit(self, model: Any) -> Edit:
        edit = super().make_edit(model)
        return attrs.evolve(edit, parts={name: part for name, part in edit if name.startswith("unet.")})


class TestNative(PipelineTests):
    plugin = Native

    def make_model(self) -> Any:
        return tiny_model(prediction="v_prediction")


class TestDelta(PipelineTests):
    plugin = Delta


class TestMerged(PipelineTests):
    plugin = Merged
    other_values = {"precision": "fp16"}


class TestDiffusersLora(LoraTests):
    plugin = DiffusersLora


class TestPeft(LoraTests):
    plugin = Peft


class TestKohya(LoraTests):
    plugin = Kohya
