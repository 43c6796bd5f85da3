"""Opposites, parts and sums of edits, against dense sums in float64."""

import math

import attrs
import pytest
import torch
from engine_toys import toy_model
from torch import nn

from vu_core import Edit, EditError, LowRank, Replace, Sparse
from vu_core.adapters import apply_edit, combined, compose, edit_digest, load_edit, negated, save_edit, scaled

LINEAR, CONV, BIAS, SCALE = "unet.attn.to_q.weight", "unet.conv.weight", "unet.conv.bias", "unet.norm.weight"
SHAPES = {LINEAR: (6, 4), CONV: (4, 2, 3, 3), BIAS: (4,), SCALE: (3,)}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def low_rank(name, seed, rank=1, alpha=3.0, mask=None):
    out, width = SHAPES[name][0], math.prod(SHAPES[name][1:])
    g = generator(seed)
    return LowRank(torch.randn(rank, width, generator=g), torch.randn(out, rank, generator=g), alpha, mask)


def mask_of(name, seed, density=0.5):
    return torch.rand(SHAPES[name][0], math.prod(SHAPES[name][1:]), generator=generator(seed)) < density


def sparse(name, seed, share=0.4):
    g = generator(seed)
    indices = (torch.rand(math.prod(SHAPES[name]), generator=g) < share).nonzero().flatten()
    return Sparse(indices, torch.randn(len(indices), generator=g), SHAPES[name])


def replace(name, seed, network=None):
    network = network or toy_model().network
    base = network.get_parameter(name).detach()
    return Replace(base + torch.randn(base.shape, generator=generator(seed)).to(base.dtype))


def edit(seed, **changes):
    parts = {
        LINEAR: low_rank(LINEAR, seed, mask=mask_of(LINEAR, seed)),
        CONV: low_rank(CONV, seed + 1, alpha=0.5),
        BIAS: sparse(BIAS, seed + 2, 1.0),
        SCALE: replace(SCALE, seed + 3),
    }
    return Edit(parts, **{"base": "b", "method": "toy", "facts": {"k": 1}, **changes})


def delta(name, part, network=None):
    """Return the change in float64, computed in another way than the code under test does."""
    if isinstance(part, Replace):
        return part.tensor.double() - (network or toy_model().network).get_parameter(name).detach().double()
    if isinstance(part, Sparse):
        dense = torch.zeros(part.shape, dtype=torch.float64)
        for index, value in zip(part.indices.tolist(), part.values.tolist(), strict=True):
            dense.view(-1)[index] = value
        return dense
    product = torch.einsum("or,ri->oi", part.B.double(), part.A.double()) * part.alpha / part.A.shape[0]
    return (product if part.mask is None else product.where(part.mask, 0)).reshape(SHAPES[name])


def same_bits(one, other):
    return one.numpy().tobytes() == other.numpy().tobytes()


def test_negating_twice_is_the_identity_bit_for_bit():
    before = edit(0)
    zero = torch.tensor([0.0, -0.0, 1.5])
    before = attrs.evolve(before, parts={**before.parts, "s": Sparse(torch.arange(3), zero, (3,))})
    network = toy_model().network
    after = negated(negated(before, network), network)
    for name in (LINEAR, CONV):
        assert same_bits(after.parts[name].A, before.parts[name].A)
        assert same_bits(after.parts[name].B, before.parts[name].B)
        assert after.parts[name].alpha == before.parts[name].alpha
        assert after.parts[name].mask is before.parts[name].mask
    for name in (BIAS, "s"):
        assert same_bits(after.parts[name].values, before.parts[name].values)
        assert torch.equal(after.parts[name].indices, before.parts[name].indices)
    torch.testing.assert_close(after.parts[SCALE].tensor, before.parts[SCALE].tensor, rtol=0, atol=1e-6)
    assert (after.base, after.method, after.facts) == ("b", "toy", {"k": 1})


def test_negating_changes_the_sign_of_a_and_never_of_b():
    before, network = edit(0), toy_model().network
    after = negated(before, network)
    for name in (LINEAR, CONV):
        assert torch.equal(after.parts[name].A, -before.parts[name].A)
        assert after.parts[name].B is before.parts[name].B
    for name in SHAPES:
        wanted = -delta(name, before.parts[name])
        torch.testing.assert_close(delta(name, after.parts[name]), wanted, rtol=0, atol=1e-6)


def test_a_change_and_its_opposite_give_the_base_again():
    before, network = edit(0), toy_model().network
    x = torch.randn(2, 2, 4, 4, generator=generator(1))
    untouched = network["unet"](x)
    assert (combined([before], [1.0], network=network).parts[LINEAR].delta().abs().max()) > 0.1
    for opposite in (negated(before, network), scaled(before, -1.0, network)):
        low = [attrs.evolve(each, parts={n: p for n, p in each if n != SCALE}) for each in (before, opposite)]
        for name, part in low[0]:
            base = network.get_parameter(name).detach()
            torch.testing.assert_close(compose(base, [part, low[1].parts[name]]), base, rtol=0, atol=1e-6)
        with apply_edit(network, combined([before, opposite], [1, 1], network=network)):
            torch.testing.assert_close(network["unet"](x), untouched, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 2.0, -3.0, 1e-3])
def test_scaling_multiplies_every_change_and_keeps_the_factors(factor):
    before, network = edit(0), toy_model().network
    after = scaled(before, factor, network)
    for name in SHAPES:
        wanted = factor * delta(name, before.parts[name])
        torch.testing.assert_close(delta(name, after.parts[name]), wanted, rtol=1e-6, atol=1e-6)
    part, old = after.parts[LINEAR], before.parts[LINEAR]
    assert part.B is old.B
    assert part.alpha == old.alpha * abs(factor)
    assert torch.equal(part.A, old.A if factor > 0 else -old.A)
    assert part.mask is old.mask


def test_a_factor_of_one_is_the_edit_itself():
    before = edit(0)
    assert scaled(before, 1.0) is before
    assert scaled(before, 1) is before


def test_a_factor_of_zero_leaves_the_model_bit_identical(tmp_path):
    nothing, network = scaled(edit(0), 0.0), toy_model().network
    assert not nothing.parts
    assert nothing.may_be_identity
    save_edit(nothing, tmp_path / "edit.safetensors")
    base = {name: network.get_parameter(name) for name in SHAPES}
    with apply_edit(network, load_edit(tmp_path / "edit.safetensors")):
        assert all(network.get_parameter(name) is tensor for name, tensor in base.items())


def test_a_scaled_edit_can_be_saved_and_applied(tmp_path):
    network = toy_model().network
    save_edit(scaled(edit(0), -0.25, network), tmp_path / "edit.safetensors")
    with apply_edit(network, load_edit(tmp_path / "edit.safetensors")):
        found = network.get_parameter(LINEAR).detach().double()
    base = network.get_parameter(LINEAR).detach().double()
    torch.testing.assert_close(found - base, -0.25 * delta(LINEAR, edit(0).parts[LINEAR]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, -2.0)])
@pytest.mark.parametrize("name", [LINEAR, CONV])
def test_low_rank_parts_are_put_side_by_side(name, weights):
    parts = [low_rank(name, 0, rank=2, alpha=8.0), low_rank(name, 1, rank=1, alpha=0.5)]
    made = combined([Edit({name: part}) for part in parts], weights).parts[name]
    assert (made.rank, made.alpha, made.mask) == (3, 3.0, None)
    assert same_bits(made.A, torch.cat([part.A for part in parts]))
    wanted = sum(w * delta(name, part) for w, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(delta(name, made), wanted, rtol=1e-6, atol=1e-6)


def test_equal_masks_stay_a_mask_over_the_factors():
    mask = mask_of(LINEAR, 5)
    parts = [low_rank(LINEAR, seed, mask=mask.clone()) for seed in (0, 1)]
    made = combined([Edit({LINEAR: part}) for part in parts], [1.0, 2.0]).parts[LINEAR]
    assert made.rank == 2
    assert torch.equal(made.mask, mask)
    wanted = delta(LINEAR, parts[0]) + 2 * delta(LINEAR, parts[1])
    torch.testing.assert_close(delta(LINEAR, made), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [LINEAR, CONV])
@pytest.mark.parametrize("masked", [False, True])
def test_more_rows_than_the_matrix_has_are_brought_down_to_its_rank(name, masked):
    mask = mask_of(name, 7) if masked else None
    parts = [low_rank(name, seed, rank=3, mask=mask) for seed in (0, 1, 2)]
    made = combined([Edit({name: part}) for part in parts], [1.0, 1.0, -0.5]).parts[name]
    assert made.rank == 4 == min(made.B.shape[0], made.A.shape[1])
    assert (made.mask is None) == (not masked)
    wanted = delta(name, parts[0]) + delta(name, parts[1]) - 0.5 * delta(name, parts[2])
    # Nothing but the sum itself is rounded, and that once.
    assert torch.equal(delta(name, made), wanted.float().double())


@pytest.mark.parametrize(
    "parts",
    [
        [low_rank(LINEAR, 0, mask=mask_of(LINEAR, 1, 0.3)), low_rank(LINEAR, 1, mask=mask_of(LINEAR, 2, 0.3))],
        [low_rank(LINEAR, 0, mask=mask_of(LINEAR, 1, 0.3)), sparse(LINEAR, 1, 0.3)],
        [
            low_rank(CONV, 0, mask=mask_of(CONV, 1, 0.3)),
            sparse(CONV, 1, 0.3),
            low_rank(CONV, 3, mask=mask_of(CONV, 4, 0.1)),
        ],
    ],
)
def test_different_supports_give_their_union(parts):
    name = LINEAR if parts[0].A.shape[1] == 4 else CONV
    made = combined([Edit({name: part}) for part in parts], [1.0] * len(parts)).parts[name]
    wanted = sum(delta(name, part) for part in parts)
    torch.testing.assert_close(delta(name, made), wanted, rtol=1e-6, atol=1e-7)
    union = torch.stack([delta(name, part) != 0 for part in parts]).any(dim=0)
    assert torch.equal(made.mask.reshape(SHAPES[name]), union)
    assert not bool(made.mask.all())
    assert bool((delta(name, made)[~union] == 0).all())


@pytest.mark.parametrize("name", [LINEAR, CONV])
def test_an_unmasked_part_makes_the_sum_unmasked(name):
    parts = [low_rank(name, 0), low_rank(name, 1, mask=mask_of(name, 2)), sparse(name, 3)]
    made = combined([Edit({name: part}) for part in parts], [1.0, 0.5, 2.0]).parts[name]
    assert made.mask is None
    wanted = delta(name, parts[0]) + 0.5 * delta(name, parts[1]) + 2 * delta(name, parts[2])
    torch.testing.assert_close(delta(name, made), wanted, rtol=1e-6, atol=1e-6)


def test_sparse_parts_stay_sparse_over_the_union():
    parts = [
        Sparse(torch.tensor([1, 3]), torch.tensor([1.0, 2.0]), (4,)),
        Sparse(torch.tensor([0, 3]), torch.tensor([4.0, 8.0]), (4,)),
    ]
    made = combined([Edit({BIAS: part}) for part in parts], [1.0, 0.5]).parts[BIAS]
    assert isinstance(made, Sparse)
    assert made.indices.tolist() == [0, 1, 3]
    assert made.values.tolist() == [2.0, 1.0, 6.0]


def test_sums_are_rounded_once():
    tiny = 2.0**-25  # half a unit in the last place of 1.0 in float32 would be lost in every step
    parts = [Sparse(torch.tensor([0]), torch.tensor([value]), (4,)) for value in (1.0, tiny, tiny, tiny)]
    made = combined([Edit({BIAS: part}) for part in parts], [1.0] * 4).parts[BIAS]
    assert made.values.item() == 1 + 2.0**-23
    network = nn.Linear(1, 4)
    nn.init.ones_(network.bias)
    whole = combined(
        [Edit({"bias": Replace(torch.ones(4))}), *(Edit({"bias": part}) for part in parts[1:])],
        [1.0] * 4,
        network=network,
    )
    assert whole.parts["bias"].tensor.tolist() == [1 + 2.0**-23, 1, 1, 1]


@pytest.mark.parametrize("name", [LINEAR, CONV])
def test_a_replaced_tensor_takes_the_other_changes_in(name):
    network = toy_model().network
    parts = [sparse(name, 1), replace(name, 0), low_rank(name, 2), replace(name, 3)]
    weights = [1.0, 0.5, -1.0, 2.0]
    made = combined([Edit({name: part}) for part in parts], weights, network=network).parts[name]
    assert isinstance(made, Replace)
    base = network.get_parameter(name).detach()
    wanted = base.double() + sum(w * delta(name, part) for w, part in zip(weights, parts, strict=True))
    assert made.tensor.dtype == base.dtype
    assert torch.equal(made.tensor, wanted.float())


def test_whole_numbers_stay_whole():
    network = nn.ModuleDict({"norm": nn.BatchNorm1d(2)})
    counter = Edit({"norm.num_batches_tracked": Replace(torch.tensor(7))})
    assert scaled(counter, 0.5, network).parts["norm.num_batches_tracked"].tensor.item() == 4
    assert negated(counter, network).parts["norm.num_batches_tracked"].tensor.dtype == torch.int64


@pytest.mark.parametrize("strategy", ["sum", "orthogonal"])
def test_what_one_edit_alone_changes_is_kept_as_it_is(strategy):
    network = toy_model().network
    one, other = edit(0), Edit({SCALE: replace(SCALE, 9)}, base="b")
    made = combined([one, other], [1.0, 1.0], strategy=strategy, network=network)
    assert all(made.parts[name] is one.parts[name] for name in (LINEAR, CONV, BIAS))
    made = combined([one, other], [0.5, 1.0], strategy=strategy, network=network)
    assert same_bits(made.parts[CONV].A, one.parts[CONV].A)
    assert made.parts[CONV].alpha == 0.25


def test_an_edit_of_weight_zero_is_left_out():
    one, other = Edit({LINEAR: low_rank(LINEAR, 0)}), Edit({LINEAR: low_rank(LINEAR, 1), CONV: low_rank(CONV, 2)})
    made = combined([one, other], [1.0, 0.0])
    assert list(made.parts) == [LINEAR]
    assert made.parts[LINEAR] is one.parts[LINEAR]
    assert [each["weight"] for each in made.facts["components"]] == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_on_half_precision_a_sum_computes_what_its_terms_compute(dtype, masked):
    """The changes are so small that rounding them into the weights would lose most of them."""
    network = toy_model(dtype=dtype).network
    edits = []
    for seed in (0, 10):
        parts = {
            name: low_rank(name, seed, alpha=1e-3, mask=mask_of(name, seed) if masked else None)
            for name in (LINEAR, CONV)
        }
        edits.append(Edit(parts))
    module = network["unet"].attn["to_q"]
    x = torch.randn(5, 4, generator=generator(1)).to(dtype)
    made = combined(edits, [1.0, 1.0])
    with apply_edit(network, made):
        changed = network["unet"].attn["to_q"]
        assert changed is not module
        found = changed._add_change(torch.zeros(5, 6), x.float())
    total = sum(delta(LINEAR, each.parts[LINEAR]) for each in edits)
    torch.testing.assert_close(found.double(), x.double() @ total.T, rtol=1e-4, atol=1e-7)


def test_the_facts_name_the_components_and_keep_those_of_a_single_edit():
    one, other, network = edit(0), edit(20, method="other"), toy_model().network
    made = combined([one, other], [1, 0.5], strategy="orthogonal", network=network)
    assert made.method == "composition"
    assert made.base == "b"
    assert made.facts == {
        "components": [
            {"digest": edit_digest(one), "method": "toy", "weight": 1.0},
            {"digest": edit_digest(other), "method": "other", "weight": 0.5},
        ],
        "strategy": "orthogonal",
    }
    assert combined([one], [1.0], network=network).facts["k"] == 1
    assert "k" not in combined([one], [0.5], network=network).facts
    assert not made.may_be_identity
    controls = [attrs.evolve(each, may_be_identity=True) for each in (one, other)]
    assert combined(controls, [1, 1], network=network).may_be_identity
    assert not combined([controls[0], other], [1, 1], network=network).may_be_identity


@pytest.mark.parametrize("strategy", ["sum", "orthogonal"])
def test_an_edit_that_is_taken_out_leaves_no_trace(strategy, tmp_path):
    network = toy_model().network
    a, b, c = (edit(seed) for seed in (0, 10, 20))
    sources = {}
    for number, each in enumerate((a, b, c)):
        save_edit(each, tmp_path / f"{number}.safetensors")
        sources[number] = load_edit(tmp_path / f"{number}.safetensors")
    whole = combined(list(sources.values()), [1.0, 0.7, 1.0], strategy=strategy, network=network)
    save_edit(whole, tmp_path / "abc.safetensors")
    digests = [each["digest"] for each in load_edit(tmp_path / "abc.safetensors").facts["components"]]
    left = [each for each in sources.values() if edit_digest(each) in digests and edit_digest(each) != edit_digest(b)]
    save_edit(combined(left, [1.0, 1.0], strategy=strategy, network=network), tmp_path / "revoked.safetensors")
    save_edit(combined([a, c], [1.0, 1.0], strategy=strategy, network=toy_model().network), tmp_path / "ac.safetensors")
    revoked, without = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("revoked", "ac"))
    assert revoked == without
    assert revoked != (tmp_path / "abc.safetensors").read_bytes()


def test_equal_arguments_give_equal_bytes(tmp_path):
    files = []
    for number in range(2):
        torch.manual_seed(number)  # nothing may depend on it
        path = tmp_path / f"{number}.safetensors"
        made = combined([edit(0), edit(10)], [1.0, 0.3], strategy="orthogonal", network=toy_model().network)
        save_edit(made, path)
        files.append(path.read_bytes())
    assert files[0] == files[1]


def refused(code, words, act):
    with pytest.raises(EditError) as caught:
        act()
    assert caught.value.code == code
    assert words in str(caught.value)


def test_what_cannot_be_combined_is_refused():
    one = Edit({LINEAR: low_rank(LINEAR, 0)}, base="b")
    refused("VU-E060", "no edits", lambda: combined([], []))
    refused("VU-E060", "there are 2 weights", lambda: combined([one], [1.0, 2.0]))
    for weight in (math.nan, math.inf):
        refused("VU-E060", str(weight), lambda weight=weight: combined([one, one], [1.0, weight]))
        refused("VU-E060", str(weight), lambda weight=weight: scaled(one, weight))
    refused("VU-E060", "Did you mean 'orthogonal'", lambda: combined([one], [1.0], strategy="ortogonal"))
    refused("VU-E053", "(b and c)", lambda: combined([one, attrs.evolve(one, base="c")], [1.0, 1.0]))
    on_others = attrs.evolve(one, parents=("p",))
    assert combined([one, on_others], [1.0, 1.0]).parts, "changes that are added up mean the same wherever they lie"
    whole = Edit({LINEAR: Replace(torch.zeros_like(one.parts[LINEAR].delta()))}, base="b", parents=("p",))
    refused("VU-E053", "on different edits of the same weights.", lambda: combined([one, whole], [1.0, 1.0]))


@pytest.mark.parametrize("strategy", ["sum", "orthogonal"])
@pytest.mark.parametrize(
    "parts",
    [
        [low_rank(LINEAR, 0), low_rank(CONV, 0)],
        [low_rank(LINEAR, 0), Sparse(torch.tensor([0]), torch.ones(1), (4, 6))],
        [Sparse(torch.tensor([0]), torch.ones(1), (4, 6)), Sparse(torch.tensor([0]), torch.ones(1), (4, 2, 3))],
        [low_rank(LINEAR, 0), Sparse(torch.tensor([0]), torch.ones(1), (6, 4)), Replace(torch.ones(6, 2, 2))],
    ],
)
def test_shapes_that_do_not_fit_are_refused(parts, strategy):
    edits = [Edit({LINEAR: part}) for part in parts]
    network = toy_model().network
    refused("VU-E062", LINEAR, lambda: combined(edits, [1.0] * len(edits), strategy=strategy, network=network))


def test_a_replaced_tensor_needs_the_network_and_has_to_fit_it():
    whole, network = edit(0), toy_model().network
    refused("VU-E061", SCALE, lambda: negated(whole))
    refused("VU-E061", SCALE, lambda: scaled(whole, 0.5))
    refused("VU-E061", SCALE, lambda: combined([whole, edit(1)], [1.0, 1.0]))
    refused("VU-E054", SCALE, lambda: negated(Edit({SCALE: Replace(torch.ones(4))}), network))
    assert combined([whole], [1.0]).parts[SCALE] is whole.parts[SCALE]


def test_what_becomes_infinite_is_refused():
    huge = Sparse(torch.tensor([0]), torch.tensor([3e38]), (4,))
    refused("VU-E052", BIAS, lambda: scaled(Edit({BIAS: huge}), 10.0))
    refused("VU-E052", BIAS, lambda: combined([Edit({BIAS: huge}), Edit({BIAS: huge})], [1.0, 1.0]))
    factors = LowRank(torch.ones(1, 4), torch.full((6, 1), 3e38), 1.0)
    refused("VU-E052", LINEAR, lambda: combined([Edit({LINEAR: factors})] * 2, [10.0, 1.0]))
    dense = [Edit({LINEAR: attrs.evolve(factors, mask=mask_of(LINEAR, seed))}) for seed in (0, 1)]
    refused("VU-E052", LINEAR, lambda: combined(dense, [10.0, 10.0]))
    refused("VU-E052", LINEAR, lambda: scaled(Edit({LINEAR: attrs.evolve(factors, alpha=1e308)}), 1e10))
    half = toy_model(dtype=torch.float16).network
    far = Edit({SCALE: Replace(torch.full((3,), 6e4, dtype=torch.float16))})
    refused("VU-E052", SCALE, lambda: scaled(far, 2.0, half))
