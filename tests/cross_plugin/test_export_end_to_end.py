"""One run of a tiny pipeline, exported in every format by `vu export`; the lines of each card load what was trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vu_core.adapters import apply_edit, load_edit
from vu_core.config import Override
from vu_core.pipeline import execute
from vu_core.plugins import Plugins, discover
from vu_core.stages.read import read
from vu_diffusers.model import Config, Diffusers
from vu_diffusers.tiny import tiny_pipeline

PLAIN = ("diffusers", "kohya", "merged", "peft")
"""Formats that need nothing of vu to be read; in the order in which a process without vu reads them."""
FORMATS = (*PLAIN, "delta", "native")
LIBRARIES = {"peft": "peft", "native": "vu", "delta": "vu"}


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return discover()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a licence, images of a cat and a dog, and place for runs."""
    root = tmp_path_factory.mktemp("exports")
    tiny_pipeline(root / "models" / "tiny")
    (root / "models" / "tiny" / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "images" / name).mkdir(parents=True)
        for number in range(5):
            image = Image.fromarray(generator.integers(0, 256, (36, 40, 3), dtype=np.uint8))
            image.save(root / "images" / name / f"{number}.png")
    return root


def unlearned(plugins: Plugins, room: Path, name: str, **changes: Any) -> Path:
    values = {
        "run.seed": 3,
        "run.threads": 1,
        "run.out": str(room / name),
        "model.name": str(room / "models" / "tiny"),
        "data.name": str(room / "images"),
        "data.forget": ("class:cat",),
        "data.overwrite": ("class:dog",),
        "unlearner.method": "fade",
        "unlearner.training.steps": 3,
        "unlearner.training.lr": 0.1,
        "unlearner.parameters.rank": 4,
        "unlearner.parameters.alpha": 8.0,  # not the rank, so that a lost scale shows
        "measure.samples": 0,
        "measure.seeds": 1,
        "measure.steps": 1,
        **changes,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VU_CACHE", str(room / "cache"))
        return execute(read(None, [Override(*pair, "test") for pair in values.items()]), plugins=plugins).folder


@pytest.fixture(scope="module")
def run(plugins: Plugins, room: Path) -> Path:
    return unlearned(plugins, room, "run")


@pytest.fixture(scope="module")
def sparse(plugins: Plugins, room: Path) -> Path:
    return unlearned(plugins, room, "sparse", **{"unlearner.method": "fade-sparse-weight"})


def vu(plugins: Plugins, *words: object) -> int:
    from vu_cli import main

    return main.run([str(word) for word in words], plugins=plugins)


@pytest.fixture(scope="module")
def exports(plugins: Plugins, room: Path, run: Path) -> dict[str, Path]:
    """The run in every format."""
    folders = {name: room / "exported" / name for name in FORMATS}
    for name, folder in folders.items():
        assert vu(plugins, "export", run, "--to", name, "--out", folder, "--quiet") == 0, name
    return folders


def lines_of(card: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)\n```", card, flags=re.S)
    return str(found)


@pytest.fixture(scope="module")
def computed(exports: dict[str, Path], room: Path) -> dict[str, torch.Tensor]:
    """What a process computes that has run the lines of every card, the base model filled in."""
    from safetensors.torch import load_file, save_file

    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"noisy": noisy, "timesteps": torch.tensor([100, 700])}, str(room / "inputs.safetensors"))
    cards = [
        {
            "name": name,
            "folder": str(folder),
            "lines": lines_of((folder / "README.md").read_text()).replace("path/to/tiny", str(room / "models/tiny")),
        }
        for name, folder in exports.items()
    ]
    asked = {"inputs": str(room / "inputs.safetensors"), "result": str(room / "result.safetensors"), "cards": cards}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_cards.py"))],
        input=json.dumps(asked),
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return dict(load_file(asked["result"]))


@pytest.fixture(scope="module")
def trained(room: Path, run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of the base and under the edit."""
    from safetensors.torch import load_file

    model = Diffusers(str(room / "models" / "tiny"), Config()).load()
    inputs = load_file(str(room / "inputs.safetensors"))

    def outputs() -> torch.Tensor:
        with torch.no_grad():
            return model.predict(inputs["noisy"], inputs["timesteps"], model.embed(["a", "An image of cat."]))

    base = outputs()
    with apply_edit(model.network, load_edit(run / "edit.safetensors")):
        return base, outputs()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "native"])
def test_the_lines_of_the_card_load_the_trained_function(
    name: str, computed: dict[str, torch.Tensor], trained: tuple[torch.Tensor, torch.Tensor]
) -> None:
    base, wanted = trained
    scale = 1 + float(wanted.abs().max())
    assert float((wanted - base).abs().max()) / scale > 2e-4  # there is something to get wrong
    assert float((computed[name] - wanted).abs().max()) / scale <= 1e-4
    assert (f"{name}.plain" in computed) == (name in PLAIN)


def test_the_lines_of_the_native_card_make_an_image_and_leave_the_model_alone(
    computed: dict[str, torch.Tensor], trained: tuple[torch.Tensor, torch.Tensor]
) -> None:
    assert computed["native.image"].shape == (32 * 32 * 3,)
    assert torch.allclose(computed["native"], trained[0], atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_the_card_can_be_read_by_the_hub_and_tells_no_places(name: str, exports: dict[str, Path], room: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(exports[name] / "README.md")
    assert card.data.license == "creativeml-openrail-m"
    assert card.data.library_name == LIBRARIES.get(name, "diffusers")
    assert {"machine-unlearning", "fade"} <= set(card.data.tags)
    assert "# tiny without class:cat" in card.content
    assert f"in the format `{name}`" in card.content
    assert "(creativeml-openrail-m) applies to this edit of it too." in card.content
    assert "| `unlearner.parameters.alpha` | `8.0` |" in card.content
    for place in (room, Path.home(), Path.cwd()):
        assert str(place) not in card.content


def test_every_file_is_listed_with_its_size(
    exports: dict[str, Path], plugins: Plugins, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vu(plugins, "export", run, "--to", "merged", "--out", tmp_path / "merged", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    there = {p.relative_to(tmp_path / "merged").as_posix(): p for p in (tmp_path / "merged").rglob("*") if p.is_file()}
    assert {name: path.stat().st_size for name, path in there.items()} == document["files"]
    assert "unet/diffusion_pytorch_model.safetensors" in document["files"]
    assert {"denoiser", "image"} <= {check["what"] for check in document["checks"]}
    assert all(check["error"] <= check["limit"] for check in document["checks"])


@pytest.mark.parametrize("name", ["diffusers", "kohya", "peft"])
def test_a_mask_per_weight_is_refused_as_lora_and_the_refit_offered(
    name: str, plugins: Plugins, sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = vu(plugins, "export", sparse, "--to", name, "--out", tmp_path / "out", "--json")
    said = capsys.readouterr()
    assert status == 9
    error = json.loads(said.out)["error"]
    assert error["code"] == "VU-E070"
    assert "--refit-rank" in error["remedy"]
    assert list(tmp_path.iterdir()) == []

    assert vu(plugins, "export", sparse, "--to", name, "--out", tmp_path / "out", "--refit-rank", 4, "--json") == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert facts["refit_rank"] == 4
    assert 0 < facts["refit_error"] < 1
    assert 0 < facts["refit_denoiser_error"] < 1
    assert "truncated SVD" in (tmp_path / "out/README.md").read_text()


def test_a_sparse_edit_can_be_densified_and_scaled(
    plugins: Plugins, sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--to", "delta", "--out", tmp_path / "out", "--scale", 0.5, "--densify", 0.2, "--json")
    assert vu(plugins, "export", sparse, *words) == 0
    assert json.loads(capsys.readouterr().out)["facts"] == {"scale": 0.5, "densify": 0.2}
