"""What is told about a pipeline folder before any weight is loaded, and what is wrong with damaged ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vu_core import ModelError, base_hash, stored_tensors
from vu_diffusers.folder import read_licence
from vu_diffusers.model import Config, Diffusers

Pipelines = dict[tuple[str, str | None], Path]


@pytest.fixture
def folder(pipelines: Pipelines, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipelines["epsilon", None], tmp_path / "model"))


def error_of(folder: Path, config: Config | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        Diffusers(str(folder), config or Config()).inspect()
    return caught.value


def test_facts_of_a_folder(pipelines: Pipelines) -> None:
    facts = Diffusers(str(pipelines["v_prediction", None]), Config(steps=7, guidance=2.0)).inspect()
    assert facts.prediction == "v_prediction"
    assert facts.resolution == 32
    assert facts.parameters > 300_000
    assert facts.bytes == 4 * facts.parameters
    assert set(facts.capabilities) == {"denoise", "generate", "tokens", "trajectory"}
    assert facts.generation == {"steps": 7.0, "guidance": 2.0}
    assert facts.downloads == 0


def test_inspecting_imports_no_torch(pipelines: Pipelines) -> None:
    program = (
        "import sys\n"
        "from vu_diffusers.model import Config, Diffusers\n"
        "from vu_diffusers import plugin\n"
        f"Diffusers({str(pipelines['epsilon', None])!r}, Config()).inspect()\n"
        "print(sorted({'torch', 'numpy', 'diffusers', 'transformers', 'peft', 'accelerate'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


def test_hash_is_over_tensors_not_files(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = Diffusers(str(folder), Config()).inspect().base_hash
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(str(weights))
    names = sorted(tensors)
    half = len(names) // 2
    shards = {"diffusion_pytorch_model-00001-of-00002.safetensors": names[:half]}
    shards["diffusion_pytorch_model-00002-of-00002.safetensors"] = names[half:]
    for file, chosen in shards.items():
        save_file({name: tensors[name].clone() for name in chosen}, str(weights.parent / file))
    weights.unlink()
    listing = {name: file for file, chosen in shards.items() for name in chosen}
    index = weights.parent / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listing}))
    assert Diffusers(str(folder), Config()).inspect().base_hash == before
    assert len(Diffusers(str(folder), Config()).load().embed(["a"])) == 1  # and the shards load


def test_hash_changes_with_one_number(folder: Path) -> None:
    before = Diffusers(str(folder), Config()).inspect().base_hash
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    os.utime(weights, ns=(1, 1))
    assert Diffusers(str(folder), Config()).inspect().base_hash != before


def test_hash_is_remembered_and_a_torn_memory_is_ignored(folder: Path, tmp_path: Path) -> None:
    files = {"unet": [folder / "unet" / "diffusion_pytorch_model.safetensors"]}
    first = base_hash(files)
    (remembered,) = (tmp_path / "cache" / "base-hash").iterdir()
    kept = json.loads(remembered.read_text())
    assert kept["about"] == f"base hash of {files['unet'][0]}"
    remembered.write_text(json.dumps({**kept, "value": "f" * 64}))
    assert base_hash(files) == "f" * 64  # it is read
    for foreign in ('{"key', "[]", json.dumps({**kept, "key": "other"}), json.dumps({**kept, "value": 5})):
        remembered.write_text(foreign)
        assert base_hash(files) == first


def test_hash_without_a_writable_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache folder should be")
    monkeypatch.setenv("VU_CACHE", str(blocked))
    assert len(Diffusers(str(folder), Config()).inspect().base_hash) == 64


def test_component_enters_the_hash(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    assert base_hash({"vae": [file]}) != base_hash({"unet": [file]})


def test_variants(pipelines: Pipelines) -> None:
    half = Diffusers(str(pipelines["epsilon", "fp16"]), Config(variant="fp16")).inspect()
    whole = Diffusers(str(pipelines["epsilon", None]), Config()).inspect()
    assert half.parameters == whole.parameters
    assert half.base_hash != whole.base_hash
    error = error_of(pipelines["epsilon", "fp16"])
    assert error.code == "VU-M073"
    assert 'model.variant = "fp16"' in error.remedy
    error = error_of(pipelines["epsilon", None], Config(variant="fp16"))
    assert error.code == "VU-M073"
    assert "leave the key out" in error.remedy


def _delete(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _set(name: str, **values: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return act


def _pickled(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))


def _cut(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _sharded(weight_map: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / UNET_WEIGHTS).unlink()
        index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return act


UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (_delete("model_index.json"), "VU-M071", "no model_index.json"),
        (_set("model_index.json", _class_name="StableDiffusionXLPipeline"), "VU-M071", "StableDiffusionXLPipeline"),
        (_set("model_index.json", vae=["diffusers", "VQModel"]), "VU-M071", "'VQModel' as vae"),
        (_set("model_index.json", unet=None), "VU-M071", "None as unet"),
        (_write("model_index.json", "{"), "VU-M072", "no valid JSON"),
        (_write("unet/config.json", "[1]"), "VU-M072", "no JSON object"),
        (_delete("vae"), "VU-M072", "vae/config.json"),
        (_delete("scheduler"), "VU-M072", "scheduler_config.json"),
        (_delete("tokenizer"), "VU-M072", "tokenizer"),
        (_write("unet/config.json", '{"sample_size": 8}'), "VU-M072", "block_out_channels"),
        (_set("unet/config.json", block_out_channels="32, 64"), "VU-M072", "block_out_channels"),
        (_set("unet/config.json", block_out_channels=32), "VU-M072", "block_out_channels"),
        (_set("unet/config.json", block_out_channels=[]), "VU-M072", "block_out_channels"),
        (_set("unet/config.json", block_out_channels=[32, True]), "VU-M072", "block_out_channels"),
        (_set("unet/config.json", cross_attention_dim=None), "VU-M072", "'cross_attention_dim' = null"),
        (_set("unet/config.json", sample_size="large"), "VU-M072", "'sample_size' = \"large\""),
        (_set("unet/config.json", sample_size=[8, 8, 8]), "VU-M072", "sample_size"),
        (_set("unet/config.json", sample_size=-8), "VU-M072", "sample_size"),
        (_set("unet/config.json", in_channels="four"), "VU-M072", "in_channels"),
        (_set("vae/config.json", block_out_channels={"a": 1}), "VU-M072", "block_out_channels"),
        (_set("vae/config.json", scaling_factor="0.18"), "VU-M072", "scaling_factor"),
        (_set("vae/config.json", scaling_factor=0), "VU-M072", "scaling_factor"),
        (_set("text_encoder/config.json", max_position_embeddings=None), "VU-M072", "'max_position_embeddings' = null"),
        (_sharded(["a.safetensors"]), "VU-M072", "weight_map"),
        (_sharded("a.safetensors"), "VU-M072", "weight_map"),
        (_sharded(None), "VU-M072", "weight_map"),
        (_sharded({"conv_in.weight": 5}), "VU-M072", "weight_map"),
        (_sharded({"conv_in.weight": "../../vae/diffusion_pytorch_model.safetensors"}), "VU-M072", "weight_map"),
        (_sharded({"conv_in.weight": "gone.safetensors"}), "VU-M072", "gone.safetensors"),
        (_set("scheduler/scheduler_config.json", prediction_type="sample"), "VU-M071", "predicts 'sample'"),
        (_delete(UNET_WEIGHTS), "VU-M073", "no weights"),
        (_pickled, "VU-M073", "pickled file 'diffusion_pytorch_model.bin'"),
        (_cut, "VU-M074", "damaged"),
        (_write(UNET_WEIGHTS, "no weights"), "VU-M074", "damaged"),
        (_write(UNET_WEIGHTS, ""), "VU-M074", "damaged"),
        (lambda f: (f / UNET_WEIGHTS).write_bytes(b"\x02\0\0\0\0\0\0\0{}") and None, "VU-M074", "no tensors"),
    ],
)
def test_damaged_folders(folder: Path, damage: Callable[[Path], None], code: str, said: str) -> None:
    damage(folder)
    error = error_of(folder)
    assert error.code == code
    assert said in error.problem
    assert str(folder) in str(error.where)
    assert error.exit_status == 8


def test_missing_tensor_is_an_error_and_no_random_number(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        weights = folder / part / f"{stem}.safetensors"
        whole = load_file(str(weights))
        gone = sorted(name for name in whole if name.endswith("weight"))[3]
        save_file({name: tensor for name, tensor in whole.items() if name != gone}, str(weights), {"format": "pt"})
        with pytest.raises(ModelError) as caught:
            Diffusers(str(folder), Config()).load()
        assert caught.value.code == "VU-M074"
        assert part in caught.value.problem
        save_file(whole, str(weights), {"format": "pt"})


def test_misshapen_tensor(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cross_attention_dim": 48}))
    with pytest.raises(ModelError) as caught:
        Diffusers(str(folder), Config()).load()
    assert caught.value.code == "VU-M074"


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"block_out_channels": [8]}),
        ("unet", {"act_fn": None}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"transformer_layers_per_block": [1]}),
        ("unet", {"down_block_types": "CrossAttnDownBlock2D"}),
        ("text_encoder", {"num_attention_heads": "two"}),
        ("text_encoder", {"hidden_act": "loud"}),
        ("text_encoder", {"hidden_size": 0}),
        ("vae", {"act_fn": 3}),
        ("vae", {"sample_size": []}),
    ],
)
def test_values_that_only_the_libraries_understand(folder: Path, part: str, values: dict[str, object]) -> None:
    _set(f"{part}/config.json", **values)(folder)
    with pytest.raises(ModelError) as caught:
        Diffusers(str(folder), Config()).load()
    assert caught.value.code == "VU-M074"
    assert caught.value.where == str(folder / part)


def test_unreadable_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError) as caught:
        Diffusers(str(folder), Config()).load()
    assert caught.value.code == "VU-M072"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler"),
        ({"_class_name": None}, "no such scheduler"),
        ({"_class_name": "UNet2DConditionModel"}, "no such scheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "no noise schedule"),
        ({"beta_schedule": "zigzag"}, "zigzag is not implemented"),
        ({"num_train_timesteps": "many"}, "cannot be used"),
        ({"beta_end": None}, "cannot be used"),
    ],
)
def test_schedulers_that_cannot_be_used(folder: Path, values: dict[str, object], said: str) -> None:
    _set("scheduler/scheduler_config.json", **values)(folder)
    with pytest.raises(ModelError) as caught:
        Diffusers(str(folder), Config()).load()
    assert caught.value.code == "VU-M072"
    assert said in caught.value.problem
    assert "DDIMScheduler, DDPMScheduler" in caught.value.remedy
    assert "scaled_linear" in caught.value.remedy
    assert caught.value.where == str(folder / "scheduler" / "scheduler_config.json")


def test_every_supported_scheduler_has_a_noise_schedule() -> None:
    import diffusers

    from vu_diffusers.loading import SCHEDULERS

    for name in SCHEDULERS:
        kind = getattr(diffusers, name)
        if kind.__module__.startswith("diffusers.schedulers"):  # else a stand-in: its own package is not installed
            assert hasattr(kind(beta_schedule="scaled_linear"), "alphas_cumprod"), name


@pytest.mark.parametrize(
    ("ref", "config", "code", "said"),
    [
        ("", Config(), "VU-M070", "needs a folder or a hub id"),
        ("no/such/folder", Config(), "VU-M070", "no folder"),
        ("/nowhere", Config(), "VU-M070", "no folder"),
    ],
)
def test_references_that_lead_nowhere(ref: str, config: Config, code: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        Diffusers(ref, config).inspect()
    assert caught.value.code == code
    assert said in caught.value.problem


def test_near_miss_of_a_folder(folder: Path) -> None:
    error = error_of(folder.with_name("modle"))
    assert "Did you mean 'model'?" in error.problem


def test_a_name_beside_others_is_a_folder_and_no_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the hub was asked"))
    beside = f"{folder.parent.name}/modle"
    for ref in (beside, f"./{beside}", f"../{folder.parent.parent.name}/{beside}"):
        with pytest.raises(ModelError) as caught:
            Diffusers(ref, Config()).inspect()
        assert caught.value.code == "VU-M070"
    with pytest.raises(ModelError, match="Did you mean 'model'") as caught:
        Diffusers(beside, Config()).inspect()
    assert "The hub is not asked" in caught.value.remedy


def test_single_file(tmp_path: Path) -> None:
    file = tmp_path / "sd.safetensors"
    file.write_bytes(b"x")
    error = error_of(file)
    assert error.code == "VU-M071"
    assert "from_single_file" in error.remedy


@pytest.mark.parametrize("config", [Config(revision="main"), Config(local_files_only=True)])
def test_hub_settings_with_a_folder(folder: Path, config: Config) -> None:
    assert error_of(folder, config).code == "VU-M077"


def test_recognises(folder: Path, tmp_path: Path) -> None:
    assert Diffusers.recognises(folder)
    assert not Diffusers.recognises(tmp_path)
    assert not Diffusers.recognises(folder / "model_index.json")
    _set("model_index.json", _class_name="DDPMPipeline")(folder)
    assert not Diffusers.recognises(folder)
    _write("model_index.json", "{")(folder)
    assert Diffusers.recognises(folder)  # so that inspect can say what is wrong


def test_absent_device(folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ModelError) as caught:
        Diffusers(str(folder), Config()).load(device="cuda")
    assert caught.value.code == "VU-M078"


def test_licence_of_the_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert read_licence(card) == ""
    card.write_text("---\ntags:\n- x\nlicense: creativeml-openrail-m\n---\n# Model\nlicense: other\n")
    assert read_licence(card) == "creativeml-openrail-m"
    card.write_text("# Model\nlicense: other\n")
    assert read_licence(card) == ""


def test_cost_of_a_pass_is_that_of_the_layers(pipelines: Pipelines) -> None:
    """The estimate equals the multiply-adds counted by hooks on convolutions and linear maps, and attention."""
    import torch
    from torch import nn

    model = Diffusers(str(pipelines["epsilon", None]), Config()).load()
    counted: list[int] = []

    def layer(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output[0].numel() // output.shape[-1]
        counted.append(module.weight.numel() * positions)

    def attention(keys: int | None) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def scores(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            counted.append(2 * output.shape[1] * (keys or output.shape[1]) * output.shape[2])

        return scores

    for name, module in model.network["unet"].named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(layer)
        if name.endswith("to_q"):
            module.register_forward_hook(attention(77 if ".attn2." in name else None))
    model.predict(torch.zeros(1, 4, 8, 8), torch.tensor([5]), model.embed(["a"]))
    assert model.facts.forward_gflops * 1e9 == pytest.approx(sum(counted), rel=0.01)


def test_header_is_sorted_by_name(folder: Path) -> None:
    names = [tensor.name for tensor in stored_tensors(folder / UNET_WEIGHTS)]
    assert names == sorted(names)
