"""Sums in which a direction that several edits share counts once."""

import math

import attrs
import pytest
import torch

from vu_core import Edit, EditError, LowRank, Replace, Sparse
from vu_core.adapters import combined, edit_digest
from vu_core.adapters.deltas import exact_delta

W, V = "unet.w.weight", "unet.v.weight"
BASE = torch.randn(5, 6, generator=torch.Generator().manual_seed(99))


def network():
    made = torch.nn.ModuleDict({"unet": torch.nn.ModuleDict({name: torch.nn.Linear(6, 5) for name in "wv"})})
    for name in (W, V):
        made.get_parameter(name).data.copy_(BASE)
    return made


def part(kind, seed):
    g = torch.Generator().manual_seed(seed)
    if kind == "replace":
        return Replace(BASE + torch.randn(5, 6, generator=g))
    if kind == "sparse":
        return Sparse(torch.arange(0, 30, 3), torch.randn(10, generator=g), (5, 6))
    mask = torch.rand(5, 6, generator=g) < 0.7 if kind == "masked" else None
    return LowRank(torch.randn(2, 6, generator=g), torch.randn(5, 2, generator=g), 3.0, mask)


def edits(kind, count=3):
    return [Edit({W: part(kind, 10 * row), V: part(kind, 10 * row + 1)}, base="b") for row in range(count)]


def change(edit, name=W):
    return exact_delta(name, edit.parts[name], network()).flatten()


def made_orthogonal(several, weights=None):
    return combined(several, weights or [1.0] * len(several), strategy="orthogonal", network=network())


KINDS = ["low-rank", "masked", "sparse", "replace"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_edit_adds_is_orthogonal_to_the_others_and_spans_the_same(kind):
    several = edits(kind)
    added = [made_orthogonal(several, [float(row == one) for row in range(3)]) for one in range(3)]
    for name in (W, V):
        new = torch.stack([change(each, name) for each in added])
        old = torch.stack([change(each, name) for each in several])
        gram = new @ new.T
        sizes = gram.diagonal().sqrt()
        cosines = gram / sizes[:, None] / sizes
        torch.testing.assert_close(cosines, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
        # Gram-Schmidt: R of the QR decomposition says what is left of each.
        q, r = torch.linalg.qr(old.T)
        torch.testing.assert_close(new, (q * r.diagonal()).T, rtol=0, atol=1e-5)
        assert torch.linalg.matrix_rank(torch.cat([new, old]), rtol=1e-5) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_weights_apply_after_the_changes_have_given_way(kind):
    several, weights = edits(kind), [0.5, 2.0, -1.0]
    added = [made_orthogonal(several, [float(row == one) for row in range(3)]) for one in range(3)]
    wanted = sum(weight * change(each) for weight, each in zip(weights, added, strict=True))
    torch.testing.assert_close(change(made_orthogonal(several, weights)), wanted, rtol=0, atol=1e-5)


def test_the_first_edit_keeps_its_change_whole():
    first, second, _ = edits("low-rank")
    one, other = change(first), change(second)
    for order, whole, rest in (((first, second), one, other), ((second, first), other, one)):
        wanted = whole + rest - (rest @ whole) / (whole @ whole) * whole
        torch.testing.assert_close(change(made_orthogonal(order)), wanted, rtol=0, atol=1e-5)
    assert (change(made_orthogonal((first, second))) - change(made_orthogonal((second, first)))).norm() > 0.1


def test_the_result_stays_low_rank():
    made = made_orthogonal(edits("low-rank", 2))
    assert (made.parts[W].rank, made.parts[W].mask) == (4, None)
    assert torch.equal(made.parts[W].A, torch.cat([each.parts[W].A for each in edits("low-rank", 2)]))


@pytest.mark.parametrize("factor", [1.0, 3.0, -0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_direction_that_is_shared_counts_once(kind, factor):
    (first,) = edits(kind, 1)

    def times(part):
        if isinstance(part, Replace):
            return Replace((BASE.double() + factor * (part.tensor.double() - BASE.double())).float())
        if isinstance(part, Sparse):
            return attrs.evolve(part, values=part.values * factor)
        return attrs.evolve(part, B=part.B * factor)

    again = attrs.evolve(first, parts={name: times(each) for name, each in first})
    made = made_orthogonal([first, again, first])
    assert all(made.parts[name] is first.parts[name] for name in (W, V)), "not the first edit bit for bit"


def test_changes_that_share_nothing_are_only_added_up():
    halves = [Sparse(torch.arange(start, 30, 2), torch.ones(15) * (start + 1), (5, 6)) for start in (0, 1)]
    several = [Edit({W: half}) for half in halves]
    orthogonal, plain = made_orthogonal(several), combined(several, [1.0, 1.0])
    assert torch.equal(orthogonal.parts[W].values, plain.parts[W].values)


@pytest.mark.parametrize("kind", ["low-rank", "sparse", "replace"])
def test_changes_of_zero_take_no_part(kind):
    nothing = {
        "low-rank": LowRank(torch.ones(1, 6), torch.zeros(5, 1), 1.0),
        "sparse": Sparse(torch.tensor([], dtype=torch.int64), torch.tensor([]), (5, 6)),
        "replace": Replace(BASE.clone()),
    }[kind]
    zero, (first, second) = Edit({W: nothing}, base="b"), edits("low-rank", 2)
    wanted = made_orthogonal([first, second])
    for order in ([zero, first, second], [first, zero, second], [first, second, zero]):
        made = made_orthogonal(order)
        for name in (W, V):
            assert torch.equal(made.parts[name].A, wanted.parts[name].A)
            assert torch.equal(made.parts[name].B, wanted.parts[name].B)
    assert W not in made_orthogonal([zero, zero]).parts


@pytest.mark.parametrize("strategy", ["sum", "orthogonal"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_is_no_number_is_refused_and_not_left_out(kind, strategy):
    first, broken = edits(kind, 2)
    wrong = {name: spoiled(each) for name, each in broken}
    for order in ([first, attrs.evolve(broken, parts=wrong)], [attrs.evolve(broken, parts=wrong), first]):
        with pytest.raises(EditError) as caught:
            combined(order, [1.0, 1.0], strategy=strategy, network=network())
        assert caught.value.code == "VU-E052"


def spoiled(each):
    """Return the part with one number that is none; of low-rank parts in A."""
    field = {LowRank: "A", Sparse: "values", Replace: "tensor"}[type(each)]
    numbers = getattr(each, field).clone()
    numbers.view(-1)[0] = math.nan
    return attrs.evolve(each, **{field: numbers})


def test_tensors_are_made_orthogonal_one_by_one():
    first, second = edits("low-rank", 2)
    second = attrs.evolve(second, parts={W: second.parts[W], V: first.parts[V]})
    made = made_orthogonal([first, second])
    assert made.parts[V] is first.parts[V]
    assert made.parts[W].rank == 4


def test_many_edits_that_are_almost_alike_stay_orthogonal():
    g = torch.Generator().manual_seed(0)
    common = torch.randn(30, generator=g)
    several = [
        Edit({W: Sparse(torch.arange(30), common + 1e-3 * torch.randn(30, generator=g), (5, 6))}) for _ in range(6)
    ]
    added = [made_orthogonal(several, [float(row == one) for row in range(6)]) for one in range(6)]
    new = torch.stack([change(each) for each in added])
    cosines = torch.nn.functional.normalize(new) @ torch.nn.functional.normalize(new).T
    # Float32 values of a small difference of large numbers.
    torch.testing.assert_close(cosines, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-5)


def test_the_order_is_part_of_the_result_and_equal_orders_are_equal():
    several = edits("masked")
    digest = edit_digest(made_orthogonal(several))
    assert digest == edit_digest(made_orthogonal(edits("masked")))
    assert digest != edit_digest(made_orthogonal(several[::-1]))
