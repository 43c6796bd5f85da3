"""LoRA files do what the edit does in the program they are for, or there is no file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vu_core import Check, Edit, EditError, LowRank, Replace, Run, Sparse
from vu_core.adapters import apply_edit
from vu_diffusers import kohya_file, lora_file, peft_folder
from vu_diffusers.delta_file import Delta
from vu_diffusers.kohya_file import Kohya
from vu_diffusers.lora_file import DiffusersLora
from vu_diffusers.lora_layers import LoraConfig
from vu_diffusers.merged import Merged
from vu_diffusers.native import Native
from vu_diffusers.peft_folder import Peft
from vu_diffusers.probe import IMAGE_SHARE, Wanted, answers, comparison, outputs, relative_error, wanted_of
from vu_diffusers.stable_diffusion import StableDiffusion

LORA_FILES = (DiffusersLora, Peft, Kohya)
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(params=LORA_FILES, ids=lambda plugin: plugin.__name__)
def plugin(request: pytest.FixtureRequest) -> type[Any]:
    return request.param  # type: ignore[no-any-return]


def errors(checks: tuple[Check, ...]) -> dict[str, float]:
    assert all(check.passed for check in checks), checks
    return {check.what: check.error for check in checks}


def exported(plugin: type[Any], edit: Edit, model: Any, run: Run, folder: Path, **settings: Any) -> dict[str, float]:
    exporter = plugin(plugin.Config(**settings))
    files = exporter.export(edit, model, folder, run)
    assert sorted(files) == sorted(path for path in folder.rglob("*") if path.is_file())
    return errors(exporter.verify(files, edit, model, run))


@pytest.mark.parametrize(("rank", "alpha"), [(32, 64.0), (16, 4.0), (4, 4.0), (4, -8.0)])
def test_strength_survives(
    plugin: type[Any], model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path, rank: int, alpha: float
) -> None:
    edit = make_edit(model, rank=rank, alpha=abs(alpha))
    edit = attrs.evolve(edit, parts={name: attrs.evolve(part, alpha=alpha) for name, part in edit})
    found = exported(plugin, edit, model, run, tmp_path)
    assert {"denoiser", "image", "factors"} <= found.keys()
    assert max(found.values()) < 1e-5
    with apply_edit(model.network, edit):
        changed = outputs(model)
    assert relative_error(changed, outputs(model)) > 0.01


@pytest.mark.parametrize(
    "targets",
    [
        ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
        ("proj_in", "proj_out", "time_emb_proj", "ff.net.0.proj", "ff.net.2"),
        ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"),
        ("text_encoder.q_proj", "text_encoder.out_proj", "text_encoder.fc1", "unet.to_k"),
        ("text_encoder.fc1", "text_encoder.fc2"),
    ],
)
def test_other_layers(
    plugin: type[Any], model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    edit = make_edit(model, rank=3, alpha=6.0, targets=targets)
    assert exported(plugin, edit, model, run, tmp_path)["factors"] < 1e-5


def test_mixed_ranks_and_alphas(
    plugin: type[Any], model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {}
    for rank, alpha, targets in (
        (2, 6.0, ("unet.to_q", "unet.conv1", "text_encoder.q_proj")),
        (5, 1.0, ("unet.to_k", "unet.to_v", "text_encoder.out_proj")),
        (3, 1.0, ("unet.to_out.0", "unet.conv2")),
    ):
        parts |= make_edit(model, rank=rank, alpha=alpha, targets=targets).parts
    assert exported(plugin, Edit(parts), model, run, tmp_path)["factors"] < 1e-5


def test_half_precision_files(
    plugin: type[Any], model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path
) -> None:
    edit = make_edit(model, rank=4, alpha=8.0)
    found = {
        precision: exported(plugin, edit, model, run, tmp_path / precision, precision=precision)
        for precision in ("fp32", "fp16")
    }
    sizes = {
        precision: sum(path.stat().st_size for path in (tmp_path / precision).rglob("*.safetensors"))
        for precision in found
    }
    assert sizes["fp16"] < 0.7 * sizes["fp32"]
    assert found["fp32"]["denoiser"] < 1e-5 < found["fp16"]["denoiser"] < 1e-2
    assert found["fp32"]["factors"] < 1e-5 < found["fp16"]["factors"] < 1e-2


def test_equal_edits_give_equal_bytes(
    plugin: type[Any], model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path
) -> None:
    edit = make_edit(model, rank=2, alpha=1.0)
    shuffled = Edit(dict(reversed(list(edit.parts.items()))))
    hashes = []
    for place, one in enumerate((edit, shuffled)):
        files = plugin(plugin.Config()).export(one, model, tmp_path / str(place), run)
        hashes.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
        for file in files:
            if file.suffix == ".safetensors":
                with safe_open(str(file), "pt") as opened:
                    assert len(opened.metadata() or {}) <= 1  # several are written in random order
    assert hashes[0] == hashes[1]


def refusal(plugin: type[Any], edit: Edit, model: Any, run: Run, folder: Path) -> EditError:
    with pytest.raises(EditError) as caught:
        plugin(plugin.Config()).export(edit, model, folder, run)
    assert not folder.exists()  # nothing is left half-written
    return caught.value


def test_what_the_formats_cannot_express(plugin: type[Any], model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    factors = LowRank(torch.ones(2, 32), torch.ones(32, 2), 2.0)
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[3, 4] = False
    sparse = Sparse(torch.tensor([1]), torch.tensor([1.0]), (32, 32))
    vae = "vae.encoder.mid_block.attentions.0.to_q.weight"
    words = "text_encoder.embeddings.token_embedding.weight"
    rows = model.network.get_parameter(words).shape[0]
    for parts, said in (
        ({TO_Q: attrs.evolve(factors, mask=mask)}, "masked weight by weight"),
        ({TO_Q: sparse}, "is sparse"),
        ({TO_Q: Replace(torch.ones(32, 32))}, "new tensor"),
        ({TO_Q: factors, vae: LowRank(torch.ones(1, 16), torch.ones(16, 1), 1.0)}, "no weight of"),
        ({words: LowRank(torch.ones(1, 32), torch.ones(rows, 1), 1.0)}, "no linear map"),
        ({"unet.conv_in.bias": LowRank(torch.ones(1, 1), torch.ones(16, 1), 1.0)}, "no weight of"),
        ({"unet.conv_in.bias": Sparse(torch.tensor([1]), torch.tensor([1.0]), (16,))}, "no weight of"),
    ):
        error = refusal(plugin, Edit(parts), model, run, tmp_path / "out")
        assert error.code == "VU-E070"
        assert said in error.problem
        assert all(word in error.remedy for word in ("native", "delta", "merged"))
        assert ("--refit-rank" in error.remedy) == (
            said in ("masked weight by weight", "is sparse")
        )  # what can be refitted


@pytest.mark.parametrize("plugin", [*LORA_FILES, Native, Delta, Merged], ids=lambda plugin: plugin.__name__)
def test_what_no_format_can_express(plugin: type[Any], model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    assert refusal(plugin, Edit({}), model, run, tmp_path / "out").code == "VU-E070"
    foreign = Edit({"unet.nothing.weight": LowRank(torch.ones(1, 2), torch.ones(2, 1), 1.0)})
    assert refusal(plugin, foreign, model, run, tmp_path / "out").code == "VU-E054"
    misshapen = Edit({TO_Q: LowRank(torch.ones(1, 3), torch.ones(32, 1), 1.0)})
    assert refusal(plugin, misshapen, model, run, tmp_path / "out").code == "VU-E054"


@pytest.mark.parametrize("plugin", [*LORA_FILES, Merged], ids=lambda plugin: plugin.__name__)
def test_formats_of_pipelines_refuse_other_models(plugin: type[Any], run: Run, tmp_path: Path) -> None:
    other: Any = SimpleNamespace(facts=SimpleNamespace(name="other"), network=torch.nn.Linear(2, 2))
    error = refusal(plugin, Edit({"weight": Replace(torch.ones(2, 2))}), other, run, tmp_path / "out")
    assert error.code == "VU-E070"
    assert "Stable Diffusion" in error.problem


def test_a_tensor_under_two_names(plugin: type[Any], run: Run, tmp_path: Path) -> None:
    """An adapter beside one of two modules that share a weight would leave the other as it was."""
    model = tied()
    edit = Edit({TO_Q: LowRank(torch.ones(2, 32), torch.ones(32, 2), 4.0)})
    error = refusal(plugin, edit, model, run, tmp_path / "out")
    assert (error.code, "same tensor" in error.problem) == ("VU-E070", True)


def tied() -> StableDiffusion:
    from vu_diffusers.tiny import tiny_model

    model = tiny_model()
    one = model.network.get_submodule(TO_Q.removesuffix(".weight"))
    other = model.network.get_submodule("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    other.weight = one.weight
    return model


def test_a_mask_of_ones_is_no_mask(plugin: type[Any], model: StableDiffusion, run: Run, tmp_path: Path) -> None:
    ones = torch.ones(32, 32, dtype=torch.bool)
    edit = Edit({TO_Q: LowRank(torch.ones(2, 32), torch.ones(32, 2), 4.0, ones)})
    assert exported(plugin, edit, model, run, tmp_path)["factors"] < 1e-5


def test_an_adapter_on_another_layer(
    plugin: type[Any], model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path
) -> None:
    """Also one that does nothing, which no output shows."""
    edit = make_edit(model, rank=2, alpha=6.0)
    name, part = next(iter(edit))
    more = attrs.evolve(edit, parts={**edit.parts, name: attrs.evolve(part, B=part.B * 0)})
    less = attrs.evolve(edit, parts={other: part for other, part in edit if other != name})
    exporter = plugin(plugin.Config())
    files = exporter.export(more, model, tmp_path, run)
    checks = {check.what: check for check in exporter.verify(files, less, model, run)}
    assert checks["denoiser"].passed
    assert checks["factors"].error == float("inf")


def test_the_file_of_diffusers(model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path) -> None:
    edit = make_edit(model, rank=2, alpha=1.0)
    (file,) = DiffusersLora(LoraConfig()).export(edit, model, tmp_path, run)
    assert file.name == lora_file.FILE
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    assert list(metadata) == ["lora_adapter_metadata"]
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"] == 2
    part: Any = edit.parts[TO_Q]
    stored = load_file(str(file))
    assert torch.equal(stored[TO_Q.replace(".weight", ".lora_A.weight")], part.A)
    assert torch.equal(stored[TO_Q.replace(".weight", ".lora_B.weight")], part.B * 0.5)  # alpha / r


def test_the_files_of_peft(model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path) -> None:
    exporter = Peft(LoraConfig())
    edit = make_edit(model, rank=2, alpha=6.0, targets=("to_q", "to_k"))
    more = make_edit(model, rank=3, alpha=0.5, targets=("conv_in",))
    edit = attrs.evolve(edit, parts={**edit.parts, **more.parts})
    files = exporter.export(edit, model, tmp_path / "one", run)
    assert [file.name for file in files] == [peft_folder.CONFIG, peft_folder.WEIGHTS]
    config = json.loads(files[0].read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 6.0)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"conv_in": 3}, {"conv_in": 0.5})
    assert config["target_modules"] == sorted(config["target_modules"])
    part: Any = edit.parts[TO_Q]
    stored = load_file(str(files[1]))
    key = f"base_model.model.{TO_Q.removeprefix('unet.').removesuffix('.weight')}"
    assert torch.equal(stored[f"{key}.lora_A.weight"], part.A)
    assert torch.equal(stored[f"{key}.lora_B.weight"], part.B)  # not folded: alpha stands in the configuration
    words = make_edit(model, rank=2, alpha=6.0, targets=("text_encoder.fc1",))
    places = exporter.export(words, model, tmp_path / "two", run)
    assert [file.relative_to(tmp_path / "two").parts[0] for file in places] == ["text_encoder"] * 2
    both = Edit({**edit.parts, **words.parts})
    places = exporter.export(both, model, tmp_path / "unet", run)
    assert {file.relative_to(tmp_path / "unet").parts[0] for file in places} == {"text_encoder", "unet"}
    assert "PeftModel.from_pretrained(pipe.unet, '.', subfolder='unet')" in exporter.usage(places, "base")


def test_the_file_of_kohya(model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path) -> None:
    edit = make_edit(model, rank=2, alpha=6.0, targets=("to_q", "text_encoder.out_proj", "text_encoder.q_proj"))
    (file,) = Kohya(LoraConfig()).export(edit, model, tmp_path, run)
    assert file.name == kohya_file.FILE
    stored = load_file(str(file))
    part: Any = edit.parts[TO_Q]
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    assert torch.equal(stored[f"{key}.lora_down.weight"], part.A)
    assert torch.equal(stored[f"{key}.lora_up.weight"], part.B)
    assert stored[f"{key}.alpha"].shape == ()
    assert stored["lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha"] == 6.0
    assert len(stored) == 3 * len(edit.parts)


def test_kohya_gives_all_layers_one_alpha(model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path) -> None:
    """diffusers takes the most frequent alpha for every attention layer, whatever stands beside it."""
    edit = make_edit(model, rank=2, alpha=1.0, targets=("to_q", "to_k"))
    more = make_edit(model, rank=2, alpha=6.0, targets=("to_out.0",))
    (file,) = Kohya(LoraConfig()).export(Edit({**edit.parts, **more.parts}), model, tmp_path, run)
    stored = load_file(str(file))
    assert {float(tensor) for name, tensor in stored.items() if name.endswith(".alpha")} == {1.0}
    name, part = next(iter(more.parts.items()))
    key = f"lora_unet_{name.removeprefix('unet.').removesuffix('.weight').replace('.', '_')}"
    assert torch.equal(stored[f"{key}.lora_up.weight"], part.B * 6)


def test_kohya_without_the_last_map_of_attention(
    model: StableDiffusion, make_edit: Any, run: Run, tmp_path: Path
) -> None:
    """diffusers tells attention of the text encoder by its last map, and drops the others silently without it."""
    edit = make_edit(model, rank=2, alpha=6.0, targets=("text_encoder.q_proj", "text_encoder.fc1"))
    error = refusal(Kohya, edit, model, run, tmp_path / "out")
    assert (error.code, "out_proj" in error.problem) == ("VU-E070", True)
    assert exported(DiffusersLora, edit, model, run, tmp_path / "diffusers")["factors"] < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("targets", [("to_q",), ("text_encoder.fc1",), ("to_q", "text_encoder.fc1")])
def test_usage_gives_the_edited_model(
    plugin: type[Any],
    targets: tuple[str, ...],
    make_edit: Any,
    pipelines: dict[tuple[str, str | None], Path],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: StableDiffusion,
) -> None:
    edit = make_edit(model, rank=2, alpha=6.0, targets=targets)
    exporter = plugin(plugin.Config())
    files = exporter.export(edit, model, tmp_path / "export", run)
    monkeypatch.chdir(tmp_path / "export")
    place: dict[str, Any] = {}
    exec(exporter.usage(files, str(pipelines[model.prediction, None])), place)
    pipe = place["pipe"]
    theirs = StableDiffusion.assemble(
        **{name: getattr(pipe, name) for name in ("unet", "text_encoder", "vae", "tokenizer", "scheduler")}
    )
    with apply_edit(model.network, edit):
        wanted = outputs(model)
    assert relative_error(outputs(theirs), wanted) < 1e-5 < relative_error(outputs(model), wanted)


def test_answers_of_a_model_that_can_do_little() -> None:
    classifier: Any = SimpleNamespace(
        facts=SimpleNamespace(resolution=8, generation={}),
        network=torch.nn.Linear(2, 2),
        classes=("a", "b", "c"),
        images=lambda batch: batch.data["images"],
        labels=lambda batch: batch.data["labels"],
        logits=lambda images: images.mean(dim=(2, 3)),
        features=lambda images: images.flatten(1),
    )
    said = answers(classifier)
    assert {what: tensor.shape for what, tensor in said.items()} == {"logits": (2, 3)}
    assert answers(SimpleNamespace(facts=None, network=torch.nn.Linear(2, 2))) == {}  # type: ignore[arg-type]


def test_limits_of_an_image() -> None:
    """Small effects have the limit of their precision, large ones a share of themselves."""
    gray = {"image": torch.full((2, 2, 3), 0.5)}
    weak, strong = Wanted(gray, 0.001), Wanted(gray, 0.1)
    (fine,) = comparison(gray, weak, torch.float32)
    assert (fine.what, fine.error, fine.limit) == ("image", 0.0, 1e-3)
    (half,) = comparison({"image": torch.full((2, 2, 3), 0.55)}, strong, torch.float32)
    assert half.limit == pytest.approx(IMAGE_SHARE * 0.1)
    assert not half.passed
    (lost,) = comparison({"image": torch.tensor(float("nan"))}, strong, torch.float32)
    assert not lost.passed


def test_effect_of_an_edit(model: StableDiffusion, make_edit: Any) -> None:
    wanted = wanted_of(model, make_edit(model, rank=4, alpha=8.0))
    assert wanted.effect == pytest.approx(float((wanted.answers["image"] - answers(model)["image"]).abs().mean()))
    assert wanted.effect > 0.01


def test_relative_error() -> None:
    assert relative_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])) == 1.0
