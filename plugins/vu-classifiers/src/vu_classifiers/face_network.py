"""The vision transformer of face recognition, and its heads with and without margin.

    x_0 = dropout([cls; patches(image)] + position)                       (B, 1 + N, d)
    x   = x + attention(norm(x));  x = x + ffn(norm(x))                   per block, pre-norm
    h   = norm(x)[cls]                                                    (B, d), the features

    cosface:  z_k = s cos_k                with margin of the true class y:  z_y = s (cos_y - m)
    arcface:  z_k = s cos_k                                                  z_y = s cos(angle_y + m)
    softmax:  z   = W h + b                                                  z_y as it is

where ``cos_k`` is the cosine of ``h`` and row k of W. Attention is scaled by ``d^(-1/2)``, the width of the model, and
not by that of its heads, as in the published network.

Source:
    "Face Transformer for Recognition", Zhong and Deng 2021, https://arxiv.org/abs/2103.14803;
    "CosFace", Wang et al. 2018, https://arxiv.org/abs/1801.09414;
    "ArcFace", Deng et al. 2019, https://arxiv.org/abs/1801.07698.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vu_classifiers.architecture import Architecture


class Attention(nn.Module):
    """Multi-head self-attention with one map for queries, keys and values, which has no bias."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        inner = a.heads * a.head_width
        self.heads, self.scale = a.heads, a.width**-0.5
        self.qkv = nn.Linear(a.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, a.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what every token reads from all tokens, in the shape of ``x``."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, head width) each
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)  # (B, heads, N, head width)
        read: Tensor = self.out(mixed.transpose(1, 2).reshape(b, n, -1))
        return read


class Block(nn.Module):
    """Attention, then the two linear maps of the feed-forward network, each beside a shortcut."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(a.width), nn.LayerNorm(a.width)
        self.attention, self.drop = Attention(a), nn.Dropout(a.dropout)
        self.ffn = nn.Sequential(
            nn.Linear(a.width, a.hidden),
            nn.GELU(),
            nn.Dropout(a.dropout),
            nn.Linear(a.hidden, a.width),
            nn.Dropout(a.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, N, d)`` of ``(B, N, d)``."""
        x = x + self.drop(self.attention(self.norm1(x)))
        y: Tensor = x + self.ffn(self.norm2(x))
        return y


class CosineHead(nn.Module):
    """Compare features with one direction per class: ``z_k = s cos(h, w_k)``.

    Args:
        width: d; classes: K; kind: ``cosface`` or ``arcface``, which differ in their margin only; scale: s;
            margin: m >= 0.

    Example:
        >>> head = CosineHead(2, 3, "cosface", scale=10.0, margin=0.5)
        >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]))
        >>> h = torch.tensor([[2.0, 0.0]])
        >>> [round(float(z), 2) for z in head(h)[0]]
        [10.0, 0.0, 6.0]
        >>> [round(float(z), 2) for z in head.with_margin(h, torch.tensor([0]))[0]]
        [5.0, 0.0, 6.0]
    """

    def __init__(self, width: int, classes: int, kind: str, scale: float, margin: float) -> None:
        super().__init__()
        self.kind, self.scale, self.margin = kind, scale, margin
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, K)`` of features ``(B, d)``; no label is needed."""
        return self.scale * self._cosines(features)

    def with_margin(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return logits ``(B, K)`` in which the true class must win by the margin, as they are trained.

        Args:
            features: ``(B, d)``.
            labels: int64 ``(B,)`` in 0 .. K - 1.

        For ``arcface`` the margin is added to the angle as long as the sum is at most pi; beyond it ``m sin m`` is
        taken off the cosine, so that logits go on falling.
        """
        cosines = self._cosines(features)  # (B, K)
        true = cosines.gather(1, labels[:, None])  # (B, 1)
        m = self.margin
        if self.kind == "cosface":
            less = true - m
        else:
            # The slope of the root is infinite at 0, where a feature points exactly along its row.
            sine = (1 - true.square()).clamp_min(torch.finfo(true.dtype).eps).sqrt()
            turned = true * math.cos(m) - sine * math.sin(m)  # cos(angle + m)
            less = torch.where(true > -math.cos(m), turned, true - m * math.sin(m))
        return self.scale * cosines.scatter(1, labels[:, None], less)

    def _cosines(self, features: Tensor) -> Tensor:
        return functional.linear(functional.normalize(features, dim=1), functional.normalize(self.weight, dim=1))


class FaceTransformer(nn.Module):
    """Map images ``(B, 3, size, size)`` to logits ``(B, K)``; no label is needed.

    Example:
        >>> network = FaceTransformer(Architecture(classes=3, size=16, width=8, depth=1, heads=1, hidden=16))
        >>> network(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3])
    """

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, a.width, a.patch, a.stride, a.pad)
        self.cls = nn.Parameter(torch.randn(1, 1, a.width))
        self.position = nn.Parameter(torch.randn(1, a.tokens, a.width))
        self.drop = nn.Dropout(a.dropout)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.depth))
        self.norm = nn.LayerNorm(a.width)
        self.head = (
            nn.Linear(a.width, a.classes)
            if a.head == "softmax"
            else CosineHead(a.width, a.classes, a.head, a.scale, a.margin)
        )

    def features(self, images: Tensor) -> Tensor:
        """Return what goes into the head, ``(B, d)``."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, N, d)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + N, d)
        x = self.drop(x + self.position)
        for block in self.blocks:
            x = block(x)
        h: Tensor = self.norm(x[:, 0])
        return h

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, K)``."""
        logits: Tensor = self.head(self.features(images))
        return logits
