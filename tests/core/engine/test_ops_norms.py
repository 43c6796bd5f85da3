import math

import pytest
import torch

from vu_core.ops import clip_to_norm, global_norm, gram, norms
from vu_core.training.gradients import combine


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gram_adds_up_pieces_of_every_shape_in_float64(dtype):
    g = torch.Generator().manual_seed(0)
    shapes = [(norms.CPU_PIECE + 3,), (2, norms.CPU_PIECE), (0,), (5, 7), ()]
    retain = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
    forget = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
    retain[3], forget[3] = retain[3].T, forget[3].T  # not contiguous
    r, f = (torch.cat([t.double().flatten() for t in side]) for side in (retain, forget))
    both = torch.stack([r, f])
    torch.testing.assert_close(gram(retain, forget), both @ both.T, rtol=1e-12, atol=1e-9)


def test_gram_keeps_what_float32_would_lose():
    tiny, huge = torch.full((3,), 1e-30), torch.full((3,), 1e30)
    matrix = gram([tiny], [huge])
    assert matrix[0, 0].item() == pytest.approx(3e-60)
    assert matrix[1, 1].item() == pytest.approx(3e60)
    assert matrix[0, 1].item() == pytest.approx(3.0)


@pytest.mark.parametrize("plain", [True, False])
def test_gradients_are_combined_in_the_buffers_that_hold_them(plain):
    retain = [torch.tensor([1.0, 2.0]), None, torch.tensor([3.0]), None]
    forget = [torch.tensor([10.0, 20.0]), torch.tensor([30.0]), None, None]
    a_retain, a_forget = (0.5, -2.0) if plain else (torch.tensor(0.5).double(), torch.tensor(-2.0).double())
    combined = combine(retain, forget, a_retain, a_forget)
    assert [None if g is None else g.tolist() for g in combined] == [[-19.5, -39.0], [-60.0], [1.5], None]
    assert combined[0] is retain[0]
    assert combined[1] is forget[1]
