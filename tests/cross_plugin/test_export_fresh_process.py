"""Exports give the trained function in a fresh process that imports only diffusers, and peft for its own format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vu_core import Edit, Run
from vu_core.adapters import Lora, LoraConfig, apply_edit
from vu_diffusers.kohya_file import FILE as KOHYA
from vu_diffusers.kohya_file import Kohya
from vu_diffusers.lora_file import DiffusersLora
from vu_diffusers.merged import Merged
from vu_diffusers.model import Config, Diffusers
from vu_diffusers.peft_folder import Peft
from vu_diffusers.stable_diffusion import StableDiffusion
from vu_diffusers.tiny import tiny_pipeline

Ask = Callable[[dict[str, str]], dict[str, torch.Tensor]]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("models") / request.param, prediction=request.param)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(seed=0, device="cpu", precision="fp32", folder=tmp_path, cache=tmp_path)


def an_edit(model: StableDiffusion, run: Run, rank: int, alpha: float) -> Edit:
    """What training leaves behind: factors of both sides, alpha beside them."""
    theta = Lora(LoraConfig(rank=rank, alpha=alpha, targets=ATTENTION)).attach(model, run)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    edit = theta.edit()
    theta.detach()
    return edit


@pytest.mark.parametrize(("rank", "alpha"), [(32, 64.0), (16, 4.0)])
@pytest.mark.parametrize("plugin", [DiffusersLora, Kohya, Peft, Merged])
def test_the_trained_function_without_vu(
    plugin: type[Any], rank: int, alpha: float, place: Path, run: Run, plain_diffusers: Ask, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    model = Diffusers(str(place), Config()).load()
    edit = an_edit(model, run, rank, alpha)
    folder = tmp_path / "export"
    exporter = plugin(plugin.Config())
    files = exporter.export(edit, model, folder, run)
    assert all(check.passed for check in exporter.verify(files, edit, model, run))

    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([100, 700])
    save_file({"noisy": noisy, "timesteps": timesteps}, str(tmp_path / "inputs.safetensors"))
    with torch.no_grad():
        words = model.embed(["a", "An image of cat."])
        base = model.predict(noisy, timesteps, words)
        with apply_edit(model.network, edit):
            ours = model.predict(noisy, timesteps, words)
            image = model.generate(["a cat"], [5], steps=2, guidance=2.0)[0].astype(int)
    loaded = {
        DiffusersLora: {"model": str(place), "lora": str(folder)},
        Kohya: {"model": str(place), "lora": str(folder), "weight_name": KOHYA},
        Peft: {"model": str(place), "peft": str(folder)},
        Merged: {"model": str(folder)},
    }[plugin]
    inputs = str(tmp_path / "inputs.safetensors")
    theirs = plain_diffusers({"variant": "", "dtype": "fp32", "inputs": inputs, **loaded})  # and says so if it had vu
    scale = 1 + float(ours.abs().max())
    assert float((ours - base).abs().max()) / scale > 1e-2  # there is something to get wrong
    assert float((theirs["out"] - ours).abs().max()) / scale <= 1e-4
    drawn = (theirs["image"][0].permute(1, 2, 0) * 255).round().numpy().astype(int)
    assert np.abs(drawn - image).max() <= 1
