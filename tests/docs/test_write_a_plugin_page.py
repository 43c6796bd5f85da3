"""The plugins that the tutorial shows without files: they pass the kit and fit the contracts."""

import re
from pathlib import Path
from typing import Any

import attrs
import torch

from vu_core.adapters import Lora, LoraConfig
from vu_core.testing import ToyPainter, UnlearnerTests, WeightingTests, toy_forget_retain, toy_run
from vu_core.training import Training, fit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "write-a-plugin.md"


def shown() -> dict[str, Any]:
    """Run the code blocks of the section, one after the other, and return what they define."""
    section = PAGE.read_text(encoding="utf-8").split("\n## 6. ")[1]
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.S):
        exec(block, names)
    return names


SHOWN = shown()


class TestEveryOther(WeightingTests):
    plugin = SHOWN["EveryOther"]


class TestSparingly(UnlearnerTests):
    plugin = SHOWN["Sparingly"]
    axes = ("parameters", "weighting", "regularizer")
    settings = {"training": Training(steps=4, batch_size=2, lr=1e-2), "base_method": "fade"}
    other_values = {"base_method": "random-label", "base": {"noise_offset": 0.5}}


def test_every_second_step_is_left_out_and_says_so(tmp_path: Path) -> None:
    events: list[Any] = []
    run = toy_run(
        tmp_path,
        training=Training(steps=4, batch_size=2, lr=1e-2),
        parameters=Lora(LoraConfig(rank=2)),
        weighting=SHOWN["EveryOther"](SHOWN["EveryOtherConfig"]()),
        emit_event=events.append,
    )
    model = ToyPainter()
    theta = run.parameterise(model)
    before = [p.detach().clone() for p in theta.parameters()]
    moved: list[bool] = []

    def losses(batches: Any) -> dict[str, torch.Tensor]:
        moved.append(any(not torch.equal(p, q) for p, q in zip(theta.parameters(), before, strict=True)))
        before[:] = [p.detach().clone() for p in theta.parameters()]
        return {side: sum(((p - 1) ** 2).sum() for p in theta.parameters()) for side in batches}

    fit(theta, losses, toy_forget_retain(run, model=model), run)
    run.release()
    flags = [event.values["flags"] for event in events if event.type == "gradient_conflict"]
    assert flags == [[], ["left_out"], [], ["left_out"]]
    assert moved[::2] == [False, True, False, True]  # asked once per side at each step


def test_the_settings_of_the_method_inside_are_declared() -> None:
    field = attrs.fields_dict(SHOWN["SparinglyConfig"])["base"]
    assert field.metadata["settings_of"] == "base_method"
