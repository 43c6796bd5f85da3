"""``model.edits``: a model that carries the edits of earlier runs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from vu_core import ConfigError, Edit, LowRank, PlanError, Replace, Sparse
from vu_core.adapters import Carried, apply_edit, combined, edit_digest, load_edit, save_edit
from vu_core.config import RawConfig
from vu_core.earlier_edits import read_earlier
from vu_core.pipeline import dry_run, execute
from vu_core.plugins import Plugins

Raw = Callable[..., RawConfig]


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))


def _adapter(seed: int) -> Edit:
    draw = torch.Generator().manual_seed(seed)
    sizes = {"0.weight": (4, 5), "1.weight": (3, 4)}
    parts = {
        name: LowRank(torch.randn(2, i, generator=draw), torch.randn(o, 2, generator=draw), 1.0)
        for name, (o, i) in sizes.items()
    }
    return Edit(parts)


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


def test_the_sum_of_adapters_equals_merging_them_one_by_one() -> None:
    edits = [_adapter(seed) for seed in range(4)]
    one_by_one, summed = _network(), _network()
    Carried(one_by_one, edits)
    with apply_edit(summed, combined(edits, [1.0] * 4)):
        for name, tensor in _weights(summed).items():
            torch.testing.assert_close(tensor, _weights(one_by_one)[name], rtol=0, atol=1e-6)


def test_leaving_one_out_subtracts_its_delta() -> None:
    edits = [_adapter(seed) for seed in range(3)]
    whole, rest = _network(), _network()
    Carried(whole, edits)
    Carried(rest, [edits[0], edits[2]])
    for name, part in edits[1]:
        assert isinstance(part, LowRank)
        expected = _weights(whole)[name] - part.delta()
        torch.testing.assert_close(_weights(rest)[name], expected, rtol=0, atol=1e-6)


def test_what_is_carried_is_bit_for_bit_what_was_applied() -> None:
    applied, carried = _network(), _network()
    with apply_edit(applied, _adapter(0)):
        after = _weights(applied)
    Carried(carried, [_adapter(0)])
    assert all(torch.equal(tensor, after[name]) for name, tensor in _weights(carried).items())


@pytest.mark.parametrize(
    "part", [Sparse(torch.tensor([1, 7]), torch.tensor([0.5, -2.0]), (4, 5)), Replace(torch.ones(4, 5))]
)
def test_the_way_back_is_bit_identical(part: Any) -> None:
    network = _network()
    untouched = _weights(network)
    carried = Carried(network, [_adapter(0), Edit({"0.weight": part})])
    with_edits = _weights(network)
    assert not torch.equal(with_edits["0.weight"], untouched["0.weight"])
    with carried.pretrained():
        assert all(torch.equal(tensor, untouched[name]) for name, tensor in _weights(network).items())
    assert all(torch.equal(tensor, with_edits[name]) for name, tensor in _weights(network).items())


def test_a_tied_tensor_changes_in_all_its_places() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    network = nn.Sequential(first, second)
    carried = Carried(network, [Edit({"0.weight": Replace(torch.eye(3))})])
    assert second.weight is first.weight
    assert torch.equal(second.weight, torch.eye(3))
    with carried.pretrained():
        assert second.weight is first.weight
        assert not torch.equal(second.weight, torch.eye(3))


def test_the_way_back_needs_the_untouched_weights() -> None:
    network = _network()
    carried = Carried(network, [_adapter(0)])
    network[0].weight = nn.Parameter(torch.zeros(4, 5))  # type: ignore[index]  # as full parameters put theirs
    with pytest.raises(RuntimeError, match=r"theta\.base"), carried.pretrained():
        pass


def test_a_method_sees_both_the_edited_and_the_original_model(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(raw(run__out="first"), plugins=plugins)
    seen: dict[str, torch.Tensor] = {}
    unlearn = toys.Push.unlearn

    def looking(self: Any, model: Any, data: Any, run: Any) -> Any:
        x = torch.ones(1, 4)
        seen["begin"] = model(x)
        with run.pretrained():
            seen["pretrained"] = model(x)
        theta = run.parameterise(model)
        with theta.base(), run.pretrained():
            seen["under an adapter"] = model(x)
        run.release()
        return unlearn(self, model, data, run)

    monkeypatch.setattr(toys.Push, "unlearn", looking)
    execute(raw(run__out="second", model__edits=["first"], data__forget=["axis:x"]), plugins=plugins)
    model = toys.LoadedNet(toys.ToyNet("", toys.NetConfig()).inspect(), toys.NetConfig())
    assert torch.equal(seen["pretrained"], model(torch.ones(1, 4)))
    assert torch.equal(seen["under an adapter"], seen["pretrained"])
    with apply_edit(model.network, load_edit(Path("first/edit.safetensors"))):
        assert torch.equal(seen["begin"], model(torch.ones(1, 4)))


def test_the_content_of_earlier_edits_is_part_of_the_id_and_their_place_is_not(plugins: Plugins, raw: Raw) -> None:
    execute(raw(run__out="first"), plugins=plugins)
    execute(raw(run__out="other", run__seed=4), plugins=plugins)
    shutil.copytree("first", "moved")
    bare, first, moved, file, other = (
        dry_run(raw(data__forget=["axis:x"], model__edits=edits), plugins=plugins)
        for edits in ([], ["first"], ["moved"], ["first/edit.safetensors"], ["other"])
    )
    assert first.run_id == moved.run_id == file.run_id
    assert len({bare.run_id, first.run_id, other.run_id}) == 3
    assert len({bare.model_hash, first.model_hash, other.model_hash}) == 3
    assert bare.model_hash == bare.model.base_hash


def test_the_edit_and_the_record_name_what_it_was_made_on(plugins: Plugins, raw: Raw) -> None:
    execute(raw(run__out="first"), plugins=plugins)
    record = execute(raw(run__out="second", model__edits=["first"], data__forget=["axis:x"]), plugins=plugins)
    first, second = (load_edit(Path(name) / "edit.safetensors") for name in ("first", "second"))
    assert second.parents == (edit_digest(first),)
    assert second.base == first.base
    assert record.environment["edits"] == [edit_digest(first)]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("x"), lambda path: path.mkdir()])
def test_what_is_no_edit_is_named(plugins: Plugins, raw: Raw, place: Path, make: Any) -> None:
    make(place / "first")
    with pytest.raises(ConfigError, match="'first'") as caught:
        dry_run(raw(model__edits=["first"]), plugins=plugins)
    assert caught.value.code == "VU-C155"


def test_edits_of_other_weights_are_refused(plugins: Plugins, raw: Raw) -> None:
    execute(raw(run__out="first"), plugins=plugins)
    with pytest.raises(PlanError) as caught:
        dry_run(raw(model__edits=["first"], model__seed=1), plugins=plugins)
    assert caught.value.code == "VU-L125"


def test_whole_tensors_lie_only_on_what_they_were_made_on(plugins: Plugins, raw: Raw, place: Path) -> None:
    execute(raw(run__out="first"), plugins=plugins)
    first = load_edit(Path("first/edit.safetensors"))
    name = next(iter(first.parts))
    part = first.parts[name]
    assert isinstance(part, LowRank)
    whole = Edit({name: Replace(part.delta())}, base=first.base, parents=(edit_digest(first),), method="x")
    save_edit(whole, place / "whole.safetensors")
    save_edit(attrs.evolve(whole, parts={name: part}), place / "adapter.safetensors")
    dry_run(raw(model__edits=["first", "whole.safetensors"]), plugins=plugins)
    dry_run(
        raw(model__edits=["adapter.safetensors"]), plugins=plugins
    )  # a change that is added fits without the others
    with pytest.raises(PlanError) as caught:
        dry_run(raw(model__edits=["whole.safetensors"]), plugins=plugins)
    assert caught.value.code == "VU-L126"
    assert read_earlier("whole.safetensors").replaces
    assert not read_earlier("adapter.safetensors").replaces


def test_every_task_draws_other_numbers(plugins: Plugins, raw: Raw) -> None:
    same, other = (execute(raw(run__task=task), plugins=plugins) for task in (0, 1))
    assert (same.folder / "edit.safetensors").read_bytes() != (other.folder / "edit.safetensors").read_bytes()
