"""The conformance kit, for both kinds of data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vu_core.testing import DatasetTests
from vu_folders.imagefolder import ImageFolder
from vu_folders.metafile import Metafile

CHANGES = {
    "resolution": 16,
    "resize": 40,
    "caption_template": "A photo of {}.",
    "overwrite_column": "substitute",
    "max_forget": 2,
    "max_retain": 2,
    "validation": 0.4,
    "held_out": 0.4,
}


class TestImageFolder(DatasetTests):
    plugin = ImageFolder
    forget = ("style:sketch", "style:photo")
    other_forget = ("style:sketch",)
    overwrite = ("an oil painting",)
    other_values = CHANGES
    tested_elsewhere = ("classes", "classes_file", "random_seed")  # these images lie in no class folders
    resolution = 32  # smaller ones leave no room where a crop could move

    @pytest.fixture(autouse=True)
    def _images(self, image: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> None:
        self.root = tmp_path_factory.mktemp("images")
        lines = []
        for place, style in enumerate(("sketch", "photo", "fresco")):
            for number in range(6):
                name = f"{style}{number}.png"
                image(self.root / name, seed=10 * place + number)
                own = {"overwrite": "A fresco of a cat."} if number == 0 and style != "fresco" else {}
                lines.append({"file_name": name, "text": f"A {style} of a cat.", "style": style, **own})
        (self.root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def make_ref(self) -> str:
        return str(self.root)


class TestMetafile(DatasetTests):
    plugin = Metafile
    forget = ("side:forget",)
    overwrite = ("an oil painting",)
    other_values = {**CHANGES, "base_dir": "elsewhere"}
    resolution = 32

    @pytest.fixture(autouse=True)
    def _images(self, image: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> None:
        self.file = tmp_path_factory.mktemp("data") / "meta.json"
        content: dict[str, list[dict[str, str]]] = {"forget": [], "retain": []}
        for place, (side, entries) in enumerate(content.items()):
            for number in range(6):
                image(self.file.parent / f"{side}{number}.png", seed=10 * place + number)
                own = "A fresco of a cat." if number == 0 else ""
                entries.append({"file_name": f"{side}{number}.png", "text": f"{side} {number}", "overwrite": own})
        self.file.write_text(json.dumps(content))

    def make_ref(self) -> str:
        return str(self.file)


class TestTrainAndTest(DatasetTests):
    """Folders that are separated already, for a model that needs overwrites."""

    plugin = ImageFolder
    forget = ("class:cat", "class:dog")
    other_forget = ("class:dog",)
    overwrite = ("class:owl",)
    other_values = {**CHANGES, "classes": ("dog", "cat", "owl")}
    tested_elsewhere = ("overwrite_column", "held_out", "classes_file", "random_seed")
    resolution = 32

    @pytest.fixture(autouse=True)
    def _images(self, image: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> None:
        self.root = tmp_path_factory.mktemp("separated")
        for place, part in enumerate(("train", "test")):
            for number, name in enumerate(("cat", "cow", "dog", "owl")):
                for count in range(5 - 3 * place):
                    image(self.root / part / name / f"{count}.png", seed=100 * place + 10 * number + count)

    def make_ref(self) -> str:
        return str(self.root)
