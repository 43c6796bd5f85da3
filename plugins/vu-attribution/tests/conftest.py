"""Fixtures: the toy denoiser, its data, and runs with folders of their own."""

from __future__ import annotations

import pytest

from vu_core import ForgetRetain, Run
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data


@pytest.fixture
def model() -> ToyDenoiser:
    return ToyDenoiser()


@pytest.fixture
def data() -> ForgetRetain:
    return toy_data()


@pytest.fixture
def make_run(tmp_path):
    """A run with its own folder; further fields as keywords."""
    count = iter(range(1000))

    def make(seed: int = 7, **fields) -> Run:
        folder = tmp_path / f"run{next(count)}"
        folder.mkdir()
        return Run(seed=seed, device="cpu", precision="fp32", folder=folder, cache=tmp_path / "cache", **fields)

    return make
