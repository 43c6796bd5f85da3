"""One run from a user's model and images to a file that plain diffusers loads, in every kind of model and data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vu_core import Run
from vu_core.adapters import apply_edit, load_edit
from vu_core.config import Override
from vu_core.pipeline import execute
from vu_core.plugins import Plugins, discover
from vu_core.stages.read import read
from vu_diffusers.lora_file import DiffusersLora
from vu_diffusers.model import Config, Diffusers
from vu_diffusers.tiny import tiny_pipeline

Ask = Callable[[dict[str, str]], dict[str, torch.Tensor]]
IMAGES = 5


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return discover()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        (prediction, variant): tiny_pipeline(
            root / f"{prediction}-{variant}", prediction=prediction, variant=variant or None
        )
        for prediction in ("epsilon", "v_prediction")
        for variant in ("", "fp16")
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[str, ...], tuple[str, ...]]]:
    """The same images as class folders, with metadata.jsonl, and in a metafile: path, forget, overwrite."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    entries: dict[str, list[dict[str, str]]] = {"forget": [], "retain": []}
    for name, side in (("cat", "forget"), ("dog", "retain")):
        for number in range(IMAGES):
            image = Image.fromarray(generator.integers(0, 256, (36, 40, 3), dtype=np.uint8))
            for place in (root / "classes" / name, root / "sides" / side):
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{number}.png")
            entry = {"file_name": f"{number}.png", "text": f"An image of {name}.", "overwrite": "An image of dog."}
            entries[side].append(entry)
    for side, listed in entries.items():
        (root / "sides" / side / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
    moved = {s: [{**e, "file_name": f"sides/{s}/{e['file_name']}"} for e in listed] for s, listed in entries.items()}
    (root / "meta.json").write_text(json.dumps(moved))
    return {
        "class folders": (root / "classes", ("class:cat",), ("class:dog",)),
        "metadata.jsonl": (root / "sides", ("folder:forget",), ()),
        "metafile": (root / "meta.json", (), ()),
    }


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))


def run_it(plugins: Plugins, **values: Any) -> Any:
    raw = read(None, [Override(key.replace("__", "."), value, "test") for key, value in values.items()])
    return execute(raw, plugins=plugins)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("form", ["class folders", "metadata.jsonl", "metafile"])
def test_from_images_to_plain_diffusers(
    prediction: str,
    precision: str,
    variant: str,
    form: str,
    *,
    plugins: Plugins,
    models: dict[tuple[str, str], Path],
    data: dict[str, tuple[Path, tuple[str, ...], tuple[str, ...]]],
    plain_diffusers: Ask,
    tmp_path: Path,
) -> None:
    from safetensors.torch import save_file

    folder = models[prediction, variant]
    images, forget, overwrite = data[form]
    record = run_it(
        plugins,
        run__seed=3,
        run__threads=1,
        run__precision=precision,
        run__out=str(tmp_path / "run"),
        model__name=str(folder),
        **({"model__variant": variant} if variant else {}),
        data__name=str(images),
        data__forget=forget,
        data__overwrite=overwrite,
        unlearner__method="fade",
        unlearner__training__steps=3,
        unlearner__training__lr=0.1,
        unlearner__parameters__alpha=8.0,  # not the rank, so that a lost scale shows
        measure__samples=1,
        measure__seeds=1,
        measure__steps=1,
    )
    assert record.scorecard["forget_gap"].after > 0
    edit = load_edit(tmp_path / "run" / "edit.safetensors")
    model = Diffusers(str(folder), Config(variant=variant or None)).load(precision=precision)
    assert edit.base == model.facts.base_hash

    run = Run(seed=0, device="cpu", precision=precision, folder=tmp_path, cache=tmp_path)
    exporter = DiffusersLora(DiffusersLora.Config())
    files = exporter.export(edit, model, tmp_path / "export", run)
    limit = 1e-4 if precision == "fp32" else 5e-2
    assert all(check.passed for check in exporter.verify(files, edit, model, run))

    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([100, 700])
    save_file({"noisy": noisy, "timesteps": timesteps}, str(tmp_path / "inputs.safetensors"))
    captions = ["a", "An image of cat."]
    with torch.no_grad(), apply_edit(model.network, edit):
        ours = model.predict(noisy, timesteps, model.embed(captions))
        image = model.generate(["a cat"], [5], steps=2, guidance=2.0)[0].astype(int)
    with torch.no_grad():
        base = model.predict(noisy, timesteps, model.embed(captions))
    theirs = plain_diffusers(
        {
            "model": str(folder),
            "variant": variant,
            "dtype": precision,
            "lora": str(files[0].parent),
            "inputs": str(tmp_path / "inputs.safetensors"),
        }
    )
    scale = 1 + float(ours.abs().max())
    assert float((ours - base).abs().max()) / scale > 2 * limit  # there is something to get wrong
    assert float((theirs["out"] - ours).abs().max()) / scale <= limit
    drawn = (theirs["image"][0].permute(1, 2, 0) * 255).round().numpy().astype(int)
    assert np.abs(drawn - image).max() <= (1 if precision == "fp32" else 40)
