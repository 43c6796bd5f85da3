"""A classifier of the user's own forgets a class: trained here, unlearned from the command line, measured, repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from vu_core import Classifier, Plan, RunRecord
from vu_core.adapters import edit_digest, load_edit
from vu_core.config import Override, RawConfig
from vu_core.pipeline import dry_run, execute
from vu_core.plugins import Plugins, discover
from vu_core.stages.read import read

CLASSES = ("bar", "cross", "disc", "ring")
SIZE = 16
NETWORK = """
from torch import nn


def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveMaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 4),
    )
"""
SETTINGS = {
    "model.weights": "weights.safetensors",
    "model.classes": list(CLASSES),
    "model.size": SIZE,
    "unlearner.training.steps": 40,
    "unlearner.training.batch_size": 8,
    "unlearner.training.lr": 3e-3,
    "run.threads": 1,
}

Raw = Callable[..., RawConfig]


def drawing(kind: str, number: int) -> Image.Image:
    """A shape in a light colour on a dark ground, somewhere near the middle."""
    draws = np.random.default_rng([CLASSES.index(kind), number])
    x, y = (int(8 + shift) for shift in draws.integers(-2, 3, 2))
    ground, colour = (tuple(int(level) for level in draws.integers(*ends, 3)) for ends in ((0, 60), (150, 256)))
    image = Image.new("RGB", (SIZE, SIZE), ground)
    pen = ImageDraw.Draw(image)
    box = (x - 5, y - 5, x + 5, y + 5)
    if kind == "bar":
        pen.rectangle((x - 5, y - 1, x + 5, y + 1), fill=colour)
    elif kind == "cross":
        pen.line((x - 5, y - 5, x + 5, y + 5), fill=colour, width=2)
        pen.line((x - 5, y + 5, x + 5, y - 5), fill=colour, width=2)
    elif kind == "disc":
        pen.ellipse(box, fill=colour)
    else:
        pen.ellipse(box, outline=colour, width=2)
    return image


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with forty images per class, and a network that was trained on others of the kind."""
    folder = tmp_path_factory.mktemp("classifier run")
    for kind in CLASSES:
        (folder / "images" / kind).mkdir(parents=True)
        for number in range(40):
            drawing(kind, number).save(folder / "images" / kind / f"{number:02}.png")
    (folder / "my_net.py").write_text(NETWORK)
    save_file(trained().state_dict(), folder / "weights.safetensors")
    return folder


def trained() -> nn.Module:
    namespace: dict[str, Callable[[], nn.Module]] = {}
    exec(NETWORK, namespace)
    rows = [(kind, number) for number in range(100, 130) for kind in CLASSES]
    pixels = [np.asarray(drawing(*row), dtype=np.float32) / 127.5 - 1 for row in rows]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    y = torch.tensor([CLASSES.index(kind) for kind, _ in rows])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = namespace["make"]()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(20):
            for chosen in torch.randperm(len(x)).split(30):
                optimizer.zero_grad()
                functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
                optimizer.step()
    return network.eval()


@pytest.fixture
def plugins() -> Plugins:
    return discover()


@pytest.fixture
def raw(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Raw:
    monkeypatch.setenv("VU_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)

    def make(**values: Any) -> RawConfig:
        flags = {
            "model.name": "torch-module=my_net:make",
            "data.name": "images",
            "data.forget": ("class:cross",),
            "data.overwrite": ("a disc",),
            "unlearner.method": "munba",
            "run.seed": 1,
            "run.out": str(tmp_path / "run"),
            **SETTINGS,
            **{key.replace("__", "."): value for key, value in values.items()},
        }
        return read(None, [Override(key, value, "--set") for key, value in flags.items() if value is not None])

    return make


def scores(record: RunRecord) -> dict[str, tuple[float | None, float, int]]:
    assert record.scorecard is not None
    return {score.name: (score.before, score.after, score.n) for score in record.scorecard.scores}


CASES: dict[str, dict[str, Any]] = {
    "munba": {},
    "random label": {"unlearner__method": "random-label"},
    "munba with a LoRA": {"unlearner__parameters__name": "lora", "unlearner__training__lr": 2e-2},
}


@pytest.mark.parametrize("case", CASES)
def test_the_class_is_forgotten_and_the_others_are_kept(case: str, plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(**CASES[case]), plugins=plugins)
    found = scores(record)
    before, after, forgotten = found["ua"]
    unseen = found["test_forget_accuracy"][2]
    assert found["ra"][2] == 3 * forgotten
    assert before is not None
    assert before <= 0.2 < 0.8 <= after
    assert found["forget_accuracy"][1] == pytest.approx(1 - after)
    kept, still, others = found["ta"]
    assert kept is not None
    assert kept >= 0.9
    assert still >= kept - 0.1
    assert others == 3 * unseen
    assert record.scorecard is not None
    assert record.scorecard.status == "ok"
    edit = load_edit(record.folder / "edit.safetensors")
    assert edit.parts
    assert all(name.startswith("classifier.") for name in edit.parts)


def test_untouched_statistics_and_a_card_without_images(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(unlearner__training__steps=2), plugins=plugins)
    edit = load_edit(record.folder / "edit.safetensors")
    assert not any("running" in name for name in edit.parts)
    card, report = ((record.folder / name).read_text() for name in ("README.md", "report.html"))
    assert "vu generate" not in card
    assert "vu lets no method see these images." in card
    assert "Before and after" not in report
    assert record.seconds.keys() == {"load", "unlearn", "measure", "record"}


def test_it_is_repeated_from_another_folder(
    plugins: Plugins, raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = execute(raw(unlearner__training__steps=3), plugins=plugins)
    monkeypatch.chdir(tmp_path)
    again = execute(
        read(first.folder / "run.toml", [Override("run.out", str(tmp_path / "again"), "--out")]), plugins=plugins
    )
    assert again.run_id == first.run_id
    assert again.scorecard == first.scorecard
    digests = [edit_digest(load_edit(record.folder / "edit.safetensors")) for record in (first, again)]
    assert digests[0] == digests[1]


def test_what_one_network_answered_is_not_taken_for_another(
    place: Path, plugins: Plugins, raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, same settings, another forward pass: nothing comes from the cache."""
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(NETWORK)
    told: list[str] = []

    def listen(event: Any) -> None:
        told.append(str(event.values.get("text", "")))

    def run(out: str) -> dict[str, tuple[float | None, float, int]]:
        told.clear()
        asked = raw(
            model__name=f"torch-module={tmp_path}/net.py:make",
            unlearner__training__steps=1,
            run__out=str(tmp_path / out),
        )
        return scores(execute(asked, plugins=plugins, on_event=listen))

    first = run("1")
    assert run("2") == first
    assert any("classification observes on the untouched model comes from the cache" in text for text in told)
    (tmp_path / "net.py").write_text(NETWORK.replace("nn.ReLU()", "nn.Softshrink(4.0)"))
    other = run("3")
    assert not any("comes from the cache" in text for text in told)
    assert other["ta"][0] != first["ta"][0]


def planned(plugins: Plugins, raw: Raw, **values: Any) -> Plan:
    return dry_run(raw(data__overwrite=None, **values), plugins=plugins)


def test_of_the_metrics_of_canvas_those_that_fit_a_classifier_are_taken(plugins: Plugins, raw: Raw) -> None:
    plan = planned(plugins, raw, data__name="canvas", data__forget=("object:star",))
    assert plan.config.measure.metrics == ("classification", "edit-size")
    assert plan.cost.images == 0
    assert not any("left out" in note for note in plan.notes)


def test_of_the_metrics_of_canvas_those_that_fit_a_diffusion_model_are_as_ever(plugins: Plugins) -> None:
    plan = dry_run(read(None, [Override("run.seed", 1, "--seed")]), plugins=plugins)
    assert plan.config.measure.metrics == ("unlearncanvas", "edit-size")
    assert not any("left out" in note for note in plan.notes)


def test_the_command_line(place: Path, tmp_path: Path) -> None:
    """As a user does it: in the folder of the network, with its name as it would be imported."""
    flags = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    command = ["unlearn", "--method", "munba", "--model", "torch-module=my_net:make", "--data", "images"]
    command += [
        "--forget",
        "class:cross",
        "--overwrite",
        "a disc",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "run"),
        *flags,
    ]
    code = "import sys\nfrom vu_cli.main import main\nsys.exit(main())"
    environment = {**os.environ, "VU_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--strict"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "torch-module" in done.stdout
    assert "ua" in done.stdout
    assert isinstance(json.loads((tmp_path / "run" / "scores.json").read_text())["scores"], list)


def test_the_loaded_model_is_a_classifier(plugins: Plugins, raw: Raw) -> None:
    from vu_core.stages.structure import structure

    config = structure(raw(), plugins)
    model = config.model.entry.load()(config.model.ref, config.model.config).load(device="cpu", precision="fp32")
    assert isinstance(model, Classifier)
    assert model.classes == CLASSES
