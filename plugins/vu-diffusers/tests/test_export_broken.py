"""The self-test of every exporter is tested: files that are broken in just one way are not accepted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vu_core import Edit, EditError, LowRank, Run
from vu_core.adapters import load_edit, save_edit
from vu_diffusers.delta_file import Delta
from vu_diffusers.kohya_file import Kohya
from vu_diffusers.lora_file import DiffusersLora
from vu_diffusers.lora_layers import largest
from vu_diffusers.merged import Merged
from vu_diffusers.native import Native
from vu_diffusers.peft_folder import CONFIG, Peft
from vu_diffusers.stable_diffusion import StableDiffusion
from vu_diffusers.tiny import tiny_model

TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def small() -> StableDiffusion:
    return tiny_model()


@pytest.fixture
def edit(small: StableDiffusion, make_edit: Any) -> Edit:
    """Rank and alpha as far apart as A and B in shape: nothing can be taken for something else unnoticed."""
    wide = make_edit(small, rank=2, alpha=6.0, targets=("to_q", "to_k", "to_out.0"))
    other = make_edit(small, rank=3, alpha=1.0, targets=("conv1",))
    return Edit({**wide.parts, **other.parts}, base="b")


def weights(files: tuple[Path, ...]) -> Path:
    """The file that carries the change."""
    (file,) = [
        path for path in files if path.suffix == ".safetensors" and path.parent.name not in ("vae", "text_encoder")
    ]
    return file


def rewrite(files: tuple[Path, ...], change: Callable[[Tensors], Tensors]) -> None:
    file = weights(files)
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    save_file(change(load_file(str(file))), str(file), metadata=metadata)


def each(words: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    """Change the tensors whose names contain the words."""
    return lambda tensors: {n: change(t).contiguous() if words in n else t for n, t in tensors.items()}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def without(words: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if words not in name}
        assert len(kept) < len(tensors)
        return kept

    return change


def first_only(words: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    """Change one tensor whose name contains the words, as little as a single layer shows."""

    def one(tensors: Tensors) -> Tensors:
        name = min(name for name in tensors if words in name)
        return {**tensors, name: change(tensors[name]).contiguous()}

    return one


def exchanged(one: str, other: str) -> Callable[[Tensors], Tensors]:
    """Give each of two factors the name of the other, in the shapes that belong to the names."""

    def change(tensors: Tensors) -> Tensors:
        new = dict(tensors)
        for name, tensor in tensors.items():
            if one in name and tensors[name.replace(one, other)].numel() == tensor.numel():
                twin = tensors[name.replace(one, other)]
                new[name], new[name.replace(one, other)] = (
                    twin.t().reshape(tensor.shape),
                    tensor.t().reshape(twin.shape),
                )
        return {name: tensor.contiguous() for name, tensor in new.items()}

    return change


def configured(**changes: Any) -> Callable[[tuple[Path, ...]], None]:
    """Change the configuration of an adapter of peft."""

    def change(files: tuple[Path, ...]) -> None:
        (file,) = [path for path in files if path.name == CONFIG]
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def edited(change: Callable[[LowRank], LowRank] | None) -> Callable[[tuple[Path, ...]], None]:
    """Write another edit with a right hash; without a change, one that lacks a layer."""

    def write(files: tuple[Path, ...]) -> None:
        edit = load_edit(files[0])
        parts: Any = {name: change(part) if change else part for name, part in edit}  # type: ignore[arg-type]
        if change is None:
            parts.pop(f"unet.{TO_Q}.weight")
        save_edit(attrs.evolve(edit, parts=parts), files[0])

    return write


def lora(down: str, up: str, prefix: str, layer: str) -> dict[str, Callable[[Tensors], Tensors]]:
    """What can be wrong in any file with factors."""
    return {
        "half strength": each(up, lambda t: t / 2),
        "scale twice": each(up, lambda t: t * 3),
        "flipped sign": each(down, lambda t: -t),
        "one flipped sign": first_only(up, lambda t: -t),
        "A and B swapped": exchanged(down, up),
        "other prefix": renamed(prefix, "other" + prefix),
        "no prefix": renamed(prefix, ""),
        "missing layer": without(layer),
        "missing factor": without(f"{layer}{up}" if up.startswith(".") else up),
        "not finite": first_only(up, lambda t: t * float("nan")),
        "other order": first_only(down, lambda t: t.flip(1)),
    }


def nothing(tensors: Tensors) -> Tensors:
    return {"nothing": torch.zeros(1)}


KOHYA = f"lora_unet_{TO_Q.replace('.', '_')}"
STORED: Mapping[type[Any], Mapping[str, Callable[[Tensors], Tensors]]] = {
    DiffusersLora: {**lora(".lora_A", ".lora_B", "unet.", TO_Q), "nothing": nothing},
    Peft: {**lora(".lora_A", ".lora_B", "base_model.model.", TO_Q), "nothing": nothing},
    Kohya: {
        **lora(".lora_down", ".lora_up", "lora_unet_", KOHYA),
        "alpha is the rank": each(".alpha", lambda t: torch.full_like(t, 2.0)),
        "one alpha is the rank": first_only(f"{KOHYA}.alpha", lambda t: torch.full_like(t, 2.0)),
        "alpha lost": without(".alpha"),
        "one alpha lost": without(f"{KOHYA}.alpha"),
        "alpha of a list": each(".alpha", lambda t: t[None]),
        "nothing": nothing,
    },
    Delta: {
        "half strength": each(".values", lambda t: t / 2),
        "flipped sign": each(".values", lambda t: -t),
        "one number": first_only(
            ".values", lambda t: t + torch.nn.functional.one_hot(torch.tensor(0), t.numel()).reshape(t.shape)
        ),
        "missing layer": without(TO_Q),
        "other prefix": renamed("unet.", "other."),
        "not finite": first_only(".values", lambda t: t * float("nan")),
        "nothing": nothing,
    },
    Merged: {
        "half strength": each(TO_Q, lambda t: t * 0.9),
        "another layer": first_only("time_embedding.linear_1.weight", lambda t: t + 1e-4),
        "missing layer": without(TO_Q),
        "other prefix": renamed("down_blocks", "other_blocks"),
        "not finite": first_only(TO_Q, lambda t: t * float("nan")),
        "nothing": nothing,
    },
}

OTHERWISE: Mapping[type[Any], Mapping[str, Callable[[tuple[Path, ...]], None]]] = {
    Native: {
        "half strength": edited(lambda part: attrs.evolve(part, alpha=part.alpha / 2)),
        "flipped sign": edited(lambda part: attrs.evolve(part, A=-part.A)),
        "missing layer": edited(None),
        "no hash": lambda files: rewrite(files, each(".A", lambda t: t * 2)),
        "not finite": edited(lambda part: attrs.evolve(part, B=part.B * float("nan"))),
    },
    Peft: {
        "alpha is the rank": configured(lora_alpha=2),
        "no other ranks": configured(rank_pattern={}),
        "no other alphas": configured(alpha_pattern={}),
        "other modules": configured(target_modules=["to_q"]),
        "other component": configured(auto_mapping={"base_model_class": "CLIPTextModel"}),
        "unknown component": configured(auto_mapping={"base_model_class": "Other"}),
        "unknown kind": configured(peft_type="OTHER"),
        "other scale": configured(use_rslora=True),
    },
    Merged: {
        "other schedule": lambda files: _reschedule(files),
        "no index": lambda files: next(path for path in files if path.name == "model_index.json").unlink(),
    },
}


def _reschedule(files: tuple[Path, ...]) -> None:
    (file,) = [path for path in files if path.name == "scheduler_config.json"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "beta_end": 0.5}))


def cases() -> Iterator[Any]:
    for plugin, faults in STORED.items():
        for name, fault in faults.items():
            yield pytest.param(plugin, lambda files, fault=fault: rewrite(files, fault), id=f"{plugin.__name__}-{name}")
    for plugin, others in OTHERWISE.items():
        for name, other in others.items():
            yield pytest.param(plugin, other, id=f"{plugin.__name__}-{name}")
    for plugin in (Native, DiffusersLora, Peft, Kohya, Merged, Delta):
        yield pytest.param(plugin, truncate, id=f"{plugin.__name__}-truncated")
        yield pytest.param(plugin, empty, id=f"{plugin.__name__}-empty")
        yield pytest.param(plugin, lambda files: weights(files).unlink(), id=f"{plugin.__name__}-lost")


def truncate(files: tuple[Path, ...]) -> None:
    weights(files).write_bytes(weights(files).read_bytes()[:-100])


def empty(files: tuple[Path, ...]) -> None:
    weights(files).write_bytes(b"")


def accepted(exporter: Any, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> bool:
    try:
        return all(check.passed for check in exporter.verify(files, edit, model, run))
    except EditError as error:
        if error.code not in ("VU-E071", "VU-E072", "VU-E031", "VU-E034"):
            raise
        return False


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Found missing adapter keys")
@pytest.mark.parametrize(("plugin", "fault"), list(cases()))
def test_a_broken_file_is_not_accepted(
    plugin: type[Any], fault: Callable[[tuple[Path, ...]], None], small: Any, edit: Edit, run: Run, tmp_path: Path
) -> None:
    exporter = plugin(plugin.Config())
    files = exporter.export(edit, small, tmp_path, run)
    before = [*small.network.modules(), *small.network.parameters()]
    fault(files)
    assert not accepted(exporter, files, edit, small, run)
    after = [*small.network.modules(), *small.network.parameters()]
    assert len(before) == len(after)
    assert all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("plugin", [Native, DiffusersLora, Peft, Kohya, Merged, Delta])
def test_the_file_that_is_not_broken_is_accepted(
    plugin: type[Any], small: Any, edit: Edit, run: Run, tmp_path: Path
) -> None:
    """Otherwise the test above would prove nothing."""
    exporter = plugin(plugin.Config())
    files = exporter.export(edit, small, tmp_path, run)
    if plugin is not Native:
        rewrite(files, dict)
    assert all(check.passed for check in exporter.verify(files, edit, small, run))


def test_the_largest_error_may_be_no_number() -> None:
    assert largest([]) == 0.0
    assert largest([1.0, 3.0, 2.0]) == 3.0
    assert math.isnan(largest([1.0, float("nan"), 2.0]))


def test_what_outputs_cannot_show(run: Run, tmp_path: Path) -> None:
    """In half precision outputs tolerate that a weak edit has lost 15 % of its strength; the numbers tell."""
    model = tiny_model()
    model.network.to(torch.bfloat16)
    model.dtype = torch.bfloat16
    edit = Edit({f"unet.{TO_Q}.weight": LowRank(torch.full((2, 32), 0.03), torch.full((32, 2), 0.03), 4.0)})
    for plugin, telling, change in (
        (DiffusersLora, "factors", each(".lora_B", lambda t: t * 0.85)),
        (Peft, "factors", each(".lora_B", lambda t: t * 0.85)),
        (Kohya, "factors", each(".alpha", lambda t: t * 0.85)),
        (Kohya, "tensors", each(".alpha", lambda t: t * 0.85)),
        (Merged, "weights", each(TO_Q, lambda t: t * 1.01)),
        (Delta, "tensors", each(".values", lambda t: t * 0.85)),
    ):
        exporter = plugin(plugin.Config())
        files = exporter.export(edit, model, tmp_path / f"{plugin.__name__}-{telling}", run)
        rewrite(files, change)
        checks = {check.what: check for check in exporter.verify(files, edit, model, run)}
        assert checks["denoiser"].passed
        assert not checks[telling].passed
