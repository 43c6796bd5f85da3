"""The data plugin `canvas`, its judge, its model and its recipes."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vu_canvas import dataset as canvas_dataset
from vu_canvas import model as canvas_model
from vu_canvas import plugin as entry_point
from vu_canvas.dataset import Canvas, CanvasConfig, CanvasJudge
from vu_canvas.model import CanvasDiffusion, CanvasDiffusionConfig
from vu_canvas.render import OBJECTS, SPLITS, STYLES, render
from vu_core import DataError, ModelError
from vu_core.config import Override
from vu_core.plugins import discover
from vu_core.stages.read import read
from vu_core.stages.structure import structure
from vu_core.testing import DatasetTests, ModelTests, RecipeTests, toy_run
from vu_diffusers.tiny import tiny_pipeline

SMALL: dict[str, Any] = {"forget_per_pair": 1, "retain_per_pair": 1}


class TestCanvas(DatasetTests):
    plugin = Canvas
    settings = SMALL
    forget = ("style:neon",)
    other_forget = ("object:star",)
    unknown = "style:neonn"
    resolution = 64
    other_values = {"max_forget": 7, "max_retain": 5}


class TestCanvasPair(DatasetTests):
    plugin = Canvas
    settings = SMALL
    forget = ("object:star+style:neon",)
    unknown = "neon"
    resolution = 64
    other_values = {"max_retain": 5}
    tested_elsewhere = ("max_forget",)  # a pair has one image here, so one is no fewer


class TestCanvasDiffusion(ModelTests):
    plugin = CanvasDiffusion
    prompts = ("A star image in neon style.", "A moon image in dots style.")


class TestFadeRecipe(RecipeTests):
    target = "vu_canvas:recipes/fade.toml"


class TestFadeSparseModuleRecipe(RecipeTests):
    target = "vu_canvas:recipes/fade-sparse-module.toml"


class TestFadeSparseWeightRecipe(RecipeTests):
    target = "vu_canvas:recipes/fade-sparse-weight.toml"


class TestUceRecipe(RecipeTests):
    target = "vu_canvas:recipes/uce.toml"


class TestNegationRecipe(RecipeTests):
    target = "vu_canvas:recipes/lora-negation.toml"


def canvas(**settings: Any) -> Canvas:
    return Canvas("", CanvasConfig(**settings))


def test_forgetting_a_style_trains_on_all_objects_in_it(tmp_path: Path) -> None:
    data = canvas(forget_per_pair=2, retain_per_pair=1)
    built = data.build(data.parse(["style:neon"], []), resolution=64, run=toy_run(tmp_path))
    assert set(built.forget.labels["style"]) == {"neon"}
    assert sorted(set(built.forget.labels["object"])) == sorted(OBJECTS)
    assert (len(built.forget), len(built.retain)) == (20, 90)
    assert built.forget.captions[3] == "A star image in neon style."
    assert built.forget.overwrites is not None
    assert built.forget.overwrites[3] == "A star image in flat style."
    assert "neon" not in built.retain.labels["style"]
    assert built.forget.load is not None
    pixels = built.forget.load(13, torch.Generator())  # second round: index 1 of the star
    drawing = render("star", "neon", 1)
    assert np.array_equal(((pixels.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8), drawing)


def test_limits_spread_over_the_pairs(tmp_path: Path) -> None:
    data = canvas(forget_per_pair=1, retain_per_pair=1, max_forget=5, max_retain=9)
    built = data.build(data.parse(["style:neon"], []), resolution=64, run=toy_run(tmp_path))
    assert (len(built.forget), len(built.retain)) == (5, 9)
    assert len(set(built.forget.labels["object"])) == 5
    assert len(set(built.retain.labels["object"])) == 9
    counts = data.manifest(data.parse(["style:neon"], [])).counts
    assert (counts["train/forget"], counts["train/retain"]) == (5, 9)


def test_splits_use_their_own_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out drawings are asked for by nobody but `evaluation`."""
    seen: list[int] = []

    def watched(thing: str, style: str, index: int, seed: int = 0) -> Any:
        seen.append(index)
        return render(thing, style, index, seed)

    monkeypatch.setattr(canvas_dataset, "render", watched)
    data = canvas()
    selection = data.parse(["object:star"], [])
    run = toy_run(tmp_path)
    built = data.build(selection, resolution=64, run=run)
    for table in (built.forget, built.retain, built.validation_forget, built.validation_retain):
        assert table.load is not None
        for row in range(0, len(table), 7):
            table.load(row, torch.Generator())
    assert max(seen) < SPLITS["held-out"].start
    assert any(index in SPLITS["validation"] for index in seen)
    seen.clear()
    found = data.evaluation(selection, split="held-out", seeds=[10_000], samples=0, resolution=64, run=run)
    assert found.examples is not None
    for table in found.examples:
        assert table.load is not None
        table.load(0, torch.Generator())
    assert seen
    assert all(index in SPLITS["held-out"] for index in seen)


def test_evaluation_asks_for_every_pair_with_every_seed(tmp_path: Path) -> None:
    data = canvas()
    selection = data.parse(["style:neon"], [])
    found = data.evaluation(
        selection, split="held-out", seeds=[10_000, 10_001], samples=4, resolution=64, run=toy_run(tmp_path)
    )
    assert len(found.items) == 200
    assert sum(item.forget for item in found.items) == 20
    assert {item.seed for item in found.items} == {10_000, 10_001}
    assert len({(item.prompt, item.seed) for item in found.items}) == 200
    assert [item.forget for item in found.samples] == [True, True, False, False]
    assert len({item.prompt for item in found.samples}) == 4
    star, run = data.parse(["object:star"], []), toy_run(tmp_path)
    other = data.evaluation(star, split="held-out", seeds=[10_000, 10_001], samples=0, resolution=64, run=run)
    assert [(i.prompt, i.seed) for i in other.items] == [(i.prompt, i.seed) for i in found.items]


def test_training_data_are_never_measured_on(tmp_path: Path) -> None:
    data = canvas()
    with pytest.raises(DataError, match="cannot be measured"):
        data.evaluation(data.parse([], []), split="train", seeds=[0], samples=0, resolution=64, run=toy_run(tmp_path))


def test_other_resolutions_are_resized(tmp_path: Path) -> None:
    data = canvas(**SMALL)
    built = data.build(data.parse(["style:neon"], []), resolution=96, run=toy_run(tmp_path))
    assert built.forget.load is not None
    assert built.forget.load(0, torch.Generator()).shape == (3, 96, 96)


def test_judge_knows_the_drawings_in_any_size() -> None:
    pairs = [(OBJECTS[i], STYLES[(3 * i) % 10]) for i in range(10)]
    images = np.stack([render(*pair, SPLITS["held-out"].start) for pair in pairs])
    judge = CanvasJudge()
    named = judge.classify(images)
    assert [*zip(named["object"], named["style"], strict=True)] == pairs
    doubled = judge.classify(images.repeat(2, axis=1).repeat(2, axis=2))
    assert sum(a == b for a, b in zip(doubled["object"], named["object"], strict=True)) >= 9


def test_what_ships_takes_no_place() -> None:
    with pytest.raises(DataError, match="drawn, not read"):
        Canvas("images", CanvasConfig())
    with pytest.raises(ModelError, match="ships with vu-canvas"):
        CanvasDiffusion("folder", CanvasDiffusionConfig())


def test_everything_is_registered_once_and_by_default() -> None:
    found: dict[str, dict[str, Any]] = {}

    def register(name: str, target: str, **rest: Any) -> None:
        assert name not in found
        found[name] = {"target": target, **rest}

    for hook in ("models", "datasets", "recipes"):
        getattr(entry_point, f"vu_register_{hook}")(register)
    assert found["canvas"]["default"] is True
    assert found["canvas-diffusion"]["default"] is True


def test_model_tells_its_own_name_and_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_pipeline(tmp_path / "weights" / "diffusion", prediction="v_prediction")
    monkeypatch.setattr(canvas_model, "files", lambda package: tmp_path)
    plugin = CanvasDiffusion("", CanvasDiffusionConfig(steps=7, guidance=1.5))
    facts = plugin.inspect()
    assert (facts.name, facts.ref, facts.licence) == ("canvas-diffusion", "", "apache-2.0")
    assert facts.generation == {"steps": 7, "guidance": 1.5}
    assert str(tmp_path) not in str(facts)
    assert plugin.load(device="cpu", precision="fp32").facts == facts


def test_a_package_without_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas_model, "files", lambda package: tmp_path)
    monkeypatch.setattr(canvas_dataset, "files", lambda package: tmp_path)
    with pytest.raises(ModelError, match="came without its model"):
        CanvasDiffusion("", CanvasDiffusionConfig()).inspect()
    with pytest.raises(DataError, match="has no weights"):
        CanvasJudge()


FILES = sorted(path.name.removesuffix(".toml") for path in (files("vu_canvas") / "recipes").iterdir())
RECIPES = [
    (stem, "canvas-vit" if stem.startswith("vit-") else "canvas-diffusion", stem.removeprefix("vit-")) for stem in FILES
]
"""Name of the file, model and method."""


def test_every_recipe_is_registered() -> None:
    seen: dict[str, str] = {}
    entry_point.vu_register_recipes(lambda name, target, **more: seen.update({name: target}))
    assert seen == {f"{model}-{method}": f"vu_canvas:recipes/{stem}.toml" for stem, model, method in RECIPES}


@pytest.mark.parametrize(("stem", "model", "method"), RECIPES, ids=FILES)
def test_recipes_are_understood_and_used(stem: str, model: str, method: str) -> None:
    """Every key of a recipe is a setting of its method, and a run that says no more uses it."""
    recipe = tomllib.loads((files("vu_canvas") / "recipes" / f"{stem}.toml").read_text(encoding="utf-8"))
    asked = {"unlearner.method": method, "model.name": model, "data.name": "canvas"}
    config = structure(read(None, [Override(key, value, "a flag") for key, value in asked.items()]), discover())
    assert (recipe["recipe"]["model"], recipe["recipe"]["method"]) == (model, method)
    own = {key: value for key, value in recipe["unlearner"].items() if not isinstance(value, dict)}
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    assert {key: getattr(config.unlearner.config, key) for key in own} == own
    for key, value in recipe["unlearner"].get("training", {}).items():
        assert getattr(config.unlearner.config.training, key) == value
        assert f"{model}-{method}" in config.origins[f"unlearner.training.{key}"]
    carried = {choice.name: choice.config for choice in config.regularizers}
    for name, table in recipe.get("regularizer", {}).items():
        assert {key: getattr(carried[name], key) for key in table} == table
    for kind, table in (
        ("parameters", recipe["unlearner"].get("parameters", {})),
        ("weighting", recipe.get("weighting", {})),
    ):
        chosen = getattr(config, kind)
        for key, value in table.items():
            found = chosen.name if key == "name" else getattr(chosen.config, key)
            assert found == (tuple(value) if isinstance(value, list) else value)
