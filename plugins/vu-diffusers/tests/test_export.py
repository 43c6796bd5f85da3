"""Exported files do what the edit does, or there is no file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vu_core import Edit, EditError, LowRank, Replace, Run, Sparse
from vu_core.adapters import Lora, LoraConfig, apply_edit
from vu_diffusers import native
from vu_diffusers.lora_file import FILE, Config, DiffusersLora
from vu_diffusers.native import Native
from vu_diffusers.probe import outputs, relative_error
from vu_diffusers.stable_diffusion import StableDiffusion
from vu_diffusers.tiny import tiny_model

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    return tiny_model(prediction=request.param)


@pytest.fixture(autouse=True)
def _model_comes_back(model: StableDiffusion) -> Iterator[None]:
    before = [*model.network.modules(), *model.network.parameters()]
    values = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    yield
    now = [*model.network.modules(), *model.network.parameters()]
    assert len(before) == len(now)
    assert all(a is b for a, b in zip(before, now, strict=True))
    assert all(torch.equal(values[name], tensor) for name, tensor in model.network.state_dict().items())
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not any(m.training for m in model.network.modules())


def an_edit(model: StableDiffusion, run: Run, *, rank: int, alpha: float, targets: tuple[str, ...] = ATTENTION) -> Edit:
    theta = Lora(LoraConfig(rank=rank, alpha=alpha, targets=targets)).attach(model, run)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    edit = theta.edit()
    theta.detach()
    return edit


@pytest.mark.parametrize(("rank", "alpha"), [(32, 64.0), (16, 4.0), (4, 4.0)])
def test_strength_survives(model: StableDiffusion, run: Run, tmp_path: Path, rank: int, alpha: float) -> None:
    edit = an_edit(model, run, rank=rank, alpha=alpha)
    exporter = DiffusersLora(Config())
    files = exporter.export(edit, model, tmp_path, run)
    assert [file.name for file in files] == [FILE]
    assert exporter.verify(files, edit, model, run) <= 1e-4
    with apply_edit(model.network, edit):
        changed = outputs(model)
    assert relative_error(changed, outputs(model)) > 0.01


@pytest.mark.parametrize(
    "targets",
    [
        ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv"),
        ("proj_in", "proj_out", "time_emb_proj"),
        ("text_encoder.q_proj", "text_encoder.fc1", "unet.to_k"),
    ],
)
def test_other_layers(model: StableDiffusion, run: Run, tmp_path: Path, targets: tuple[str, ...]) -> None:
    edit = an_edit(model, run, rank=3, alpha=6.0, targets=targets)
    exporter = DiffusersLora(Config())
    assert exporter.verify(exporter.export(edit, model, tmp_path, run), edit, model, run) < 1e-5


def test_mixed_ranks(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    two = an_edit(model, run, rank=2, alpha=6.0, targets=("to_q",))
    five = an_edit(model, run, rank=5, alpha=1.0, targets=("to_k", "to_v"))
    edit = Edit({**two.parts, **five.parts})
    exporter = DiffusersLora(Config())
    assert exporter.verify(exporter.export(edit, model, tmp_path, run), edit, model, run) < 1e-5


def test_half_precision_files(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    edit = an_edit(model, run, rank=4, alpha=8.0)
    sizes, errors = [], []
    for precision in ("fp32", "fp16"):
        exporter = DiffusersLora(Config(precision=precision))
        files = exporter.export(edit, model, tmp_path / precision, run)
        sizes.append(files[0].stat().st_size)
        errors.append(exporter.verify(files, edit, model, run))
    assert sizes[1] < 0.7 * sizes[0]
    assert 0 < errors[0] < 1e-5 < errors[1] < 1e-2


def test_equal_edits_give_equal_bytes_and_one_metadata_key(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    from safetensors import safe_open

    edit = an_edit(model, run, rank=2, alpha=1.0)
    shuffled = Edit(dict(reversed(list(edit.parts.items()))))
    hashes = set()
    for place, one in enumerate((edit, shuffled)):
        (file,) = DiffusersLora(Config()).export(one, model, tmp_path / str(place), run)
        hashes.add(hashlib.sha256(file.read_bytes()).hexdigest())
    assert len(hashes) == 1
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    assert list(metadata) == ["lora_adapter_metadata"]
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"] == 2
    assert sorted(path.name for path in tmp_path.joinpath("0").iterdir()) == [FILE]


def refused(edit: Edit, model: StableDiffusion, run: Run, folder: Path) -> EditError:
    with pytest.raises(EditError) as caught:
        DiffusersLora(Config()).export(edit, model, folder, run)
    assert not folder.exists()  # nothing is left half-written
    return caught.value


def test_what_the_format_cannot_express(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    factors = LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[3, 4] = False
    masked = LowRank(factors.A, factors.B, factors.alpha, mask)
    sparse = Sparse(torch.tensor([1]), torch.tensor([1.0]), (32, 32))
    vae = "vae.encoder.mid_block.attentions.0.to_q.weight"
    for parts, said in (
        ({TO_Q: masked}, "masked weight by weight"),
        ({TO_Q: sparse}, "new tensor"),
        ({TO_Q: Replace(torch.ones(32, 32))}, "new tensor"),
        ({TO_Q: factors, vae: LowRank(torch.ones(1, 16), torch.ones(16, 1), 1.0)}, "no weight of"),
        ({}, "empty"),
    ):
        error = refused(Edit(parts), model, run, tmp_path / "out")
        assert error.code == "VU-E070"
        assert said in error.problem


def test_a_mask_of_ones_is_no_mask(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    ones = torch.ones(32, 32, dtype=torch.bool)
    edit = Edit({TO_Q: LowRank(torch.ones(2, 32), torch.ones(32, 2), 4.0, ones)})
    exporter = DiffusersLora(Config())
    assert exporter.verify(exporter.export(edit, model, tmp_path, run), edit, model, run) < 1e-4


@pytest.mark.parametrize("fault", ["half strength", "other prefix", "one layer lost", "not finite"])
def test_verify_sees_wrong_files(model: StableDiffusion, run: Run, tmp_path: Path, fault: str) -> None:
    from safetensors.torch import load_file, save_file

    edit = an_edit(model, run, rank=4, alpha=8.0)
    exporter = DiffusersLora(Config())
    (file,) = exporter.export(edit, model, tmp_path, run)
    tensors = load_file(str(file))
    if fault == "half strength":
        tensors = {name: tensor / 2 if "lora_B" in name else tensor for name, tensor in tensors.items()}
    elif fault == "other prefix":
        tensors = {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}
    elif fault == "one layer lost":
        tensors = {name: tensor for name, tensor in tensors.items() if TO_Q.removesuffix(".weight") not in name}
    else:
        tensors = {name: tensor * float("nan") for name, tensor in tensors.items()}
    save_file(tensors, str(file))
    exporter._check_products = lambda path, edit: None  # type: ignore[method-assign]  # what the outputs show by themselves
    with pytest.raises(EditError) as caught:
        exporter.verify((file,), edit, model, run)
    assert caught.value.code == "VU-E071"


def test_verify_sees_a_lost_scale_in_half_precision(run: Run, tmp_path: Path) -> None:
    """In bf16 the outputs of a weak edit differ by less than the tolerance; the products still tell."""
    from safetensors.torch import load_file, save_file

    model = tiny_model()
    edit = Edit({TO_Q: LowRank(torch.full((2, 32), 0.01), torch.full((32, 2), 0.01), 4.0)})
    exporter = DiffusersLora(Config())
    (file,) = exporter.export(edit, model, tmp_path, run)
    tensors = load_file(str(file))
    save_file({name: tensor / 2 if "lora_B" in name else tensor for name, tensor in tensors.items()}, str(file))
    with pytest.raises(EditError, match="not that of the edit"):
        exporter.verify((file,), edit, model, run)


def test_verify_needs_a_model_it_knows(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Stable Diffusion"):
        DiffusersLora(Config()).verify((tmp_path / FILE,), Edit({}), object(), run)  # type: ignore[arg-type]


def test_native_keeps_everything(model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    mask = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) > 0.5
    parts = {
        TO_Q: LowRank(torch.ones(2, 32), torch.ones(32, 2), 4.0, mask),
        "unet.conv_in.bias": Replace(torch.zeros(16)),
        "unet.conv_out.bias": Sparse(torch.tensor([1]), torch.tensor([0.5]), (4,)),
    }
    edit = Edit(parts, base="b", parents=("p",), method="toy", facts={"k": 1})
    exporter = Native(native.Config())
    files = exporter.export(edit, model, tmp_path, run)
    assert exporter.verify(files, edit, model, run) == 0.0
    other = Edit({**parts, "unet.conv_in.bias": Replace(torch.ones(16))}, base="b", method="toy")
    with pytest.raises(EditError) as caught:
        exporter.verify(files, other, model, run)
    assert caught.value.code == "VU-E071"
    with pytest.raises(EditError) as caught:
        exporter.export(Edit({}), model, tmp_path, run)
    assert caught.value.code == "VU-E070"


def test_relative_error() -> None:
    assert relative_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])) == 1.0
