"""The tutorials: every command in a ``console`` block is run, in order; every recipe is understood as it is shipped.

The pages' commands are run verbatim, in one folder, on the embedded model. So that this takes seconds, the test appends
settings to them: two steps of training on a few images, no metric that draws images, and images in one sampling step
where a command draws some. What is tested is that each page works as it is written. Blocks marked ``sh`` need the
published model and are only parsed (`test_commands`).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from vu_cli import main
from vu_core.config import RunConfig
from vu_core.plugins import discover
from vu_core.stages.read import read
from vu_core.stages.structure import structure

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"
PAGES = ("forget-a-cat", "forget-a-church", "replace-a-person")
RECIPES = sorted((TUTORIAL / "recipes").glob("*.toml"))
CONSOLE = re.compile(r"```console\n(.*?)```", re.S)

PLUGINS = discover()
FEW = {"data.max_forget": 4, "data.max_retain": 4}
QUICK = {"measure.metrics": '["edit-size"]', "measure.seeds": 1, "measure.steps": 1, "measure.samples": 0}
JUDGED = {"measure.metrics": '["unlearncanvas"]'}
SHORT = {"unlearner.training.steps": 2}


def commands(page: str) -> list[list[str]]:
    """Return the words behind ``vu`` of every command of a page, in order."""
    text = (TUTORIAL / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for block in CONSOLE.findall(text) for line in block.splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("vu ")]
    return [words[1:] for words in found]


def appended(words: list[str], searched: set[str]) -> list[str]:
    """Return the settings that make a command quick; a run that is searched needs a judge, a file has settings."""
    if words[0] != "unlearn" or "-c" in words:
        return []
    method = PLUGINS.registry.get("unlearner", words[words.index("--method") + 1]).load()
    settings = {**FEW, **QUICK, **(SHORT if hasattr(method.Config(), "training") else {})}
    if searched.intersection(words):
        settings |= JUDGED
    return [f"--set={key}={value}" for key, value in settings.items()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_works(
    page: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VU_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    searched = {words[1] for words in commands(page) if words[0] == "tune-uce"}
    for words in commands(page):
        status = main.run([*words, *appended(words, searched)])
        told = capsys.readouterr()
        assert status == 0, f"vu {shlex.join(words)}\n{told.out}\n{told.err}"
        if "--out" in words:
            out = tmp_path / words[words.index("--out") + 1]
            assert out.exists(), f"vu {shlex.join(words)} wrote no {out.name}"
            if words[0] == "unlearn":
                assert {"edit.safetensors", "scores.json", "report.html"} <= {path.name for path in out.iterdir()}
    check = {"forget-a-church": conflicts_are_reported}.get(page)
    if check is not None:
        check(tmp_path / "runs")


def conflicts_are_reported(runs: Path) -> None:
    """A bargain halves the angle, opposed gradients are projected; the fixed sum tells on request."""

    def steps(run: str) -> list[dict[str, Any]]:
        lines = (runs / run / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return [event["values"] for event in map(json.loads, lines) if event["type"] == "gradient_conflict"]

    assert steps("church")
    for step in steps("church"):
        c, r, f = (step[name] for name in ("cos_rf", "norm_r", "norm_f"))
        assert step["flags"] in ([], ["opposed"])
        halves = (((1 + c) / 2) ** 0.5,) * 2
        projected = [n * ((1 - c**2) / (r**2 + f**2 - 2 * c * r * f)) ** 0.5 for n in (r, f)]
        cosines = projected if step["flags"] else halves
        assert (step["cos_g_r"], step["cos_g_f"]) == pytest.approx(cosines, abs=1e-4)
    assert any(abs(step["cos_g_r"] - step["cos_g_f"]) > 1e-3 for step in steps("church-sum"))
    assert (runs / "church" / "gradient-conflict.json").exists()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_a_recipe_for_the_published_model(page: str) -> None:
    text = (TUTORIAL / f"{page}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(recipes/([\w.-]+)\)", text))
    assert named == {path.name for path in RECIPES if path.name.startswith(page)}
    assert named
    assert len(commands(page)) >= 3


def understood(name: str) -> RunConfig:
    """Return a recipe as a run would understand it: no weights, no images, no network."""
    return structure(read(TUTORIAL / "recipes" / f"{name}.toml"), PLUGINS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_for_the_published_model(path: Path) -> None:
    config = understood(path.stem)
    assert (config.model.name, config.model.ref) == ("diffusers", "CompVis/stable-diffusion-v1-4")
    assert f"vu unlearn -c {path.name} --dry-run" in path.read_text(encoding="utf-8")


def test_the_recipe_for_a_cat_has_the_published_scales() -> None:
    config = understood("forget-a-cat-sd14")
    uce = config.unlearner.config
    assert (uce.erase_scale, uce.preserve_scale, uce.regularization, uce.tokens) == (1.0, 1.0, 0.5, "last")
    assert (config.data.name, config.forget) == ("prompts", ("cat",))
    data = config.data.entry.load()(config.data.ref, config.data.config)
    manifest = data.manifest(data.parse(config.forget, config.overwrite))
    assert manifest.counts["train/forget"] == 7


def test_the_recipe_for_a_church_has_the_published_settings() -> None:
    config = understood("forget-a-church-sd14")
    assert (config.unlearner.name, config.weighting.name, config.parameters.name) == ("munba", "munba", "full")
    munba, training = config.unlearner.config, config.unlearner.config.training
    assert (munba.subset, munba.forget_scale, munba.l1) == ("x", 1.0, 1e-4)
    assert (training.optimizer, training.lr, training.max_grad_norm) == ("adamw", 1e-5, 1.0)
    assert (training.epochs, training.batch_size, training.exhausted) == (5, 8, "retain_only")


@pytest.mark.parametrize(
    ("method", "targets", "share"),
    [
        ("fade", ("to_k", "to_q", "to_v", "to_out.0"), None),
        ("fade-sparse-module", ("to_k", "to_q", "to_v", "to_out.0"), 0.5),
        ("fade-sparse-weight", ("to_k", "to_q", "to_v"), 0.75),
    ],
)
def test_the_recipes_for_a_person_have_the_published_settings(
    method: str, targets: tuple[str, ...], share: float | None
) -> None:
    config = understood(f"replace-a-person-{method}-sd14")
    training, lora = config.unlearner.config.training, config.parameters.config
    assert config.unlearner.name == method
    assert (lora.rank, lora.alpha, lora.targets) == (16, 4.0, targets)
    assert (training.epochs, training.batch_size, training.lr, training.schedule) == (400, 2, 6e-4, "constant")
    assert (training.max_grad_norm, training.warmup_steps, config.run.seed) == (5.0, 0, 42)
    assert (config.weighting.config.forget_weight, config.weighting.config.retain_weight) == (0.3, 1.0)
    assert getattr(config.unlearner.config, "sparsity_inclusiveness", None) == share
