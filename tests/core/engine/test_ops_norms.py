import math

import pytest
import torch

from vu_core.ops import clip_to_norm, global_norm, gram


def test_global_norm_is_the_norm_of_everything_in_one_row():
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 4, generator=g), torch.randn(5, generator=g), torch.zeros(0)]
    joined = torch.cat([t.flatten() for t in tensors]).double()
    assert global_norm(tensors).item() == pytest.approx(joined.norm().item(), rel=1e-7)
    assert global_norm([]).item() == 0.0
    assert global_norm([torch.full((4,), 300.0, dtype=torch.float16)]).item() == 600.0


@pytest.mark.parametrize("bound", [0.5, 1.0, 3.0])
def test_clipping_clips_all_by_one_factor_and_returns_the_norm_before(bound):
    big = [torch.full((2,), 3e5), torch.full((2,), 4e5)]
    assert clip_to_norm(big, bound).item() == pytest.approx(math.sqrt(2) * 5e5)
    assert global_norm(big).item() == pytest.approx(bound)
    assert (big[0] / big[1]).tolist() == pytest.approx([0.75, 0.75])


def test_clipping_leaves_small_ones_and_the_bound_0_alone():
    small = torch.tensor([0.3, 0.4])
    for bound in (1.0, 0.0):
        kept = small.clone()
        clip_to_norm([kept], bound)
        assert torch.equal(kept, small)
    zero = [torch.zeros(2)]
    assert clip_to_norm(zero, 1.0).item() == 0.0
    assert torch.equal(zero[0], torch.zeros(2))


def test_gram_in_the_order_retain_forget_and_none_as_zeros():
    retain = [torch.tensor([3.0, 4.0]), None, torch.tensor([[1.0]]), None]
    forget = [torch.tensor([0.0, 2.0]), torch.tensor([5.0]), None, None]
    matrix = gram(retain, forget)
    assert matrix.dtype == torch.float64
    assert matrix.tolist() == [[26.0, 8.0], [8.0, 29.0]]
    assert gram([None], [None]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_gram_of_half_precision_does_not_overflow():
    half = torch.full((64,), 200.0, dtype=torch.float16)
    assert gram([half], [half])[0, 0].item() == 64 * 200.0**2
