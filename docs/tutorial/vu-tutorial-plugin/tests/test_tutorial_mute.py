"""What only this method promises."""

from pathlib import Path

import torch
from vu_tutorial.mute import Mute, MuteConfig

from vu_core.adapters import Lora, LoraConfig, apply_edit
from vu_core.testing import ToyPainter, toy_forget_retain, toy_run
from vu_core.training import Training
from vu_core.weightings import Simple, SimpleConfig


def test_a_forgotten_caption_is_heard_as_silence(tmp_path: Path) -> None:
    training = Training(steps=60, batch_size=4, lr=2e-2)
    run = toy_run(
        tmp_path,
        training=training,
        parameters=Lora(LoraConfig(rank=4)),
        weighting=Simple(SimpleConfig()),
    )
    model = ToyPainter()
    z, t = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((8,), 50)
    forgotten, silence = model.embed(["a red dot"] * 8), model.embed([""] * 8)
    wanted = model.predict(z, t, silence)
    before = (model.predict(z, t, forgotten) - wanted).square().mean()

    edit = Mute(MuteConfig(training=training)).unlearn(model, toy_forget_retain(run), run)
    run.release()

    with apply_edit(model.network, edit):
        after = (model.predict(z, t, forgotten) - wanted).square().mean()
    assert after < 0.7 * before
