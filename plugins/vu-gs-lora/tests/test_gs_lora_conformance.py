"""What every unlearner and every regularizer promises."""

from __future__ import annotations

import attrs
import torch
from toy_transformer import ToyTransformer, toy_tables

from vu_core.testing import RegularizerTests, UnlearnerTests
from vu_core.training import From, Training
from vu_gs_lora.group_lasso import GroupLasso
from vu_gs_lora.gs_lora import GsLora
from vu_gs_lora.gs_lora_plus_plus import GsLoraPlusPlus

QUICK = Training(epochs=2, batch_size=2, lr=1e-2, epoch_of="retain")
AXES = ("parameters", "weighting", "regularizer")
BOUND = 1.8  # between the cross entropies of the forget images
OTHER_VALUES = {"bound": 5.0}
ELSEWHERE = ("parity_reinit", "ema_start", "ema_decay", "prune")  # after the first task, with ema, with zero groups


class TestGsLora(UnlearnerTests):
    plugin = GsLora
    settings = {"training": QUICK, "bound": BOUND}
    axes = AXES
    other_values = OTHER_VALUES
    tested_elsewhere = (*ELSEWHERE, "ema")

    def make_model(self):
        return ToyTransformer()

    def make_data(self, run):
        return toy_tables(run)


class TestGsLoraAveraged(TestGsLora):
    settings = {"training": QUICK, "bound": BOUND, "ema": True, "ema_start": 0}
    tested_elsewhere = ("parity_reinit", "prune")


class TestGsLoraPlusPlus(UnlearnerTests):
    plugin = GsLoraPlusPlus
    settings = {"training": QUICK, "bound": BOUND, "prototype_retain_weight": 0.5}
    axes = AXES
    other_values = {**OTHER_VALUES, "prototype_bound": 0.001}
    tested_elsewhere = (*ELSEWHERE, "ema", "prototype_source")

    def make_model(self):
        return ToyTransformer()

    def make_data(self, run):
        return toy_tables(run)


class TestGroupLasso(RegularizerTests):
    plugin = GroupLasso
    tested_elsewhere = ("eps",)  # not with the proximal update
    other_values = {"groups": "matrix"}  # without blocks a block is a pair

    def attach(self, folder):
        model, theta, run = super().attach(folder)
        return model, theta, attrs.evolve(run, training=QUICK)


class TestGroupLassoByPenalty(TestGroupLasso):
    settings = {"structure": "subgradient", "weight": 0.1}
    tested_elsewhere = ()


class TestGroupLassoFromAnEpoch(TestGroupLasso):
    settings = {"weight": From(1, 0.5)}

    def prepared(self, folder, config=None):
        regularizer, theta, model = super().prepared(folder, config)
        for _ in range(10):  # into the second epoch
            regularizer.after_step(torch.optim.SGD(theta.parameters(), lr=0.1))
        return regularizer, theta, model
