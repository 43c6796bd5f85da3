"""The numbers that each baseline has when nothing is said, as its table publishes them."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

import pytest

from vu_baselines.anchored import AnchoredConfig
from vu_baselines.boundary_shrink import BoundaryShrinkConfig
from vu_baselines.der import DerConfig
from vu_baselines.der_plus_plus import DerPlusPlusConfig
from vu_baselines.ewc import EwcAnchorConfig
from vu_baselines.fdr import FdrConfig
from vu_baselines.fine_tune import FineTuneConfig
from vu_baselines.fine_tune_prune import FineTunePruneConfig
from vu_baselines.gradient_ascent import GradientAscentConfig, NegGradPlusConfig
from vu_baselines.influence import InfluenceConfig
from vu_baselines.l1_sparse import L1SparseConfig
from vu_baselines.l2 import L2AnchorConfig
from vu_baselines.lirf import LirfConfig
from vu_baselines.lwf import LwfConfig
from vu_baselines.mas import MasAnchorConfig
from vu_baselines.random_drop import RandomDropConfig
from vu_baselines.rehearsal import RehearsalConfig
from vu_baselines.relabelled import RelabelledConfig
from vu_baselines.retrain import RetrainConfig
from vu_baselines.salun_soft import SalUnSoft, SalUnSoftConfig
from vu_baselines.scrub import ScrubConfig
from vu_baselines.scrub_s import ScrubSConfig
from vu_baselines.soft_threshold import SoftThresholdConfig
from vu_core.training import Training

SCRUB = {"retained": 0.99, "distillation": 1e-3, "temperature": 2.0, "inner_epochs": 10, "max_epochs": 5, "cap": None}


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (L2AnchorConfig(), {"strength": 0.1, "online": False}),
        (EwcAnchorConfig(), {"strength": 10.0, "online": False, "variant": "paper"}),
        (MasAnchorConfig(), {"strength": 0.005, "online": False, "variant": "paper"}),
        (AnchoredConfig(), {"replay": True, "train_head": False, "relabel": "uniform"}),
        (RelabelledConfig(), {"train_head": False, "relabel": "uniform"}),
        (LwfConfig(), {"distillation": 0.5, "retained": 10.0, "temperature": 2.0}),
        (DerConfig(), {"distillation": 0.01, "variant": "paper"}),
        (DerPlusPlusConfig(), {"distillation": 0.005, "retained": 0.005, "variant": "paper"}),
        (FdrConfig(), {"distillation": 50.0}),
        (ScrubConfig(), {**SCRUB, "train_head": False}),
        (ScrubSConfig(), {**SCRUB, "smoothing": 0.1, "decay": 0.9}),
        (LirfConfig(), {"alpha": 0.1, "temperature": 10.0, "attention": 300.0, "other_logits": 10.0, "retained": 5.0}),
        (L1SparseConfig(), {"epochs_without": 0}),
        (FineTunePruneConfig(), {"rate": 0.95, "every": 2}),
        (GradientAscentConfig(), {"cap": None, "l1": 0.0}),
        (BoundaryShrinkConfig(), {"epsilon": 0.1, "variant": "paper"}),
        (InfluenceConfig(), {"samples": 1000, "damping": 1.0, "variant": "paper"}),
        (RandomDropConfig(), {"largest_share": 0.2}),
        (SoftThresholdConfig(), {"ratio": 0.5}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers(config: Any, numbers: dict[str, Any]) -> None:
    assert {name: getattr(config, name) for name in numbers} == numbers


REST = (0.0, "constant", "retain")
"""No clipping, a learning rate that stays, and epochs over what is kept."""


def told(training: Training) -> tuple[Any, ...]:
    return (
        training.epochs,
        training.batch_size,
        training.lr,
        training.optimizer,
        training.momentum,
        training.weight_decay,
        training.max_grad_norm,
        training.schedule,
        training.epoch_of,
    )


def test_training_of_the_salun_lineage() -> None:
    """SGD with momentum 0.9 and decay 5e-4, batches of 256; ten passes at 0.01, or the training from the start."""
    configs = (FineTuneConfig, L1SparseConfig, FineTunePruneConfig, NegGradPlusConfig, BoundaryShrinkConfig)
    for config in (*(each() for each in configs), SalUnSoftConfig()):
        assert told(config.training) == (10, 256, 0.01, "sgd", 0.9, 5e-4, *REST)
    assert told(RehearsalConfig().training) == (50, 256, 0.01, "sgd", 0.9, 5e-4, *REST)
    assert told(RetrainConfig().training) == (182, 256, 0.1, "sgd", 0.9, 5e-4, 0.0, "cosine", "retain")
    assert SalUnSoft.defaults["regularizer"] == {"soft-threshold": {"ratio": 0.5}}


@pytest.mark.parametrize(("method", "lr"), [("random-label", 0.01), ("salun", 0.013)])
def test_recipes_for_classifiers(method: str, lr: float) -> None:
    """Their own values are those for Stable Diffusion."""
    text = (files("vu_baselines") / f"recipes/torch-module-{method}.toml").read_text(encoding="utf-8")
    recipe = tomllib.loads(text)
    assert told(Training(**recipe["unlearner"]["training"])) == (10, 256, lr, "sgd", 0.9, 5e-4, *REST)
    assert recipe.get("weighting", {"retain_weight": 1.0}) == {"retain_weight": 1.0}  # random-label has it anyway


def test_training_of_the_continual_lineage() -> None:
    for config in (ScrubConfig(), ScrubSConfig()):
        training = config.training
        assert (training.epochs, training.batch_size, training.lr, training.weight_decay) == (100, 48, 1e-4, 5e-4)
        assert (training.schedule, training.epoch_of) == ("constant", "retain")
    assert [config().training.lr for config in (AnchoredConfig, LwfConfig, LirfConfig)] == [1e-4] * 3
