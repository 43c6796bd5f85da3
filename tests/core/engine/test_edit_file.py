import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vu_core import Edit, EditError, LowRank, Replace, Sparse, digest
from vu_core.adapters import edit_digest, load_edit, save_edit


def make_edit(**changes):
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 5, generator=g) < 0.5
    parts = {
        "unet.a.weight": LowRank(torch.randn(2, 5, generator=g), torch.randn(6, 2, generator=g), 8.0, mask),
        "unet.b.weight": LowRank(torch.randn(3, 4, generator=g), torch.randn(7, 3, generator=g), 0.5),
        "unet.c.weight": Sparse(torch.tensor([1, 5, 11]), torch.tensor([0.5, -1.0, 2.0]), (3, 4)),
        "unet.c.bias": Replace(torch.randn(3, generator=g).to(torch.bfloat16)),
        "unet.c.counter": Replace(torch.tensor(7)),
    }
    fields = {"base": "abc", "parents": ("p1", "p2"), "method": "fade", "facts": {"k": [1, 2], "share": 0.1}}
    return Edit(parts, **{**fields, **changes})


def test_everything_comes_back(tmp_path):
    edit, path = make_edit(may_be_identity=True), tmp_path / "deep" / "edit.safetensors"
    save_edit(edit, path)
    back = load_edit(path)
    assert (back.base, back.parents, back.method, back.may_be_identity) == ("abc", ("p1", "p2"), "fade", True)
    assert back.facts == edit.facts
    assert list(back.parts) == sorted(edit.parts)
    a, b, c = (back.parts[f"unet.{n}.weight"] for n in "abc")
    for mine, theirs in ((edit.parts["unet.a.weight"], a), (edit.parts["unet.b.weight"], b)):
        assert torch.equal(mine.A, theirs.A)
        assert torch.equal(mine.B, theirs.B)
        assert mine.alpha == theirs.alpha
    assert torch.equal(a.mask, edit.parts["unet.a.weight"].mask)
    assert b.mask is None
    assert (c.indices.dtype, c.indices.tolist(), c.values.tolist(), c.shape) == (
        torch.int64,
        [1, 5, 11],
        [0.5, -1.0, 2.0],
        (3, 4),
    )
    assert back.parts["unet.c.bias"].tensor.dtype == torch.bfloat16
    assert back.parts["unet.c.counter"].tensor.item() == 7
    assert edit_digest(back) == edit_digest(edit)


def test_one_tensor_under_two_names_is_stored_twice(tmp_path):
    tensor = torch.arange(6.0)
    edit = Edit({"a": Replace(tensor), "b": Replace(tensor), "c": Replace(tensor[2:4])})
    save_edit(edit, tmp_path / "edit.safetensors")
    back = load_edit(tmp_path / "edit.safetensors")
    assert [back.parts[name].tensor.tolist() for name in "abc"] == [[0, 1, 2, 3, 4, 5]] * 2 + [[2, 3]]


def test_masks_are_packed_and_there_is_one_metadata_key(tmp_path):
    path = tmp_path / "edit.safetensors"
    save_edit(make_edit(), path)
    with safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == ["vu"]
        assert file.get_tensor("unet.a.weight.mask").shape == (4,)
        assert file.get_tensor("unet.c.weight.indices").dtype == torch.int32


def test_the_head_tells_rank_and_shape_of_a_low_rank_part(tmp_path):
    path = tmp_path / "edit.safetensors"
    save_edit(make_edit(), path)
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["vu"])["parts"]["unet.a.weight"]
    assert told == {"kind": "low-rank", "alpha": 8.0, "rank": 2, "shape": [6, 5], "masked": True}


def test_equal_edits_have_equal_bytes_in_every_process(tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        save_edit(make_edit(), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    program = (
        "import sys; from pathlib import Path; from vu_core.adapters import load_edit, save_edit;"
        "save_edit(load_edit(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", program, paths[0], tmp_path / "again.safetensors"], check=True)
    assert (tmp_path / "again.safetensors").read_bytes() == paths[0].read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "x"},
        {"parents": ("p2", "p1")},
        {"method": "munba"},
        {"facts": {}},
        {"may_be_identity": True},
        {"parts": {}},
    ],
)
def test_the_digest_sees_every_field(changes):
    edit = make_edit()
    changed = Edit(**{**{f: getattr(edit, f) for f in ("parts", "base", "parents", "method", "facts")}, **changes})
    assert edit_digest(changed) != edit_digest(edit)


def test_the_digest_sees_every_tensor():
    digest = edit_digest(make_edit())
    for name in make_edit().parts:
        edit = make_edit()
        part = edit.parts[name]
        tensor = {LowRank: "B", Sparse: "values", Replace: "tensor"}[type(part)]
        getattr(part, tensor).flatten()[0] += 1
        assert edit_digest(edit) != digest


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "edit.safetensors"
    save_edit(make_edit(), path)
    before = path.read_bytes()
    with pytest.raises(EditError) as error:
        save_edit(make_edit(facts={"bad": object()}), path)
    assert error.value.code == "VU-E033"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_facts_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(EditError, match="JSON"):
        save_edit(make_edit(facts={"x": float("nan")}), tmp_path / "e.safetensors")


def rewritten(path, tensors=lambda t: t, header=lambda h: h, signed=True):
    with safe_open(path, framework="pt") as file:
        loaded = tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        head = header(json.loads(file.metadata()["vu"]))
    if signed:
        head["sha256"] = signature(head, loaded)
    save_file(loaded, path, metadata={"vu": json.dumps(head)})


def signature(header, tensors):
    """The hash as the documentation of the format describes it."""
    told = {key: value for key, value in header.items() if key != "sha256"}
    parts = [json.dumps(told, sort_keys=True, separators=(",", ":"))]
    for name, tensor in sorted(tensors.items()):
        raw = bytes(tensor.flatten().view(torch.uint8).tolist()) if tensor.numel() else b""
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), raw]
    return digest(*parts)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def part(name, **changes):
    return lambda header: {**header, "parts": {**header["parts"], name: {**header["parts"][name], **changes}}}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(b"not safetensors"), "damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:-7]), "damaged"),
        (lambda p: save_file({"a": torch.ones(1)}, p), "without the header"),
        (lambda p: save_file({"a": torch.ones(1)}, p, metadata={"vu": "{"}), "damaged"),
        (lambda p: rewritten(p, without("unet.b.weight.B")), "do not fit"),
        (lambda p: rewritten(p, lambda t: {**t, "unet.b.weight.B": torch.ones(7, 9)}), "do not fit"),
        (
            lambda p: rewritten(
                p, lambda t: {**t, "unet.b.weight.A": t["unet.b.weight.A"][:0], "unet.b.weight.B": torch.ones(7, 0)}
            ),
            "do not fit",
        ),
        (lambda p: rewritten(p, lambda t: {**t, "unet.a.weight.mask": torch.ones(9, dtype=torch.uint8)}), "do not fit"),
        (lambda p: rewritten(p, lambda t: {**t, "unet.c.weight.indices": torch.tensor([1, 5, 12])}), "do not fit"),
        (lambda p: rewritten(p, header=part("unet.a.weight", rank=3)), "rank 3"),
        (lambda p: rewritten(p, header=part("unet.a.weight", shape=[5, 6])), "shape [5, 6]"),
        (lambda p: rewritten(p, header=lambda h: {k: v for k, v in h.items() if k != "parts"}), "do not fit"),
        (lambda p: rewritten(p, header=lambda h: {**h, "parts": {"x": {"kind": "odd"}}}), "unknown kind"),
    ],
)
def test_unreadable_files_are_named_with_a_reason(damage, words, tmp_path):
    path = tmp_path / "edit.safetensors"
    save_edit(make_edit(), path)
    damage(path)
    with pytest.raises(EditError) as error:
        load_edit(path)
    assert error.value.code == "VU-E031"
    assert words in str(error.value)
    assert str(path) in str(error.value)


def flipped(path):
    """Flip one bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda p: rewritten(p, lambda t: {**t, "unet.c.weight.values": t["unet.c.weight.values"] * 2}, signed=False),
        lambda p: rewritten(p, lambda t: {**t, "unet.c.counter.tensor": torch.tensor(7.0)}, signed=False),
        lambda p: rewritten(p, lambda t: {**t, "unet.b.weight.A": t["unet.b.weight.A"].reshape(4, 3)}, signed=False),
        lambda p: rewritten(p, lambda t: {**t, "more": torch.ones(1)}, signed=False),
        lambda p: rewritten(p, without("unet.c.bias.tensor"), signed=False),
        lambda p: rewritten(p, header=lambda h: {**h, "base": "another"}, signed=False),
        lambda p: rewritten(p, header=lambda h: {k: v for k, v in h.items() if k != "sha256"}, signed=False),
        lambda p: rewritten(p, header=lambda h: {**h, "sha256": "0" * 64}, signed=False),
    ],
)
def test_a_file_notices_its_own_damage(damage, tmp_path):
    path = tmp_path / "edit.safetensors"
    save_edit(make_edit(), path)
    rewritten(path)
    load_edit(path)
    damage(path)
    with pytest.raises(EditError, match="damaged") as error:
        load_edit(path)
    assert error.value.code == "VU-E034"
    assert error.value.where == str(path)


def test_facts_with_numbers_as_keys_come_back(tmp_path):
    path = tmp_path / "edit.safetensors"
    save_edit(make_edit(facts={"kept": {2: "b", 10: "a"}}), path)
    assert load_edit(path).facts == {"kept": {"2": "b", "10": "a"}}


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "edit.safetensors"
    save_edit(make_edit(), path)
    rewritten(path, header=lambda h: {**h, "format": 2})
    with pytest.raises(EditError) as error:
        load_edit(path)
    assert error.value.code == "VU-E032"
