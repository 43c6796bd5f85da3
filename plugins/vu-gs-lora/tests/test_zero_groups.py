"""Norms of groups, which of them are zero, and pruning."""

from __future__ import annotations

import attrs
import pytest
import torch
from toy_transformer import ToyTransformer

from vu_core.adapters import Full, FullConfig, Lora, LoraConfig
from vu_core.edit import Edit, LowRank
from vu_core.testing import toy_run
from vu_gs_lora.zero_groups import GroupNorm, group_facts, group_norms, is_zero, pruned, zero_names

DEPTH = 6


@pytest.fixture
def model():
    return ToyTransformer(DEPTH)


@pytest.fixture
def edit(model, tmp_path):
    """A LoRA on both linear maps of all blocks; B is zero in the first two."""
    run = toy_run(tmp_path, parameters=Lora(LoraConfig(rank=2, alpha=3.0, targets=())))
    theta = run.parameterise(model, targets=[name for block in model.blocks() for name in block.ffn])
    with torch.no_grad():
        for name, tensor in theta.named_parameters():
            if name.endswith(".B") and not name.startswith(("classifier.blocks.0", "classifier.blocks.1")):
                tensor.normal_(generator=torch.Generator().manual_seed(1))
    found = theta.edit()
    theta.detach()
    return found


def test_zero_by_what_it_does_not_by_what_it_holds(model, edit):
    facts = group_facts(group_norms(edit, model.network, model.blocks()), "block")
    assert facts["zero_group_ratio"] == pytest.approx(2 / 6)
    assert facts["zero_group_ratio_absolute"] == 0.0
    assert facts["zero"] == ["classifier.blocks.0", "classifier.blocks.1"]
    assert facts["kept"] == [f"classifier.blocks.{index}" for index in range(2, DEPTH)]
    assert min(facts["norms"]) > 0.1
    assert facts["functional_norms"][:2] == [0.0, 0.0]


def test_norms_are_those_of_the_dense_changes(model, edit):
    third = group_norms(edit, model.network, model.blocks())[2]
    parts = [edit.parts[name] for name in model.blocks()[2].ffn]
    weights = [model.network.get_parameter(name) for name in model.blocks()[2].ffn]
    n = sum(float(part.A.square().sum() + part.B.square().sum()) for part in parts) ** 0.5
    f = (sum(float(p.delta().square().sum()) for p in parts) / sum(float(w.square().sum()) for w in weights)) ** 0.5
    assert (third.norm, third.functional) == (pytest.approx(n, rel=1e-6), pytest.approx(f, rel=1e-5))


@pytest.mark.parametrize(("kind", "count"), [("block", DEPTH), ("pair", 2 * DEPTH), ("matrix", 4 * DEPTH)])
def test_ratio_is_the_same_for_every_kind_of_group(model, edit, kind, count):
    norms = group_norms(edit, model.network, model.blocks(), kind)
    assert len(norms) == count
    assert len(zero_names(norms)) == count // 3


def test_a_whole_weight_is_measured_by_its_change(model, tmp_path):
    theta = toy_run(tmp_path, parameters=Full(FullConfig())).parameterise(model)
    with torch.no_grad():
        for name, tensor in theta.named_parameters():
            if "blocks.3" in name:
                tensor.mul_(2.0)
    edit = theta.edit()
    theta.detach()
    (group,) = group_norms(edit, model.network, model.blocks())
    changed = [p for name, p in model.network.named_parameters() if name in group.weights]
    assert group.name == "classifier.blocks.3"
    assert group.functional == pytest.approx(1.0)
    assert group.norm == pytest.approx(sum(float(p.square().sum()) for p in changed) ** 0.5, rel=1e-6)


def test_masked_change_is_measured_within_its_mask(model):
    name = model.blocks()[0].ffn[0]
    mask = torch.zeros(model.network.get_parameter(name).shape, dtype=torch.bool)
    part = LowRank(torch.ones(1, mask.shape[1]), torch.ones(mask.shape[0], 1), alpha=1.0, mask=mask)
    (group,) = group_norms(Edit({name: part}), model.network, model.blocks())
    assert group.functional == 0.0


def test_criteria_and_their_thresholds():
    tiny = GroupNorm("a", ("w",), norm=0.009, functional=1e-3)
    assert [is_zero(tiny, 1.0, criterion) for criterion in ("functional", "absolute", "relative")] == [
        False,
        False,
        True,
    ]
    assert is_zero(tiny, 1.0, functional=1e-3)
    assert is_zero(tiny, 1.0, "absolute", absolute=0.01)
    assert not is_zero(tiny, 1.0, "relative", relative=0.001)
    assert is_zero(attrs.evolve(tiny, functional=1e-4), 1.0)  # the threshold itself counts
    assert is_zero(attrs.evolve(tiny, norm=1e-8, functional=1.0), 1.0)


def test_pruned_groups_change_nothing_at_all(model, edit):
    name = model.blocks()[0].ffn[0]
    nearly = attrs.evolve(edit.parts[name], B=torch.full_like(edit.parts[name].B, 1e-7))
    edit = attrs.evolve(edit, parts={**edit.parts, name: nearly})
    norms = group_norms(edit, model.network, model.blocks())
    cut = pruned(edit, norms)
    assert not cut.parts[name].B.any()
    assert cut.parts.keys() == edit.parts.keys()
    other = model.blocks()[4].ffn[1]
    assert cut.parts[other] is edit.parts[other]


def test_zero_groups_are_real(model, edit):
    """Taking them out of the edit changes no logit, bit for bit."""
    from vu_core.adapters import apply_edit

    zero = set(group_facts(group_norms(edit, model.network, model.blocks()), "block")["zero"])
    rest = {n: p for n, p in edit.parts.items() if not any(n.startswith(f"{block}.") for block in zero)}
    assert len(rest) == len(edit.parts) - 4
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with apply_edit(model.network, edit):
        whole = model.logits(images)
    with apply_edit(model.network, attrs.evolve(edit, parts=rest)):
        assert torch.equal(model.logits(images), whole)
    assert not torch.equal(model.logits(images), whole)
