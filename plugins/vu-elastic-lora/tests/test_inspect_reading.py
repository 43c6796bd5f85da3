"""What `vu inspect` finds at a place: every key style, every configuration, every way to be no adapter."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import inspect_adapters as hand
import pytest
import torch
from inspect_adapters import BLOCK, CONV, OUT
from safetensors.torch import save_file

from vu_core import Edit, EditError, LowRank, Replace, Sparse
from vu_core.adapters import save_edit
from vu_elastic_lora.reading import read_adapter
from vu_elastic_lora.sparsity import report

NAMES = {
    "peft": (OUT.removeprefix("unet."), CONV.removeprefix("unet.")),
    "peft_named": (OUT.removeprefix("unet."), CONV.removeprefix("unet.")),
    "kohya": (f"lora_{OUT.replace('.', '_')}", f"lora_{CONV.replace('.', '_')}"),
}
FORMATS = {
    "vu": "edit of vu",
    "vu_run": "run of vu",
    "diffusers": "LoRA of diffusers",
    "diffusers_old": "LoRA of diffusers",
    "dotted": "LoRA of diffusers",
    "peft": "LoRA of peft",
    "peft_named": "LoRA of peft",
    "kohya": "LoRA in the style of kohya",
}


def refused(path: Path, code: str, *words: str) -> str:
    with pytest.raises(EditError) as caught:
        read_adapter(path)
    text = str(caught.value)
    assert caught.value.code == code, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return text


def alphas(adapter) -> dict[str, float]:
    return {change.module: change.part.alpha for change in adapter.changes}


@pytest.mark.parametrize("style", hand.STYLES)
def test_every_style_tells_the_same(style, tmp_path):
    adapter = read_adapter(hand.STYLES[style](tmp_path))
    found = {change.module: report(change) for change in adapter.changes}
    assert adapter.format == FORMATS[style]
    assert adapter.notes == ()
    names = NAMES.get(style, (OUT, CONV))
    assert sorted(found) == sorted(names)
    for name, key in zip(names, ("out", "conv"), strict=True):
        each = found[name]
        golden = hand.GOLDEN[key]
        assert (each.kind, each.rank, each.alpha, each.gamma) == ("low-rank", *list(golden.values())[:3])
        assert each.zero_percent == pytest.approx(golden["zero_percent"], rel=1e-12)
        assert each.norm == pytest.approx(golden["norm"], rel=1e-12)
        assert each.density is None


def test_the_file_itself_and_the_folder_around_it_are_the_same_adapter(tmp_path):
    folder = hand.peft(tmp_path)
    of_file, of_folder = read_adapter(folder / "adapter_model.safetensors"), read_adapter(folder)
    assert alphas(of_file) == alphas(of_folder)
    assert of_file.file == of_folder.file


def test_factors_of_convolutions_become_matrices(tmp_path):
    part = next(change.part for change in read_adapter(hand.kohya(tmp_path)).changes if "conv" in change.module)
    assert (tuple(part.A.shape), tuple(part.B.shape)) == ((1, 8), (3, 1))
    assert torch.equal(part.A.reshape(1, 2, 2, 2), hand.CONV_A)


def test_what_an_edit_of_vu_says_of_itself_is_kept(tmp_path):
    adapter = read_adapter(hand.vu(tmp_path))
    assert (adapter.method, adapter.base, adapter.facts["base_model"]) == ("fade", "f" * 64, "canvas-diffusion")


def test_all_parts_of_an_edit_with_the_bytes_that_store_them(tmp_path):
    mask = torch.tensor([[True, False, True], [False, True, True], [True, True, False]])
    parts = {
        "unet.a.weight": LowRank(torch.ones(2, 3), torch.ones(3, 2), 2.0, mask),
        "unet.b.bias": Sparse(torch.tensor([0, 2]), torch.tensor([1.0, 2.0]), (4,)),
        "unet.c.weight": Replace(torch.ones(2, 2, dtype=torch.float16)),
    }
    save_edit(Edit(parts), tmp_path / "mine.safetensors")
    changes = {change.module: change for change in read_adapter(tmp_path / "mine.safetensors").changes}
    assert sorted(changes) == ["unet.a", "unet.b.bias", "unet.c"]
    assert torch.equal(changes["unet.a"].part.mask, mask)
    assert changes["unet.a"].bytes == 2 * 3 * 4 + 3 * 2 * 4 + 2  # nine bits are two bytes
    assert changes["unet.b.bias"].bytes == 2 * 4 + 2 * 4  # indices lie as int32
    assert changes["unet.c"].bytes == 4 * 2


def test_bytes_are_those_of_the_file_alpha_included(tmp_path):
    changes = read_adapter(hand.dotted(tmp_path)).changes
    assert {change.module: change.bytes for change in changes} == {OUT: (6 + 8 + 1) * 4, CONV: (8 + 3) * 4 + 2}


def test_an_edit_without_parts_is_read_and_said_to_change_nothing(tmp_path):
    save_edit(Edit({}, may_be_identity=True), tmp_path / "edit.safetensors")
    adapter = read_adapter(tmp_path)
    assert adapter.changes == ()
    assert adapter.notes == ("The edit changes nothing: it has no parts.",)


def pair(name: str, rank: int = 2, style: str = "lora_{side}") -> dict[str, torch.Tensor]:
    return {
        f"{name}.{style.format(side='A')}.weight": torch.ones(rank, 3),
        f"{name}.{style.format(side='B')}.weight": torch.ones(4, rank),
    }


def diffusers_file(folder: Path, tensors: dict, configuration: dict | str | None = None) -> Path:
    text = configuration if isinstance(configuration, str | None) else json.dumps(configuration)
    return hand.save(folder / "file.safetensors", tensors, text and {"lora_adapter_metadata": text})


@pytest.mark.parametrize("style", ["diffusers", "kohya", "peft"])
def test_without_a_word_about_alpha_it_is_the_rank(style, tmp_path):
    if style == "kohya":
        down, up = torch.ones(3, 2), torch.ones(2, 3)
        tensors = {"lora_te_a.lora_down.weight": down, "lora_te_a.lora_up.weight": up}
    else:
        tensors = pair("base_model.model.a" if style == "peft" else "unet.a", rank=3)
    adapter = read_adapter(hand.save(tmp_path / "a.safetensors", tensors))
    assert list(alphas(adapter).values()) == [3.0]
    assert adapter.notes == ("No alpha is written for it: alpha = rank, as readers of such files take it.",)


def test_a_component_without_configuration_has_alpha_equal_to_the_rank(tmp_path):
    tensors = pair("unet.a") | pair("text_encoder.b")
    adapter = read_adapter(diffusers_file(tmp_path, tensors, {"unet.r": 2, "unet.lora_alpha": 7}))
    assert alphas(adapter) == {"unet.a": 7.0, "text_encoder.b": 2.0}
    assert adapter.notes[0].startswith("No alpha is written for 1 of 2 modules:")


def test_a_configuration_without_component_holds_for_all_modules(tmp_path):
    adapter = read_adapter(diffusers_file(tmp_path, pair("conv_in"), {"r": 2, "lora_alpha": 5}))
    assert alphas(adapter) == {"conv_in": 5.0}


def test_patterns_are_ends_of_names_in_whole_words_and_the_first_that_fits_wins(tmp_path):
    tensors = pair("unet.x.to_q") | pair("unet.y.to_q") | pair("unet.into_q") | pair("unet.to_k", rank=3)
    said = {"r": 2, "lora_alpha": 1, "rank_pattern": {"to_k": 3}, "alpha_pattern": {r"y\.to_q": 6, "to_q": 4}}
    adapter = read_adapter(diffusers_file(tmp_path, tensors, {f"unet.{key}": value for key, value in said.items()}))
    assert alphas(adapter) == {"unet.x.to_q": 4.0, "unet.y.to_q": 6.0, "unet.into_q": 1.0, "unet.to_k": 1.0}


def test_rslora_keeps_its_strength(tmp_path):
    adapter = read_adapter(hand.peft(tmp_path, use_rslora=True))
    gammas = {change.module: change.part.alpha / change.part.rank for change in adapter.changes}
    assert gammas == {OUT.removeprefix("unet."): pytest.approx(4 / math.sqrt(2)), "conv_in": 0.5}
    assert "use_rslora" in adapter.notes[0]


def test_the_old_names_of_a_text_encoder_become_those_of_its_layers(tmp_path):
    layer = "text_encoder.text_model.encoder.layers.0.self_attn"
    old = pair(f"{layer}.to_out_lora", style="{side}") | pair(f"{layer}.k_proj.lora_linear_layer", style="{side}")
    tensors = {name.replace(".A.", ".down.").replace(".B.", ".up."): tensor for name, tensor in old.items()}
    found = alphas(read_adapter(hand.save(tmp_path / "old.safetensors", tensors)))
    assert sorted(found) == [f"{layer}.k_proj", f"{layer}.out_proj"]


def test_names_with_lora_inside_are_no_reason_to_split_there(tmp_path):
    tensors = {"lora_unet_lora_down_x.lora_down.weight": torch.ones(1, 2)}
    tensors["lora_unet_lora_down_x.lora_up.weight"] = torch.ones(2, 1)
    assert list(alphas(read_adapter(hand.save(tmp_path / "a.safetensors", tensors)))) == ["lora_unet_lora_down_x"]


def test_a_known_file_is_found_among_others(tmp_path):
    hand.save(tmp_path / "attribution.safetensors", {"unet.a": torch.ones(2)})
    assert read_adapter(hand.vu(tmp_path)).file == tmp_path / "edit.safetensors"


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_of_every_precision(precision, tmp_path):
    tensors = {name: tensor.to(precision) for name, tensor in pair("unet.a").items()}
    change = read_adapter(hand.save(tmp_path / "a.safetensors", tensors)).changes[0]
    assert change.bytes == 14 * precision.itemsize
    assert report(change).norm == pytest.approx(2 * math.sqrt(12))


# No adapter at this place


def test_what_is_not_there_is_not_looked_for_elsewhere(tmp_path):
    refused(tmp_path / "owner" / "name", "VU-E096", "owner/name", "downloads nothing")


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "VU-E096", str(tmp_path), "no adapter")


def test_a_folder_of_folders_says_which_of_them_to_name(tmp_path):
    for name in ("super", "sub", "other"):
        (tmp_path / name).mkdir()
    hand.vu(tmp_path / "super")
    hand.vu(tmp_path / "sub")
    assert "Name one of its folders: sub, super." in refused(tmp_path, "VU-E096")


def test_two_files_that_may_be_meant(tmp_path):
    hand.vu(tmp_path)
    hand.diffusers(tmp_path)
    refused(tmp_path, "VU-E096", "edit.safetensors, pytorch_lora_weights.safetensors", "Name one of the files")


def test_a_run_without_an_edit_is_not_searched_for_other_files(tmp_path):
    (tmp_path / "run.toml").write_text("")
    hand.kohya(tmp_path)
    refused(tmp_path, "VU-E096", "no edit yet", f"vu unlearn --resume {tmp_path}")


# Pickles


@pytest.mark.parametrize("name", ["adapter_model.bin", "a.pt", "a.PTH", "a.ckpt", "a.pkl"])
def test_a_pickle_is_refused_by_its_name(name, tmp_path):
    (tmp_path / name).write_bytes(hand.vu(tmp_path).joinpath("edit.safetensors").read_bytes())  # whatever is in it
    refused(tmp_path / name, "VU-E097", name, "does not open it")


def test_a_folder_with_nothing_but_a_pickle(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    refused(tmp_path, "VU-E097", "adapter_model.bin")


# Damaged files


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.mark.parametrize("size", [0, 5, 200, -4])
def test_a_file_that_was_cut(size, tmp_path):
    refused(cut(hand.kohya(tmp_path), size), "VU-E098", "style.safetensors", "damaged")


def test_a_text_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no adapter at all, but quite a long text")
    refused(path, "VU-E098", "notes.txt")


def test_a_pickle_under_another_name_is_not_opened_as_one(tmp_path):
    path = tmp_path / "a.safetensors"
    torch.save({"unet.a.lora_A.weight": torch.ones(1, 1)}, path)
    refused(path, "VU-E098", "a.safetensors")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nobody can be kept from reading there")
def test_a_file_that_may_not_be_read(tmp_path):
    path = hand.kohya(tmp_path)
    path.chmod(0)
    refused(path, "VU-E098", "style.safetensors")


def test_a_name_that_no_system_allows(tmp_path):
    refused(tmp_path / ("x" * 5000), "VU-E098", "cannot be read")


def test_an_edit_of_vu_with_a_changed_number(tmp_path):
    path = hand.vu(tmp_path) / "edit.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    refused(path, "VU-E034", "edit.safetensors")


def test_an_edit_of_vu_with_a_header_that_has_no_end(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "edit.safetensors", metadata={"vu": "[" * 100_000})
    refused(tmp_path / "edit.safetensors", "VU-E031", "edit.safetensors")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "no JSON"),
        ("[1]", "no table"),
        ("[" * 100_000, "no JSON"),
        ({"r": 2}, "'lora_alpha' of its configuration is None"),
        ({"lora_alpha": 2}, "'r' of its configuration is None"),
        ({"r": 2, "lora_alpha": "4"}, "'lora_alpha' of its configuration is '4'"),
        ({"r": 2, "lora_alpha": True}, "'lora_alpha' of its configuration is True"),
        ('{"r": 2, "lora_alpha": NaN}', "'lora_alpha' of its configuration is nan"),
        ({"r": 2, "lora_alpha": 2, "alpha_pattern": {"a": None}}, "'a' of its configuration is None"),
        ({"r": 2, "lora_alpha": 2, "rank_pattern": ["a"]}, "no tables"),
        ({"r": 2, "lora_alpha": 2, "rank_pattern": {"(": 3}}, "'(' of its configuration is no pattern"),
    ],
)
@pytest.mark.parametrize("place", ["metadata", "beside"])
def test_a_damaged_configuration(place, said, words, tmp_path):
    if place == "metadata":
        refused(diffusers_file(tmp_path, pair("a"), said), "VU-E098", "file.safetensors", words)
        return
    hand.save(tmp_path / "adapter_model.safetensors", pair("base_model.model.a"))
    (tmp_path / "adapter_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    refused(tmp_path, "VU-E098", "adapter_config.json", words)


def test_a_configuration_that_is_no_text(tmp_path):
    hand.peft(tmp_path).joinpath("adapter_config.json").write_bytes(b"\xff\xfe{}")
    refused(tmp_path, "VU-E098", "adapter_config.json")


# Whole files that hold something else

A, B = torch.ones(2, 3), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, ["holds no tensors at all"]),
        ({"a.lora_A.weight": A}, ["'a.lora_A.weight' stands alone", "B (up) of 'a' is missing"]),
        ({"a.lora_up.weight": B}, ["'a.lora_up.weight' stands alone", "A (down) of 'a' is missing"]),
        (pair("a") | {"b.alpha": torch.tensor(1.0)}, ["'b.alpha' stands alone", "both factors of 'b'"]),
        (pair("a") | {"a.alpha": torch.ones(2)}, ["alpha of 'a' has the shape (2,)"]),
        ({"a.lora_A.weight": A, "a.lora_B.weight": torch.ones(4, 3)}, ["a.lora_A.weight", "(2, 3)", "(4, 3)"]),
        ({"a.lora_A.weight": A[:, 0], "a.lora_B.weight": B}, ["(2,)", "no pair of factors"]),
        ({"a.lora_A.weight": A, "a.lora_B.weight": torch.ones(4, 2, 3, 3)}, ["(4, 2, 3, 3)", "no pair of factors"]),
        ({"a.lora_A.weight": A[:0], "a.lora_B.weight": B[:, :0]}, ["(0, 3)", "no pair of factors"]),
        ({"a.lora_A.weight": A.to(torch.int8), "a.lora_B.weight": B}, ["torch.int8", "quantisation"]),
        (pair("a") | {"a.lora_up.weight": B}, ["'a.lora_B.weight' and 'a.lora_up.weight'", "the same tensor"]),
        (pair("a") | pair("a", style="lora_{side}.other"), ["2 adapters: (without a name), other"]),
        (pair("a") | {"conv.weight": A}, ["1 of the 3 tensors", "'conv.weight'"]),
        ({f"model.{n}.weight": A for n in range(5)}, ["no adapter", "5 tensors", "'model.0.weight'", "a whole model"]),
        (pair("a") | {"a.lora_magnitude_vector": B}, ["DoRA", "'a.lora_magnitude_vector'"]),
        (pair("a") | {"a.dora_scale": B}, ["DoRA", "'a.dora_scale'"]),
        (pair("a") | {"a.lora_B.bias": B}, ["bias of its own", "'a.lora_B.bias'"]),
        (pair("a") | {"a.lora_mid.weight": B}, ["third factor", "'a.lora_mid.weight'"]),
        ({"lora_unet_a.hada_w1_a": A, "lora_unet_a.alpha": torch.ones(1)}, ["LoHa", "'lora_unet_a.hada_w1_a'"]),
        ({"lora_unet_a.lokr_w1": A}, ["LoKr", "'lora_unet_a.lokr_w1'"]),
        ({"a.lora_A.weight": A * math.nan, "a.lora_B.weight": B}, ["'a' holds numbers that are not finite"]),
        (pair("a") | {"a.alpha": torch.tensor(math.inf)}, ["'a' holds numbers that are not finite"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_whole_file_that_is_no_lora(tensors, words, tmp_path):
    text = refused(hand.save(tmp_path / "file.safetensors", tensors), "VU-E099", *words)
    assert f"where: {tmp_path / 'file.safetensors'}" in text


@pytest.mark.parametrize(
    "part",
    [
        LowRank(torch.ones(1, 2), torch.tensor([[math.inf]]), 1.0),
        Sparse(torch.tensor([0]), torch.tensor([math.nan]), (2,)),
        Replace(torch.tensor([math.nan])),
    ],
)
def test_an_edit_with_numbers_that_are_not_finite(part, tmp_path):
    save_edit(Edit({"unet.a.weight": part}), tmp_path / "edit.safetensors")
    refused(tmp_path, "VU-E099", "'unet.a' holds numbers that are not finite")


def test_a_rank_that_the_configuration_contradicts(tmp_path):
    path = diffusers_file(tmp_path, pair("unet.a"), {"unet.r": 4, "unet.lora_alpha": 4})
    refused(path, "VU-E099", "'unet.a' has rank 2", "the metadata of 'file.safetensors' says 4")


def test_two_alphas_that_contradict_each_other(tmp_path):
    tensors = pair("unet.a") | {"unet.a.alpha": torch.tensor(3.0)}
    path = diffusers_file(tmp_path, tensors, {"unet.r": 2, "unet.lora_alpha": 4})
    refused(path, "VU-E099", "alpha of 'unet.a' is not clear", "its tensor says 3", "says 4")


def test_two_alphas_that_agree(tmp_path):
    tensors = pair("unet.a") | {"unet.a.alpha": torch.tensor(4.0)}
    assert alphas(read_adapter(diffusers_file(tmp_path, tensors, {"unet.r": 2, "unet.lora_alpha": 4}))) == {
        "unet.a": 4.0
    }


@pytest.mark.parametrize(("others", "word"), [({"peft_type": "LOHA"}, "LOHA"), ({"use_dora": True}, "DoRA")])
def test_an_adapter_of_peft_that_is_no_lora(others, word, tmp_path):
    refused(hand.peft(tmp_path, **others), "VU-E099", "adapter_config.json describes", word)


def test_nothing_is_loaded_from_a_whole_model(tmp_path, monkeypatch):
    from vu_elastic_lora import reading_lora

    path = hand.save(tmp_path / "model.safetensors", {f"model.{n}.weight": A for n in range(3)})

    class Watched:
        loaded = 0

        def keys(self):
            return [f"model.{n}.weight" for n in range(3)]

        def metadata(self):
            return None

        def get_tensor(self, name):
            self.loaded += 1
            return A

    stored = Watched()
    with pytest.raises(EditError):
        reading_lora.read_lora(path, stored)
    assert stored.loaded == 0


def test_the_module_of_an_attention_is_the_layer_and_not_its_processor(tmp_path):
    modules = {change.module for change in read_adapter(hand.diffusers_old(tmp_path)).changes}
    assert f"unet.{BLOCK}.to_out.0" in modules
