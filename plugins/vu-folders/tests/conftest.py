from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vu_core import Run


@pytest.fixture
def image() -> Callable[..., Path]:
    """Write an image of noise that depends on the seed."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (40, 36)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(seed=7, device="cpu", precision="fp32", folder=tmp_path / "run", cache=tmp_path / "cache")
