"""The loaded toy classifier: a convolution and two linear layers that tell the three colours apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vu_core.data import Batch, Examples
from vu_core.run import Run
from vu_core.testing.toys import AXES, toy_classifier_facts

WIDTH = 8
NOISE = 0.05


class _Network(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, classes)

    def features(self, x: Tensor) -> Tensor:
        pooled = torch.relu(self.conv(x)).mean(dim=(2, 3))  # (B, W)
        return torch.relu(self.hidden(pooled))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.features(x))
        return out


class ToyClassifier:
    """A `Model` and `Classifier` of 323 weights that knows the colour of toy images: red, green or blue.

    Channel c of an image reaches logit c through one weight per layer, large among small random ones; no training is
    needed for an accuracy of 1 on toy images of every split.

    Args:
        weights_seed: seed of the small random weights.

    Example:
        >>> ToyClassifier().logits(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3])
    """

    classes = AXES["colour"]
    head = "classifier.fc"

    def __init__(self, weights_seed: int = 0) -> None:
        with torch.random.fork_rng():  # layers draw their first weights from the global generator
            network = _Network(len(self.classes))
        generator = torch.Generator().manual_seed(weights_seed)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=NOISE, generator=generator)
        with torch.no_grad():
            for colour in range(len(self.classes)):
                network.conv.weight[colour, colour, 1, 1] += 1
                network.hidden.weight[colour, colour] += 8
                network.fc.weight[colour, colour] += 2
        self._classifier = network
        self.network = nn.ModuleDict({"classifier": network})
        self.network.requires_grad_(False).eval()
        self.facts = toy_classifier_facts(weights_seed)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    def prepare(self, examples: Examples, run: Run) -> Examples:
        """Return the table with the columns ``label`` ``(N,)`` and ``pixels`` ``(N, 3, 8, 8)``, unless it reloads."""
        if examples.load is None or "label" in examples.tensors or not len(examples):
            return examples
        labels = torch.tensor([self.classes.index(colour) for colour in examples.labels["colour"]])
        if examples.reload:
            return examples.with_tensors(label=labels)
        rows = range(len(examples))
        pixels = torch.stack([examples.load(row, run.generator("pixels", examples.side, row)) for row in rows])
        return examples.with_tensors(label=labels, pixels=pixels)

    def images(self, batch: Batch) -> Tensor:
        """Return the images of the rows, ``(B, 3, 8, 8)``; drawn anew for a table that reloads."""
        load = batch.examples.load
        if "pixels" in batch or load is None:
            return batch["pixels"]
        drawn = [load(row, draws) for row, draws in zip(batch.rows, batch.generators("pixels"), strict=True)]
        return torch.stack(drawn).to(batch.device)

    def labels(self, batch: Batch) -> Tensor:
        """Return the colours as indices, int64 ``(B,)``."""
        return batch["label"]

    def logits(self, images: Tensor) -> Tensor:
        """Return logits in float32, ``(B, 3)``."""
        out: Tensor = self._classifier(images.to(self.dtype)).float()
        return out

    def features(self, images: Tensor) -> Tensor:
        """Return what goes into ``fc``, ``(B, 8)``, float32."""
        out: Tensor = self._classifier.features(images.to(self.dtype)).float()
        return out
