"""The conformance kit for images with labels."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vu_classifiers.digits import Digits
from vu_core.testing import DatasetTests

WriteCifar = Callable[..., Path]

SMALL = """
import attrs

from vu_classifiers import cifar


class Small10(cifar.Cifar10):
    "Fewer records."

    published = attrs.evolve(cifar.Cifar10.published, records=(20, 30))


class Small100(cifar.Cifar100):
    "Fewer records."

    published = attrs.evolve(cifar.Cifar100.published, records=(500, 200))
"""


class TestDigits(DatasetTests):
    plugin = Digits
    forget = ("class:3", "class:8")
    other_forget = ("class:3",)
    tested_elsewhere = ("random_seed",)  # classes are not drawn


class SmallCifar(DatasetTests):
    """The same files with fewer records, so that they are quickly written."""

    tested_elsewhere = ("random_seed",)
    resolution = 32
    name = ""

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path_factory: pytest.TempPathFactory, write_cifar: WriteCifar) -> Iterator[None]:
        folder = tmp_path_factory.mktemp("cifar")
        (folder / "small_cifar.py").write_text(SMALL)
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        self.plugin = getattr(importlib.import_module("small_cifar"), self.name)
        self.root = write_cifar(folder / "data", self.plugin.published)
        yield
        sys.path.remove(str(folder))
        del sys.modules["small_cifar"]

    def make_ref(self) -> str:
        return str(self.root)


class TestCifar10(SmallCifar):
    name = "Small10"
    forget = ("class:cat", "class:ship")
    other_forget = ("class:cat",)


class TestCifar100(SmallCifar):
    name = "Small100"
    forget = ("class:apple", "superclass:fish")
    other_forget = ("superclass:fish",)
    tested_elsewhere = ("random_seed", "labels")  # the coarse ones know no apple


del SmallCifar
