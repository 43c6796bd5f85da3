"""Fixtures: a toy denoiser, a toy classifier, their data, and runs with all axes."""

from __future__ import annotations

import pytest

from vu_core import ForgetRetain, Run
from vu_core.adapters import Full, FullConfig
from vu_core.plugins import discover
from vu_core.testing import ToyClassifier, toy_forget_retain, toy_run
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.training import Training

QUICK = Training(steps=4, batch_size=2, lr=1e-2, schedule="constant")


@pytest.fixture
def denoiser() -> ToyDenoiser:
    return ToyDenoiser()


@pytest.fixture
def latents() -> ForgetRetain:
    """Encoded examples for the denoiser: 5 to forget, 6 to retain."""
    return toy_data()


@pytest.fixture
def classifier() -> ToyClassifier:
    return ToyClassifier()


@pytest.fixture
def images(make_run, classifier) -> ForgetRetain:
    """Red images to forget, green and blue ones to retain."""
    return toy_forget_retain(make_run(), model=classifier)


@pytest.fixture(scope="session")
def plugins():
    """Everything that is installed."""
    return discover()


@pytest.fixture
def make_axis(plugins):
    """A plugin by kind and name, with settings."""

    def make(kind: str, name: str, **settings):
        plugin = plugins.registry.get(kind, name).load()
        return plugin(plugin.Config(**settings))

    return make


@pytest.fixture
def make_run(tmp_path, make_axis):
    """A run with its own folder, all weights, equal weights of both losses and saliency; all can be replaced."""
    count = iter(range(1000))

    def make(seed: int = 7, **fields) -> Run:
        axes = {
            "training": QUICK,
            "parameters": Full(FullConfig()),
            "weighting": make_axis("weighting", "simple", forget_weight=1.0, retain_weight=1.0),
            "attribution": make_axis("attribution", "saliency", reduce="abs_sum"),
            "resolve": lambda name, settings: make_axis("unlearner", name, **settings),
        }
        return toy_run(tmp_path / f"{next(count)}", seed, **{**axes, **fields})

    return make
