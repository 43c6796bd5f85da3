"""A small convolutional network for digits, and the program that trains the original that methods unlearn from.

    python benchmarks/digits_net.py OUT.safetensors [--seed N]

It is trained as `retrain` trains: the same optimiser, schedule, batches and number of passes, on all training images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 40, 64, 0.05, 0.9, 5e-4
"""The schedule of the original training; results.toml tells `retrain` the same numbers."""


def make() -> nn.Module:
    """Return the untrained network: maps ``(B, 3, 8, 8)`` to logits ``(B, 10)``."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def training_images() -> tuple[Tensor, Tensor]:
    """Return all training images in [-1, 1] and their labels, as the data plugin divides them."""
    from vu_classifiers.digits import CLASSES, Digits, DigitsConfig
    from vu_core.testing import toy_run

    data = Digits("", DigitsConfig())
    built = data.build(data.parse(["class:0"], []), resolution=8, run=toy_run(Path()))
    tables = (built.forget, built.retain)
    images = torch.cat([table.tensors["pixels"] for table in tables]).float() / 127.5 - 1  # (N, 3, 8, 8)
    names = [name for table in tables for name in table.labels["class"]]
    return images, torch.tensor([CLASSES.index(name) for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    network, (images, labels) = make(), training_images()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), str(options.out))


if __name__ == "__main__":
    main()
