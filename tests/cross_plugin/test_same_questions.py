"""Before and after the edit the model is asked the same: prompts, seeds, steps and guidance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from vu_core.config import Override
from vu_core.pipeline import execute
from vu_core.plugins import Plugins, discover
from vu_core.stages import measure as stage
from vu_core.stages.read import read
from vu_core.testing import toy_plugin
from vu_core.testing.toy_painter import ToyPainter
from vu_metrics.unlearncanvas import UnlearnCanvas

Question = tuple[str, int, int, float]
SETTINGS = {
    "model.name": "toy",
    "data.name": "toy",
    "data.forget": ("colour:red",),
    "unlearner.method": "toy-distillation",
    "unlearner.training.steps": 2,
    "measure.metrics": ["unlearncanvas"],
    "measure.seeds": 2,
    "measure.samples": 2,
    "run.seed": 1,
}


@pytest.fixture
def plugins() -> Plugins:
    return discover(extra=[("vu-toys", "1.0", toy_plugin)])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[Question]]:
    """What the painter is asked to paint, with its own weights and under the edit."""
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    generate = ToyPainter.generate
    untouched = {name: tensor.clone() for name, tensor in ToyPainter().network.named_parameters()}
    questions: dict[str, list[Question]] = {"before": [], "after": []}

    def ask(self: Any, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float) -> Any:
        equal = all(tensor.equal(untouched[name]) for name, tensor in self.network.named_parameters())
        rows = [(prompt, seed, steps, guidance) for prompt, seed in zip(prompts, seeds, strict=True)]
        questions["before" if equal else "after"] += rows
        return generate(self, prompts, seeds, steps=steps, guidance=guidance)

    monkeypatch.setattr(ToyPainter, "generate", ask)
    return questions


def run(plugins: Plugins) -> None:
    execute(read(None, [Override(key, value, "--set") for key, value in SETTINGS.items()]), plugins=plugins)


def test_before_and_after_use_the_same_prompts_and_seeds(plugins: Plugins, asked: dict[str, list[Question]]) -> None:
    run(plugins)
    assert len(asked["before"]) == 6 * 2 + 2  # every colour and shape with two seeds, and two images of the report
    assert asked["before"] == asked["after"]
    assert {seed for _, seed, _, _ in asked["after"]} == {10_000, 10_001}


@pytest.mark.parametrize("who", ["metric", "images"])
def test_other_seeds_after_the_edit_would_be_noticed(
    who: str, plugins: Plugins, asked: dict[str, list[Question]], monkeypatch: pytest.MonkeyPatch
) -> None:
    observe, images = UnlearnCanvas.observe, stage._images

    def moved(items: Any) -> Any:
        return tuple(attrs.evolve(item, seed=item.seed + 1) for item in items)

    def other_observe(self: Any, model: Any, evaluation: Any, run: Any) -> Any:
        return observe(
            self, model, attrs.evolve(evaluation, items=moved(evaluation.items)) if run.edit else evaluation, run
        )

    def other_images(bench: Any, evaluation: Any, what: str) -> Any:
        after = what == "images after"
        return images(bench, attrs.evolve(evaluation, samples=moved(evaluation.samples)) if after else evaluation, what)

    if who == "metric":
        monkeypatch.setattr(UnlearnCanvas, "observe", other_observe)
    else:
        monkeypatch.setattr(stage, "_images", other_images)
    run(plugins)
    assert asked["before"] != asked["after"]
