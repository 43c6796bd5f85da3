"""Formats that hold every kind of edit: native, delta and merged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vu_core import Check, Edit, EditError, LowRank, Replace, Run, Sparse
from vu_core.adapters import apply_edit, compose, load_edit
from vu_core.testing import ToyPainter
from vu_diffusers import delta_file, merged, native
from vu_diffusers.delta_file import Delta, apply_delta, read_delta
from vu_diffusers.merged import Merged
from vu_diffusers.model import Diffusers
from vu_diffusers.native import Native
from vu_diffusers.probe import outputs, relative_error
from vu_diffusers.stable_diffusion import StableDiffusion
from vu_diffusers.tiny import tiny_model

EXACT = (Native, Delta, Merged)
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
MID_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
CONV = "unet.down_blocks.0.resnets.0.conv1.weight"
VAE = "vae.decoder.conv_in.weight"


@pytest.fixture(scope="module")
def loaded() -> StableDiffusion:
    return tiny_model()


@pytest.fixture(params=EXACT, ids=lambda plugin: plugin.__name__)
def plugin(request: pytest.FixtureRequest) -> type[Any]:
    return request.param  # type: ignore[no-any-return]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def every_kind(model: Any) -> Edit:
    """A masked, a plain, a sparse and a whole change, of the denoiser, the text encoder and the autoencoder."""
    tensors = dict(model.network.named_parameters())
    fc1 = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    parts = {
        TO_Q: LowRank(normal(3, 32), normal(32, 3, seed=1), 6.0, normal(32, 32, seed=2) > 0),
        CONV: LowRank(normal(2, tensors[CONV][0].numel()), normal(len(tensors[CONV]), 2, seed=3), 1.0),
        fc1: LowRank(normal(2, tensors[fc1].shape[1]), normal(len(tensors[fc1]), 2), 4.0),
        "unet.conv_in.bias": Replace(normal(16)),
        "unet.conv_out.bias": Sparse(torch.tensor([1, 3]), torch.tensor([0.5, -0.25]), (4,)),
        VAE: LowRank(normal(1, tensors[VAE][0].numel()), normal(len(tensors[VAE]), 1), 1.0),
    }
    return Edit(parts, base="b", parents=("p",), method="toy", facts={"k": 1})


def errors(checks: tuple[Check, ...]) -> dict[str, float]:
    assert all(check.passed for check in checks), checks
    return {check.what: check.error for check in checks}


def test_every_kind_of_part(plugin: type[Any], model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    exporter, edit = plugin(plugin.Config()), every_kind(model)
    files = exporter.export(edit, model, tmp_path / "out", run)
    assert sorted(files) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    found = errors(exporter.verify(files, edit, model, run))
    assert {"denoiser", "image"} < found.keys()
    assert max(error for what, error in found.items() if what != "strength") == 0


def test_equal_edits_give_equal_bytes(plugin: type[Any], model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    edit = every_kind(model)
    shuffled = Edit(dict(reversed(list(edit.parts.items()))), "b", ("p",), "toy", {"k": 1})
    hashes = [
        [
            hashlib.sha256(file.read_bytes()).hexdigest()
            for file in plugin(plugin.Config()).export(one, model, place, run)
        ]
        for one, place in ((edit, tmp_path / "1"), (shuffled, tmp_path / "2"))
    ]
    assert hashes[0] == hashes[1]


def test_a_tensor_under_two_names(plugin: type[Any], run: Run, tmp_path: Path) -> None:
    tied = tiny_model()
    tied.network.get_submodule(MID_Q.removesuffix(".weight")).weight = tied.network.get_parameter(TO_Q)
    edit = Edit({TO_Q: LowRank(torch.ones(2, 32), torch.ones(32, 2), 4.0)})
    exporter = plugin(plugin.Config())
    files = exporter.export(edit, tied, tmp_path / "one", run)
    assert errors(exporter.verify(files, edit, tied, run))["denoiser"] == 0
    twice = Edit({**edit.parts, MID_Q: Replace(torch.ones(32, 32))})
    if plugin is Native:
        return  # it keeps both parts apart, whatever they mean together
    with pytest.raises(EditError) as caught:
        exporter.export(twice, tied, tmp_path / "two", run)
    assert (caught.value.code, "twice" in caught.value.problem) == ("VU-E070", True)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(plugin: type[Any], dtype: torch.dtype, run: Run, tmp_path: Path) -> None:
    model = tiny_model()
    model.network.to(dtype)
    model.dtype = dtype
    exporter, edit = plugin(plugin.Config()), every_kind(model)
    assert errors(exporter.verify(exporter.export(edit, model, tmp_path, run), edit, model, run))["denoiser"] < 0.02


def test_usage_of_native_for_other_models(run: Run, tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    model: Any = SimpleNamespace(facts=SimpleNamespace(name="other"), network=network)
    exporter = Native(native.Config())
    files = exporter.export(Edit({"bias": Replace(torch.ones(2))}), model, tmp_path, run)
    usage = exporter.usage(files, "base")
    assert "StableDiffusionPipeline" not in usage
    place: dict[str, Any] = {"network": network, "inputs": torch.zeros(2)}
    exec(usage.replace(repr(native.FILE), repr(str(files[0]))), place)
    assert place["outputs"].tolist() == [1.0, 1.0]


def test_native_keeps_everything(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    edit, exporter = every_kind(model), Native(native.Config())
    files = exporter.export(edit, model, tmp_path, run)
    again = load_edit(files[0])
    assert (again.base, again.parents, again.method, again.facts) == ("b", ("p",), "toy", {"k": 1})
    other = Edit(edit.parts, base="another", method="toy")
    checks = {check.what: check for check in exporter.verify(files, other, model, run)}
    assert checks["denoiser"].passed  # the numbers are the same
    assert not checks["edit"].passed


# delta


def exported(edit: Edit, model: Any, run: Run, folder: Path) -> Path:
    (file,) = Delta(delta_file.Config()).export(edit, model, folder, run)
    return file


def test_delta_is_the_change(run: Run, tmp_path: Path) -> None:
    model = ToyPainter()
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2, 3] = mask[5, 1] = True
    parts = {
        "unet.attn1.to_q.weight": LowRank(normal(2, 8), normal(8, 2, seed=1), 6.0, mask),
        "unet.attn1.to_k.weight": LowRank(normal(2, 8), normal(8, 2, seed=1), 6.0),
        "unet.time.bias": Replace(torch.zeros(8)),
    }
    stored = load_file(str(file := exported(Edit(parts, base="hash", method="toy"), model, run, tmp_path)))
    masked: Any = parts["unet.attn1.to_q.weight"]
    assert stored["unet.attn1.to_q.weight.indices"].tolist() == [2 * 8 + 3, 5 * 8 + 1]
    assert stored["unet.attn1.to_q.weight.indices"].dtype == torch.int32
    values = stored["unet.attn1.to_q.weight.values"]
    assert torch.allclose(values, (6.0 / 2) * (masked.B @ masked.A)[mask])
    dense: Any = parts["unet.attn1.to_k.weight"]
    assert torch.allclose(stored["unet.attn1.to_k.weight.values"], dense.delta(), atol=1e-7)
    assert "unet.attn1.to_k.weight.indices" not in stored
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    header = json.loads(metadata.pop("vu_delta"))
    assert not metadata
    assert (header["base"], header["method"]) == ("hash", "toy")
    assert header["shapes"]["unet.attn1.to_q.weight"] == [8, 8]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.45, 0.55, 1.0])
def test_delta_takes_the_smaller_form(share: float, run: Run, tmp_path: Path) -> None:
    model = ToyPainter()
    mask = torch.arange(64).reshape(8, 8) < 64 * share
    edit = Edit({"unet.attn1.to_q.weight": LowRank(torch.ones(1, 8), torch.ones(8, 1), 1.0, mask)})
    stored = load_file(str(exported(edit, model, run, tmp_path)))
    assert ("unet.attn1.to_q.weight.indices" in stored) == (share < 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_delta_is_exact_where_rounding_is_not(dtype: torch.dtype, run: Run, tmp_path: Path) -> None:
    """Numbers that cancel, that nearly do, and that are lost beside the base."""
    model = ToyPainter()
    model.network.to(dtype)
    base = normal(8, 8).to(dtype)
    base[0, :4] = torch.tensor([1.0, 1.0, 1e-3, 0.0])
    new = (base.double() + normal(8, 8, seed=1).double() * 0.3).to(dtype)
    new[0, :4] = torch.tensor([1e-9, -0.9999999, 1.0, 1e-7])
    with torch.no_grad():
        model.network["unet"].attn1.to_q.weight.copy_(base)
    noise = LowRank(normal(8, 8, seed=2).double() * 1e-4, torch.eye(8).double(), 8.0)
    edit = Edit({"unet.attn1.to_q.weight": Replace(new), "unet.attn1.to_k.weight": noise})
    exporter, key = Delta(delta_file.Config()), model.network["unet"].attn1.to_k.weight
    file = exported(edit, model, run, tmp_path)
    assert errors(exporter.verify((file,), edit, model, run))["tensors"] == 0
    wanted = compose(key, [noise])
    apply_delta(model.network, file)
    assert torch.equal(model.network["unet"].attn1.to_q.weight, new)
    assert torch.equal(model.network["unet"].attn1.to_k.weight, wanted)


def test_delta_of_whole_numbers(run: Run, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    model: Any = SimpleNamespace(facts=SimpleNamespace(name="other"), network=network)
    edit = Edit({"0.num_batches_tracked": Replace(torch.tensor(7)), "0.running_mean": Replace(torch.ones(3))})
    file = exported(edit, model, run, tmp_path)
    exporter = Delta(delta_file.Config())
    assert errors(exporter.verify((file,), edit, model, run)) == {"tensors": 0}
    assert "apply_delta(network" in exporter.usage((file,), "base")
    apply_delta(network, file)
    assert int(network[0].num_batches_tracked) == 7  # type: ignore[arg-type]


def test_delta_of_a_pipeline(
    pipelines: dict[tuple[str, str | None], Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    edit = every_kind(model)
    exporter = Delta(delta_file.Config())
    file = exported(edit, model, run, tmp_path / "export")
    monkeypatch.chdir(tmp_path / "export")
    place: dict[str, Any] = {}
    exec(exporter.usage((file,), str(pipelines["epsilon", None])), place)
    pipe = place["pipe"]
    with apply_edit(model.network, edit):
        for component, network in model.network.items():
            other = getattr(pipe, component).state_dict()
            assert all(torch.equal(tensor, other[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("truncated", "VU-E071"),
        ("another file", "VU-E071"),
        ("newer", "VU-E071"),
        ("no values", "VU-E071"),
        ("unknown tensor", "VU-E071"),
        ("position outside", "VU-E071"),
        ("positions in rows", "VU-E071"),
        ("other shape", "VU-E071"),
        ("missing", "VU-E071"),
        ("another model", "VU-E072"),
        ("other size", "VU-E072"),
    ],
)
def test_apply_delta_changes_all_or_nothing(fault: str, code: str, run: Run, tmp_path: Path) -> None:
    model = ToyPainter()
    edit = Edit(
        {
            "unet.attn1.to_q.weight": Sparse(torch.tensor([3]), torch.tensor([1.0]), (8, 8)),
            "unet.time.bias": Replace(torch.ones(8)),
        }
    )
    file = exported(edit, model, run, tmp_path)
    damage(file, fault, model)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with pytest.raises(EditError) as caught:
        apply_delta(model.network, file)
    assert caught.value.code == code
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())


def damage(file: Path, fault: str, model: ToyPainter) -> None:
    tensors = load_file(str(file))
    with safe_open(str(file), "pt") as opened:
        header = json.loads(opened.metadata()["vu_delta"])
    indices = "unet.attn1.to_q.weight.indices"
    match fault:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-10])
            return
        case "missing":
            file.unlink()
            return
        case "another model":
            del model.network["unet"].time
            return
        case "other size":
            model.network["unet"].time.bias = torch.nn.Parameter(torch.zeros(9))
            return
        case "another file":
            header = None
        case "newer":
            header["format"] += 1
        case "no values":
            del tensors["unet.time.bias.values"]
        case "unknown tensor":
            tensors["unet.time.weight.values"] = torch.ones(8, 1)
        case "position outside":
            tensors[indices] = torch.tensor([64], dtype=torch.int32)
        case "positions in rows":
            tensors[indices] = tensors[indices].reshape(1, 1)
            tensors[indices.replace("indices", "values")] = torch.ones(1, 1)
        case "other shape":
            tensors["unet.time.bias.values"] = torch.ones(9)
    save_file(tensors, str(file), metadata=None if header is None else {"vu_delta": json.dumps(header)})


def test_read_delta(run: Run, tmp_path: Path) -> None:
    model = ToyPainter()
    edit = Edit({"unet.attn1.to_q.weight": Sparse(torch.tensor([3]), torch.tensor([1.5]), (8, 8))})
    ((name, change),) = read_delta(exported(edit, model, run, tmp_path)).items()
    assert (name, change.shape) == ("unet.attn1.to_q.weight", (8, 8))
    assert change.applied_to(torch.zeros(8, 8)).flatten().nonzero().tolist() == [[3]]
    assert change.applied_to(torch.zeros(8, 8))[0, 3] == 1.5


# merged


def test_merged_is_a_pipeline_folder(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    edit = every_kind(model)
    files = Merged(merged.Config()).export(edit, model, tmp_path, run)
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert not [file for file in files if str(tmp_path).encode() in file.read_bytes()]
    plugin = Diffusers(str(tmp_path), Diffusers.Config())
    assert plugin.inspect().base_hash
    again = plugin.load()
    with apply_edit(model.network, edit):
        assert relative_error(outputs(again), outputs(model)) == 0
        for name, tensor in model.network.state_dict().items():
            assert torch.equal(again.network.state_dict()[name], tensor)


def test_merged_names_no_folder_of_this_machine(
    pipelines: dict[tuple[str, str | None], Path], run: Run, tmp_path: Path
) -> None:
    place = pipelines["epsilon", None]
    loaded = Diffusers(str(place), Diffusers.Config()).load()
    for file in Merged(merged.Config()).export(every_kind(loaded), loaded, tmp_path, run):
        assert str(place).encode() not in file.read_bytes()


def test_merged_holds_no_computed_tensors(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    name = "text_encoder.embeddings.position_ids"
    edit = Edit({name: Replace(model.network.get_buffer(name).flip(1))})
    with pytest.raises(EditError, match="not stored") as caught:
        Merged(merged.Config()).export(edit, model, tmp_path / "out", run)
    assert caught.value.code == "VU-E070"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_merged_in_half_precision(
    precision: str, dtype: torch.dtype, model: StableDiffusion, run: Run, tmp_path: Path
) -> None:
    edit = every_kind(model)
    exporter = Merged(merged.Config(precision=precision))
    files = exporter.export(edit, model, tmp_path, run)
    found = errors(exporter.verify(files, edit, model, run))
    assert found["weights"] == 0
    assert 0 < found["strength"] < 0.01
    stored = load_file(str(tmp_path / "unet" / "diffusion_pytorch_model.safetensors"))
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    with apply_edit(model.network, edit):
        assert torch.equal(stored["conv_in.bias"], model.network.get_parameter("unet.conv_in.bias").to(dtype))


def test_merged_tells_that_rounding_has_lost_a_change(run: Run, tmp_path: Path) -> None:
    """Beside weights that half precision holds exactly, a change below half a step disappears."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.copy_(parameter.bfloat16().float())
    edit = Edit({TO_Q: LowRank(torch.full((1, 32), 1e-3), torch.full((32, 1), 1e-2), 1.0)})
    for precision, kept in (("fp32", True), ("bf16", False)):
        exporter = Merged(merged.Config(precision=precision))
        files = exporter.export(edit, model, tmp_path / precision, run)
        checks = {check.what: check for check in exporter.verify(files, edit, model, run)}
        assert checks["weights"].passed
        assert checks["strength"].passed == kept
