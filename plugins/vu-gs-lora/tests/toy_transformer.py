"""A toy classifier with two transformer blocks that knows the colours of toy images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vu_core import ForgetRetain, Run, TransformerBlock
from vu_core.testing import ToyClassifier, toy_forget_retain

WIDTH, HIDDEN, PATCH, DEPTH = 6, 5, 4, 2


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.Linear(WIDTH, WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x).softmax(-1)
        y: Tensor = x + self.ffn(self.norm(x))
        return y


class _Network(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.blocks = nn.ModuleList(_Block() for _ in range(depth))
        self.fc = nn.Linear(WIDTH, 3)

    def features(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, N, d)
        for block in self.blocks:
            x = block(x)
        return x.mean(1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images))
        return logits


class ToyTransformer(ToyClassifier):
    """Red, green and blue by a few hundred random weights and two blocks; counts its forward passes."""

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._classifier = _Network(depth)
        self.network = nn.ModuleDict({"classifier": self._classifier}).requires_grad_(False).eval()
        self.passes = 0
        self._depth = depth

    def blocks(self) -> tuple[TransformerBlock, ...]:
        names = [f"classifier.blocks.{index}" for index in range(self._depth)]
        return tuple(
            TransformerBlock(
                name, ffn=(f"{name}.ffn.0.weight", f"{name}.ffn.2.weight"), attention=(f"{name}.attention.weight",)
            )
            for name in names
        )

    def logits(self, images: Tensor) -> Tensor:
        self.passes += 1
        return super().logits(images)


def toy_tables(run: Run) -> ForgetRetain:
    """Return toy images with red ones to forget, prepared."""
    return toy_forget_retain(run, model=ToyTransformer())
