"""A small vision transformer over the 100 identities of canvas: one object in one style.

    x_0 = patches(image) + position                                       64 patches of 8x8
    x   = x + attention(norm(x));  x = x + ffn(norm(x))                   per block, pre-norm
    h   = mean over patches of norm(x);  logits = head(h)

Example:
    >>> import torch
    >>> CanvasViT()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 100])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vu_canvas.identities import IDENTITIES

WIDTH, DEPTH, HEADS, HIDDEN, PATCH, PATCHES = 128, 6, 4, 256, 8, 64


class Attention(nn.Module):
    """Multi-head self-attention with one map for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return what every patch reads from all patches, in the shape of ``x``."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)  # (B, heads, N, d / heads) each
        mixed = functional.scaled_dot_product_attention(q, k, v)  # (B, heads, N, d / heads)
        read: Tensor = self.out(mixed.transpose(1, 2).reshape(b, n, d))
        return read


class Block(nn.Module):
    """Attention, then the two linear maps of the feed-forward network, each beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.ffn = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, N, d)`` of ``(B, N, d)``."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.ffn(self.norm2(x))
        return y


class CanvasViT(nn.Module):
    """Map RGB images in [-1, 1], ``(B, 3, 64, 64)``, to logits ``(B, 100)`` in the order of `IDENTITIES`."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, PATCHES, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(IDENTITIES))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, 100)``."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position  # (B, N, d)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits
