"""The values that are used when nothing is said: those published for four tasks with all training images."""

from __future__ import annotations

from vu_core.plugins import discover
from vu_core.training import From, value_at
from vu_gs_lora.continual import ContinualConfig
from vu_gs_lora.group_lasso import GroupLassoConfig
from vu_gs_lora.gs_lora import DEFAULTS, GsLora, GsLoraConfig
from vu_gs_lora.gs_lora_plus_plus import GsLoraPlusPlus, GsLoraPlusPlusConfig
from vu_gs_lora.zero_groups import TAU_ABSOLUTE, TAU_FUNCTIONAL, TAU_RELATIVE


def test_the_objective() -> None:
    for config in (GsLoraConfig(), GsLoraPlusPlusConfig()):
        assert (config.forget_weight, config.bound) == (0.2, 10.0)  # the bound is for softmax heads
        assert (config.per_sample, config.position, config.parity_reinit, config.prune) == (False, "ffn", False, "none")
        assert (config.ema, config.ema_start, config.ema_decay) == (False, 30, 0.9)
    plus = GsLoraPlusPlusConfig()
    assert (plus.prototype_forget_weight, plus.prototype_retain_weight, plus.prototype_bound) == (0.01, 0.0, 18.0)
    assert (plus.prototype_distance, plus.prototype_source) == ("kl", "pretrained")


def test_the_lasso_and_what_counts_as_zero() -> None:
    lasso = GroupLassoConfig()
    assert (lasso.weight, lasso.structure, lasso.groups) == (1e-4, "proximal", "block")
    assert (lasso.size_weight, lasso.eps) == ("none", 0.0)
    assert (TAU_FUNCTIONAL, TAU_ABSOLUTE, TAU_RELATIVE) == (1e-4, 1e-8, 1e-2)


def test_both_methods_bring_adapter_sum_and_lasso() -> None:
    assert GsLora.defaults is GsLoraPlusPlus.defaults is DEFAULTS
    lora = {"rank": 8, "alpha": 1.0, "init": "kaiming", "dropout": 0.0}
    assert DEFAULTS["parameters"] == {"name": "lora", **lora, "targets": ()}
    assert DEFAULTS["weighting"] == {"name": "simple", "forget_weight": 1.0, "retain_weight": 1.0}
    assert DEFAULTS["regularizer"] == {"group-lasso": {"weight": 1e-4}}


def test_the_sequence() -> None:
    config = ContinualConfig()
    assert (config.tasks, config.classes_per_task, config.order_seed) == (4, 20, 1337)
    assert (config.retain, config.missing) == (None, 0)
    assert discover().registry.default("sequence").name == "continual"


def test_published_lists_and_steps_can_be_written() -> None:
    """Few-shot: a number per task; one task: a lasso from epoch 20; beta that falls from epoch 50."""
    few = GsLoraPlusPlusConfig(
        forget_weight=(0.3, 0.4, 0.28, 0.2), prototype_forget_weight=(0.015, 0.06, 0.025, 0.012), prototype_bound=50.0
    )
    assert [value_at(few.forget_weight, task=task) for task in range(4)] == [0.3, 0.4, 0.28, 0.2]
    assert value_at(few.prototype_forget_weight, task=3) == 0.012
    late = GroupLassoConfig(weight=From(20, 0.01))
    assert [value_at(late.weight, epoch=epoch) for epoch in (19, 20)] == [0.0, 0.01]
    falling = GsLoraConfig(forget_weight=From(50, 1e-4, before=0.05))
    assert [value_at(falling.forget_weight, epoch=epoch) for epoch in (49, 50)] == [0.05, 1e-4]
