"""Adapters as diffusers and peft write them themselves, compared with what their own layers compute."""

from __future__ import annotations

import math

import pytest
import torch

from vu_elastic_lora.reading import read_adapter
from vu_elastic_lora.sparsity import report

pytest.importorskip("vu_diffusers", reason="its tiny model is what the libraries write adapters of")

TARGETS = ["to_q", "to_out.0", "conv_in"]


@pytest.fixture(scope="module")
def unet():
    """A UNet with a LoRA of ranks 4 and 2, random in both factors, strength alpha / r unlike one."""
    from peft import LoraConfig

    from vu_diffusers.quiet import quiet
    from vu_diffusers.tiny import tiny_model

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = tiny_model().network.unet
        patterns = {"rank_pattern": {"conv_in": 2}, "alpha_pattern": {"conv_in": 5.0}}
        unet.add_adapter(
            LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights="gaussian", **patterns)
        )
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    return unet


@pytest.fixture(scope="module")
def layers(unet):
    """Rank, gamma and norm of the change per module, from the layers of peft."""
    found = {}
    for name, module in unet.named_modules():
        if hasattr(module, "get_delta_weight"):
            norm = float(module.get_delta_weight("default").detach().double().norm())
            found[name] = (module.r["default"], module.scaling["default"], pytest.approx(norm, rel=1e-5))
    assert {rank for rank, _, _ in found.values()} == {2, 4}
    return found


def told(path, prefix: str = ""):
    reports = [report(change) for change in read_adapter(path).changes]
    assert all(each.module.startswith(prefix) for each in reports)
    return {each.module.removeprefix(prefix): (each.rank, each.gamma, each.norm) for each in reports}


def test_save_lora_adapter(unet, layers, tmp_path):
    unet.save_lora_adapter(tmp_path)
    assert told(tmp_path) == layers


def test_save_lora_weights(unet, layers, tmp_path):
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    factors = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, factors, **_collate_lora_metadata({"unet": unet}))
    assert told(tmp_path, "unet.") == layers


def test_save_lora_weights_in_the_keys_of_before(unet, layers, tmp_path):
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    factors = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    assert any(".lora.down." in name for name in factors)  # attention alone; convolutions keep the new keys
    StableDiffusionPipeline.save_lora_weights(tmp_path, factors)
    # Such a file says no alpha: its readers take r, and so the change is smaller than that of the layers.
    weaker = {name: (rank, 1.0, pytest.approx(norm.expected / gamma)) for name, (rank, gamma, norm) in layers.items()}
    assert told(tmp_path, "unet.") == weaker


def test_the_keys_of_kohya_as_diffusers_converts_them(unet, layers, tmp_path):
    from diffusers.utils import convert_state_dict_to_kohya
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    factors = {f"unet.{name}": tensor for name, tensor in get_peft_model_state_dict(unet).items()}
    save_file(convert_state_dict_to_kohya(factors), tmp_path / "kohya.safetensors")  # writes alpha = r
    found = told(tmp_path, "lora_unet_")
    assert len(found) == len(layers)
    for name, (rank, gamma, norm) in layers.items():
        assert found[name.replace(".", "_")] == (rank, 1.0, pytest.approx(norm.expected / gamma))


@pytest.mark.parametrize("rslora", [False, True])
def test_save_pretrained_of_peft(rslora, tmp_path):
    from peft import LoraConfig, get_peft_model

    network = torch.nn.Sequential()
    network.add_module("to_q", torch.nn.Linear(6, 5))
    network.add_module("conv_in", torch.nn.Conv2d(3, 4, 3))
    names = ["to_q", "conv_in"]
    settings = {"init_lora_weights": "gaussian", "use_rslora": rslora}
    patterns = {} if rslora else {"alpha_pattern": {"conv_in": 3}}
    model = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules=names, **settings, **patterns))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    found = told(tmp_path)
    assert {name: gamma for name, (_, gamma, _) in found.items()} == (
        {name: pytest.approx(8 / math.sqrt(4)) for name in names} if rslora else {"to_q": 2.0, "conv_in": 0.75}
    )
    for name in names:
        layer = model.get_submodule(f"base_model.model.{name}")
        assert found[name][2] == pytest.approx(float(layer.get_delta_weight("default").detach().norm()), rel=1e-5)
