"""The conformance kit on the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vu_classifiers.torch_module import TorchModule
from vu_core import Examples
from vu_core.testing import ModelTests


class TestTorchModule(ModelTests):
    plugin = TorchModule
    settings: ClassVar[Mapping[str, Any]] = {"weights": "", "classes": ("red", "green", "blue"), "size": 8}
    other_values = {
        "weights": "other.safetensors",
        "classes": ("green", "red", "blue"),
        "axis": "colour",
        "head": "fc",
        "mean": (0.4,),
        "std": (0.25, 0.5, 0.5),
    }

    @pytest.fixture(autouse=True)
    def _files(self, _here: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            type(self), "settings", {**self.settings, "weights": str(Path.cwd() / "weights.safetensors")}
        )

    def make_ref(self) -> str:
        return str(Path.cwd() / "small_net.py") + ":make"

    def outcome(self, config: Any, folder: Path) -> Any:
        """What the kit looks at, and what the model answers."""
        model = self.plugin(self.make_ref(), config).load(device="cpu", precision="fp32")
        batch = self.batch(model, folder)
        images = model.images(batch)
        answers = (model.logits(images), model.features(images))
        return super().outcome(config, folder), *(each.tolist() for each in answers), model.labels(batch).tolist()

    def examples(self, model: Any, count: int = 3) -> Examples:
        """The classes do not follow the order of the setting, so that the labels do."""
        examples = super().examples(model, count)
        return Examples(
            examples.side,
            examples.captions,
            examples.overwrites,
            {"class": tuple(("red", "green", "blue")[row % 3] for row in range(count))},
            load=examples.load,
        )
