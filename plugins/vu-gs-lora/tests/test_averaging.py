"""The average over epochs."""

from __future__ import annotations

import pytest
import torch
from toy_transformer import ToyTransformer, toy_tables

from vu_core import ConfigError
from vu_core.adapters import Lora, LoraConfig, edit_digest
from vu_core.testing import toy_run
from vu_core.training import Training
from vu_gs_lora.averaging import AverageConfig, EpochAverage
from vu_gs_lora.gs_lora import GsLora

TRAINING = Training(epochs=4, batch_size=2, lr=1e-2, epoch_of="retain")  # 8 retain images: 4 steps each


@pytest.fixture
def averaged(tmp_path):
    """Average an adapter that is i after step i: what each tensor holds in the end."""

    def make(steps=16, **settings):
        model = ToyTransformer()
        run = toy_run(tmp_path, training=TRAINING, parameters=Lora(LoraConfig(rank=1, targets=())))
        theta = run.parameterise(model, targets=model.blocks()[0].ffn)
        average = EpochAverage(AverageConfig(**settings))
        average.prepare(model, theta, toy_tables(run), run)
        for step in range(1, steps + 1):
            with torch.no_grad():
                for tensor in theta.parameters():
                    tensor.fill_(step)
            average.after_step(torch.optim.SGD(theta.parameters(), lr=0.1))
        average.put()
        values = {value for tensor in theta.parameters() for value in tensor.flatten().tolist()}
        run.release()
        assert len(values) == 1
        return values.pop()

    return make


def test_average_of_epochs(averaged):
    assert averaged(start=1, decay=0.5) == 0.5 * (0.5 * 8 + 0.5 * 12) + 0.5 * 16


def test_decay_of_zero_is_the_last_epoch(averaged):
    assert averaged(start=0, decay=0.0) == 16


def test_decay_of_one_is_the_first_epoch(averaged):
    assert averaged(start=0, decay=1.0) == 4
    assert averaged(start=2, decay=1.0) == 12


def test_unfinished_epoch_does_not_count(averaged):
    assert averaged(steps=15, start=0, decay=0.0) == 12


def test_training_that_ends_too_early_is_told(averaged):
    averaged(start=3)
    with pytest.raises(ConfigError) as caught:
        averaged(start=4)
    assert caught.value.code == "VU-C143"


def test_average_is_the_edit(unlearn):
    settings = {"training": TRAINING, "ema_start": 0}
    last, average, first, again = (
        unlearn(GsLora, **settings, ema=ema, ema_decay=decay)[0]
        for ema, decay in ((False, 0.9), (True, 0.9), (True, 1.0), (True, 0.0))
    )
    assert edit_digest(last) == edit_digest(again)
    assert len({edit_digest(edit) for edit in (last, average, first)}) == 3
    assert any(part.B.any() for part in average.parts.values())  # it is not the untouched model


def test_average_is_off_unless_asked(unlearn):
    one, two = (unlearn(GsLora, training=TRAINING, ema_start=start)[0] for start in (0, 99))
    assert edit_digest(one) == edit_digest(two)
