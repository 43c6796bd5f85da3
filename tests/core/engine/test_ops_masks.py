import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vu_core.ops import kept, pack_mask, top_masks, unpack_mask


@pytest.mark.parametrize(
    ("n", "p", "k"),
    [(20, 0.33, 6), (10, 0.3, 3), (7, 0.5, 3), (10, 0.01, 0), (100, 0.29, 29), (5, 1.0, 5), (0, 0.5, 0)],
)
def test_kept_is_the_floor_of_exact_arithmetic(n, p, k):
    assert kept(n, p) == k


def test_the_example_of_the_specification():
    scores = {"w": torch.tensor([0.1, 0.5, 0.5, 0.2, 0.9])}
    assert top_masks(scores, 0.4)["w"].int().tolist() == [0, 1, 0, 0, 1]
    assert top_masks(scores, 0.4, ties="inclusive")["w"].int().tolist() == [0, 1, 1, 0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(0, 2))
def test_joint_masks_equal_a_stable_sort(seed, p, decimals):
    g = torch.Generator().manual_seed(seed)
    scores = {
        "b.weight": torch.randn(5, 7, generator=g).round(decimals=decimals),
        "a.weight": torch.randn(11, generator=g).round(decimals=decimals),
        "a.bias": torch.zeros(3) * -1.0,
    }
    names = sorted(scores)
    flat = torch.cat([scores[name].flatten() for name in names]) + 0.0
    k = kept(len(flat), p)
    expected = torch.zeros(len(flat), dtype=torch.bool)
    expected[torch.sort(flat, descending=True, stable=True).indices[:k]] = True
    exact, inclusive = top_masks(scores, p), top_masks(scores, p, ties="inclusive")
    assert list(exact) == list(scores)
    assert torch.equal(torch.cat([exact[name].flatten() for name in names]), expected)
    if 0 < k < len(flat):
        cutoff = torch.sort(flat, descending=True).values[k - 1]
        assert torch.equal(torch.cat([inclusive[name].flatten() for name in names]), flat >= cutoff)


def test_per_tensor_keeps_the_share_of_each():
    scores = {"small": torch.arange(4.0), "large": 100 + torch.arange(8.0)}
    masks = top_masks(scores, 0.5, scope="per_tensor")
    assert [int(masks[name].sum()) for name in ("small", "large")] == [2, 4]
    assert int(top_masks(scores, 0.5)["small"].sum()) == 0


def test_scores_that_are_many_and_of_all_sizes():
    g = torch.Generator().manual_seed(0)
    score = torch.randn(300_000, generator=g) * 10.0 ** torch.randint(-30, 30, (300_000,), generator=g)
    mask = top_masks({"w": score}, 0.123)["w"]
    assert int(mask.sum()) == kept(300_000, 0.123)
    assert score[mask].min() >= score[~mask].max()


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(p):
    with pytest.raises(ValueError, match="share"):
        top_masks({"w": torch.ones(2)}, p)


def test_a_score_that_is_not_finite_is_refused_by_name():
    with pytest.raises(ValueError, match=r"w\.weight"):
        top_masks({"w.weight": torch.tensor([1.0, float("nan")])}, 0.5)


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), float("-inf")])
def test_no_score_that_is_not_finite_is_ranked(bad):
    scores = {"a": torch.tensor([3.4e38, -3.4e38, 1e-45, -0.0]), "b": torch.tensor([1.0, bad])}
    with pytest.raises(ValueError, match="'b'"):
        top_masks(scores, 0.5)
    assert top_masks({"a": scores["a"]}, 0.5)["a"].tolist() == [True, False, True, False]


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_packing_is_lossless_and_little_endian(bits):
    mask = torch.tensor(bits, dtype=torch.bool)
    packed = pack_mask(mask)
    assert len(packed) == -(-len(bits) // 8)
    assert torch.equal(unpack_mask(packed, (len(bits),)), mask)
    if bits:
        assert bool(packed[0] & 1) == bits[0]


def test_bytes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="bytes"):
        unpack_mask(torch.zeros(2, dtype=torch.uint8), (4,))
    with pytest.raises(ValueError, match="behind its end"):
        unpack_mask(torch.tensor([255], dtype=torch.uint8), (4,))
