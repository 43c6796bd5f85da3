"""Random pairs of gradients, and the coefficients of a rule for them."""

from __future__ import annotations

import math

import torch

DIMENSIONS = (2, 3, 5, 17, 100, 1000)


def pair(cosine: float, norm_r: float = 1.0, norm_f: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two vectors in the plane, float64."""
    sine = math.sqrt(max(0.0, 1 - cosine * cosine))
    return torch.tensor([norm_r, 0.0]).double(), torch.tensor([norm_f * cosine, norm_f * sine]).double()


def matrix(r: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """The Gram matrix of two vectors."""
    both = torch.stack([r, f]).double()
    return both @ both.T


def random_batches(count: int, lowest: float = -0.99, seed: int = 0):
    """Yield pairs of 2 to 1000 dimensions, norms 1e-4 to 1e4, cosines in (lowest, 1], as two ``(N, d)`` tensors.

    Cosines of exactly 1 and 0 are among them.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    each = -(-count // len(DIMENSIONS))
    for size in DIMENSIONS:
        r = torch.randn(each, size, generator=generator, dtype=torch.float64)
        other = torch.randn(each, size, generator=generator, dtype=torch.float64)
        r = r / r.norm(dim=1, keepdim=True)
        other = other - (other * r).sum(1, keepdim=True) * r
        other = other / other.norm(dim=1, keepdim=True)
        cosine = 1 - (1 - lowest) * draw(each, 1)
        cosine[0] = 1.0
        cosine[1] = 0.0
        f = cosine * r + (1 - cosine**2).clamp(min=0).sqrt() * other
        norms = 10 ** (8 * draw(2, each, 1) - 4)
        yield norms[0] * r, norms[1] * f


def random_pairs(count: int, lowest: float = -0.99, seed: int = 0):
    """Yield the same pairs one by one."""
    for r, f in random_batches(count, lowest, seed):
        yield from zip(r, f, strict=True)


def ask(rule, *gradients, state=None):
    """Return the coefficients of a rule for two vectors, or for a Gram matrix, and the flags of the step."""
    state = {} if state is None else state
    gram = gradients[0] if len(gradients) == 1 else matrix(*gradients)
    coefficients = rule.coefficients(torch.as_tensor(gram, dtype=torch.float64), {}, state)
    assert all(type(value) is float for value in coefficients)
    return coefficients, state["flags"]
