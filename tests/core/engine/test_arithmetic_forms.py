"""The same edit in another form: of low rank, densified; and how much of it is zero."""

import math

import attrs
import pytest
import torch
from torch import nn

from vu_core import Edit, EditError, LowRank, Replace, Sparse
from vu_core.adapters import apply_edit, delta_size, densified, edit_digest, load_edit, refit, save_edit, zero_fraction
from vu_core.adapters.deltas import exact_delta

LINEAR, CONV, BIAS = "unet.to_q.weight", "unet.conv.weight", "unet.to_q.bias"
SHAPES = {LINEAR: (12, 9), CONV: (4, 3, 3, 3), BIAS: (12,)}


def network(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.ModuleDict({"to_q": nn.Linear(9, 12), "conv": nn.Conv2d(3, 4, 3)})
    return nn.ModuleDict({"unet": body}).to(dtype).requires_grad_(False)


def low_rank(name, seed, rank=3, masked=False):
    g = torch.Generator().manual_seed(seed)
    out, width = SHAPES[name][0], math.prod(SHAPES[name][1:])
    mask = torch.rand(out, width, generator=g) < 0.5 if masked else None
    return LowRank(torch.randn(rank, width, generator=g), torch.randn(out, rank, generator=g), 0.6, mask)


def sparse(name, seed, size=1.0):
    g = torch.Generator().manual_seed(seed)
    indices = (torch.rand(math.prod(SHAPES[name]), generator=g) < 0.4).nonzero().flatten()
    return Sparse(indices, size * torch.randn(len(indices), generator=g), SHAPES[name])


def matrix(name, part):
    return exact_delta(name, part).reshape(SHAPES[name][0], -1)


PARTS = [
    (LINEAR, low_rank(LINEAR, 0)),
    (LINEAR, low_rank(LINEAR, 1, masked=True)),
    (CONV, low_rank(CONV, 2, masked=True)),
    (LINEAR, sparse(LINEAR, 3)),
    (CONV, sparse(CONV, 4)),
]


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_the_error_of_a_refit_is_the_tail_of_the_singular_values(name, part, rank):
    refitted, error = refit(Edit({name: part}), rank)
    new = refitted.parts[name]
    assert (new.rank, new.alpha, new.mask) == (rank, float(rank), None)
    assert new.A.dtype == new.B.dtype == torch.float32
    values = torch.linalg.svdvals(matrix(name, part))
    assert error == pytest.approx(float(values[rank:].norm() / values.norm()), rel=1e-5)
    missed = matrix(name, part) - matrix(name, new)
    assert error == pytest.approx(float(missed.norm() / matrix(name, part).norm()), rel=1e-9)


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_refit_at_full_rank_is_exact_to_rounding_and_higher_ranks_are_cut(name, part):
    refitted, error = refit(Edit({name: part}), 1000)
    new = refitted.parts[name]
    assert new.rank <= min(matrix(name, part).shape)
    assert error < 1e-6
    torch.testing.assert_close(matrix(name, new), matrix(name, part), rtol=0, atol=1e-5)
    assert refitted.facts["refit"]["rank"] == 1000


def test_plain_parts_of_no_higher_rank_stay_as_they_are():
    edit = Edit({LINEAR: low_rank(LINEAR, 0, rank=2)})
    assert refit(edit, 2)[0].parts[LINEAR] is edit.parts[LINEAR]
    assert refit(edit, 2)[1] == 0.0
    assert refit(edit, 1)[0].parts[LINEAR].rank == 1


def test_the_error_is_over_all_tensors_together_and_told_per_tensor():
    edit = Edit(
        {LINEAR: low_rank(LINEAR, 1, masked=True), CONV: sparse(CONV, 4, size=10.0)},
        facts={"changed_numbers": 3, "k": 1},
    )
    refitted, error = refit(edit, 2)
    missed = {name: matrix(name, part) - matrix(name, refitted.parts[name]) for name, part in edit}
    squares = sum(float(each.square().sum()) for each in missed.values())
    whole = sum(float(matrix(name, part).square().sum()) for name, part in edit)
    assert error == pytest.approx(math.sqrt(squares / whole), rel=1e-9)
    told = refitted.facts["refit"]
    assert told["relative_error"] == error
    for name, part in edit:
        assert told["per_tensor"][name] == pytest.approx(
            float(missed[name].norm() / matrix(name, part).norm()), rel=1e-9
        )
    assert set(refitted.facts) == {"refit", "k"}


def test_nothing_can_be_refitted_without_an_error():
    empty = Sparse(torch.tensor([], dtype=torch.int64), torch.tensor([]), SHAPES[LINEAR])
    refitted, error = refit(Edit({LINEAR: empty}), 2)
    assert error == 0.0
    assert not bool(refitted.parts[LINEAR].delta().any())
    assert refit(Edit({}), 2)[1] == 0.0


def test_a_refitted_edit_is_applied_as_low_rank(tmp_path):
    edit = Edit({LINEAR: low_rank(LINEAR, 1, masked=True), CONV: sparse(CONV, 4)})
    save_edit(refit(edit, 9)[0], tmp_path / "edit.safetensors")
    plain, model = network(), network()
    with apply_edit(model, load_edit(tmp_path / "edit.safetensors")):
        for name, part in edit:
            found = model.get_parameter(name) - plain.get_parameter(name)
            wanted = matrix(name, part).reshape(SHAPES[name]).float()
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def refused(code, act, *words):
    with pytest.raises(EditError) as caught:
        act()
    assert caught.value.code == code
    assert all(word in str(caught.value) for word in words)


def test_what_has_no_low_rank_is_named():
    parts = {LINEAR: Replace(torch.ones(12, 9)), BIAS: sparse(BIAS, 0), CONV: sparse(CONV, 1)}
    refused("VU-E063", lambda: refit(Edit(parts), 2), f"'{LINEAR}' is replaced", f"'{BIAS}' is no weight")
    refused("VU-E060", lambda: refit(Edit({CONV: sparse(CONV, 1)}), 0), "0")
    wrong = attrs.evolve(low_rank(LINEAR, 0), alpha=math.nan)
    refused("VU-E052", lambda: refit(Edit({LINEAR: wrong}), 2), LINEAR)


@pytest.mark.parametrize(
    ("name", "part"),
    [(LINEAR, PARTS[1][1]), (CONV, PARTS[2][1]), (LINEAR, PARTS[3][1]), (CONV, PARTS[4][1]), (BIAS, sparse(BIAS, 5))],
)
def test_densifying_hides_the_support_and_keeps_the_change_on_it(name, part):
    model, base = network(), network().get_parameter(name)
    support = (exact_delta(name, part) != 0).reshape(SHAPES[name])
    assert 0 < int(support.sum()) < support.numel()
    dense = densified(Edit({name: part}), 0.1, torch.Generator().manual_seed(0), model).parts[name]
    change = exact_delta(name, dense, model).reshape(SHAPES[name])
    assert bool((change != 0).all())
    with apply_edit(model, Edit({name: part})):
        wanted = model.get_parameter(name).clone()
    with apply_edit(model, Edit({name: dense})):
        found = model.get_parameter(name).clone()
    assert bool((found != base).all())
    if isinstance(dense, LowRank):  # its factors are rounded once to float32
        torch.testing.assert_close(
            change[support], exact_delta(name, part).reshape(SHAPES[name])[support], rtol=6e-8, atol=0
        )
        torch.testing.assert_close(found[support], wanted[support], rtol=2e-7, atol=1e-7)
    else:
        assert torch.equal(found[support], wanted[support])
    assert isinstance(dense, LowRank) == isinstance(part, LowRank)
    assert not isinstance(dense, LowRank) or dense.mask is None


def test_the_noise_has_the_strength_that_was_asked_for():
    mask = torch.zeros(200, 300, dtype=torch.bool)
    mask[:, ::2] = True
    model = nn.ModuleDict({"w": nn.Linear(300, 200)})
    g = torch.Generator().manual_seed(3)
    values = 1e-2 * torch.randn(int(mask.sum()), generator=g)
    parts = {
        "low-rank": LowRank(torch.randn(2, 300, generator=g), torch.randn(200, 2, generator=g), 4.0, mask),
        "sparse": Sparse(mask.flatten().nonzero().flatten(), values, (200, 300)),
    }
    for part in parts.values():
        dense = densified(Edit({"w.weight": part}), 0.25, torch.Generator().manual_seed(0), model).parts["w.weight"]
        noise = exact_delta("w.weight", dense, model)[~mask]
        on_support = exact_delta("w.weight", part)[mask]
        assert float(noise.std()) == pytest.approx(0.25 * float(on_support.square().mean().sqrt()), rel=0.02)
        assert abs(float(noise.mean())) < 0.02 * float(noise.std())


def test_parts_without_a_support_to_hide_stay_as_they_are():
    parts = {LINEAR: low_rank(LINEAR, 0), CONV: Replace(torch.ones(4, 3, 3, 3))}
    edit = Edit(parts, base="b", method="m", facts={"changed_tensors": 2, "k": 1})
    dense = densified(edit, 0.5, torch.Generator(), network())
    assert dense.parts == parts
    assert dense.facts == {"k": 1, "densified": 0.5}
    assert (dense.base, dense.method) == ("b", "m")


def test_densifying_is_repeated_by_its_generator():
    edit = Edit({LINEAR: sparse(LINEAR, 0), CONV: low_rank(CONV, 1, masked=True)})
    digests = [edit_digest(densified(edit, 0.1, torch.Generator().manual_seed(seed), network())) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_changes_of_zero_show_no_support_either():
    empty = Sparse(torch.tensor([3]), torch.tensor([0.0]), SHAPES[LINEAR])
    masked = attrs.evolve(low_rank(CONV, 1, masked=True), B=torch.zeros(4, 3))
    dense = densified(Edit({LINEAR: empty, CONV: masked}), 0.1, torch.Generator(), network())
    assert torch.equal(dense.parts[LINEAR].tensor, network().get_parameter(LINEAR))
    assert dense.parts[CONV].mask is None
    assert not bool(dense.parts[CONV].delta().any())


def test_noise_that_the_weights_would_swallow_is_refused_where_it_cannot_be_avoided():
    model, edit = network(torch.bfloat16), Edit({LINEAR: sparse(LINEAR, 0, size=1e-6)})
    refused("VU-E064", lambda: densified(edit, 0.1, torch.Generator(), model), LINEAR, "bfloat16", "of its 108")
    # Of coarse noise, what would be lost is drawn again.
    edit = Edit({LINEAR: sparse(LINEAR, 0, size=1e-2)})
    dense = densified(edit, 0.5, torch.Generator().manual_seed(0), model).parts[LINEAR].tensor
    assert dense.dtype == torch.bfloat16
    assert bool((dense != model.get_parameter(LINEAR))[exact_delta(LINEAR, edit.parts[LINEAR]) == 0].all())


@pytest.mark.parametrize("strength", [0.0, -1.0, math.nan, math.inf])
def test_a_strength_that_is_none_is_refused(strength):
    refused("VU-E060", lambda: densified(Edit({}), strength, torch.Generator(), network()), str(strength))


def test_densifying_checks_the_network():
    refused(
        "VU-E054", lambda: densified(Edit({"unet.w": sparse(BIAS, 0)}), 0.1, torch.Generator(), network()), "unet.w"
    )
    masked = Edit({CONV: low_rank(LINEAR, 0, masked=True)})
    refused("VU-E054", lambda: densified(masked, 0.1, torch.Generator(), network()), CONV)


def test_the_zero_fraction_is_weighted_by_size_and_counts_mask_and_scale():
    mask = torch.zeros(12, 9, dtype=torch.bool)
    mask[:3] = True
    parts = {
        LINEAR: attrs.evolve(low_rank(LINEAR, 0), mask=mask),  # 81 of 108 are zero
        BIAS: Sparse(torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, 0.0, 1e-30, 2.0]), (12,)),  # 9 of 12
    }
    assert zero_fraction(Edit(parts)) == (81 + 9) / (108 + 12)
    assert zero_fraction(Edit({LINEAR: attrs.evolve(low_rank(LINEAR, 0), alpha=0.0)})) == 1.0
    assert zero_fraction(Edit({LINEAR: low_rank(LINEAR, 0)})) == 0.0
    assert zero_fraction(Edit({})) == 0.0


def test_a_replaced_tensor_is_compared_with_the_base():
    model = network()
    new = model.get_parameter(BIAS).clone()
    new[:3] += 1
    edit = Edit({BIAS: Replace(new)})
    assert zero_fraction(edit, model) == 0.75
    refused("VU-E061", lambda: zero_fraction(edit), BIAS)


def test_the_size_of_a_part_has_a_threshold():
    part = Sparse(torch.tensor([0, 1, 2]), torch.tensor([3.0, -4.0, 1e-7]), (2, 5))
    assert delta_size("w", part).zeros == 7
    assert delta_size("w", part, threshold=1e-6).zeros == 8
    assert delta_size("w", part, threshold=3.0).zeros == 9
    assert delta_size("w", part).numel == 10
    assert delta_size("w", part).norm == pytest.approx(5.0)
