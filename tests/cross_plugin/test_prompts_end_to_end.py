"""Words without images, through the command line on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vu_cli import main


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))


def test_uce_forgets_words_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "canvas-diffusion", "--data", "prompts", "--forget", "star", "--overwrite", "circle"]
    sets = ["--set", 'data.retain=["heart", "moon"]', "--set", "measure.samples=1", "--set", "measure.steps=1"]
    status = main.run(["unlearn", "--method", "uce", *words, *sets, "--seed", "1", "--out", "words"])
    assert status == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "words" / "scores.json").read_text(encoding="utf-8"))["scores"]
    changed = {score["name"]: score["after"] for score in scores}
    assert changed["changed_parameters"] > 0
    assert (tmp_path / "words" / "images" / "0-after.png").exists()
    environment = json.loads((tmp_path / "words" / "environment.json").read_text(encoding="utf-8"))
    assert environment["data"]["counts"] | {"train/forget": 2, "train/retain": 4} == environment["data"]["counts"]
    assert environment["concepts"] == [{"forget": "star", "overwrite": "circle"}]


def test_a_method_that_looks_at_images_is_refused_by_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "canvas-diffusion", "--data", "prompts", "--forget", "star", "--overwrite", "circle"]
    status = main.run(["unlearn", "--method", "fade", *words, "--dry-run", "--json"])
    assert status == 5
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VU-D098"


def test_a_metric_that_looks_at_images_is_refused_by_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "canvas-diffusion", "--data", "prompts", "--forget", "star", "--overwrite", "circle"]
    metrics = ["--set", 'measure.metrics=["denoising-gap"]']
    status = main.run(["unlearn", "--method", "uce", *words, *metrics, "--dry-run", "--json"])
    assert status == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VU-L002"
