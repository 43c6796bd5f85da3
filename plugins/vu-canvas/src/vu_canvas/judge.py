"""The judge: a small classifier that says which object and which style a canvas image shows.

It was trained on renders only, never on generated or reconstructed images, so that it measures a
model without having seen its output. It must not be used to train an unlearner.

Example:
    >>> import torch
    >>> from vu_canvas.judge import load_judge
    >>> from vu_canvas.render import OBJECTS, STYLES, render
    >>> judge = load_judge()
    >>> objects, styles = judge.classify(torch.from_numpy(render("star", "neon", 0))[None])
    >>> OBJECTS[objects[0]], STYLES[styles[0]]
    ('star', 'neon')
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from vu_canvas.render import OBJECTS, STYLES

WIDTHS = (32, 64, 96)


class Residual(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape."""
        return functional.relu(x + self.second(self.first(x)))


class Judge(nn.Module):
    """A convolutional network with one head for the object and one for the style."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [Residual(width)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.object_head = nn.Linear(16 * channels, len(OBJECTS))
        self.style_head = nn.Linear(2 * channels, len(STYLES))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of both heads.

        Args:
            images: RGB in [0, 1], float, (B, 3, 64, 64).

        Returns:
            Object logits (B, 10) and style logits (B, 10).
        """
        x = self.features(images * 2 - 1)  # (B, 96, 8, 8)
        places = functional.adaptive_avg_pool2d(x, 4).flatten(1)  # (B, 1536)
        everywhere = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)  # (B, 192)
        return self.object_head(places), self.style_head(everywhere)

    @torch.no_grad()
    def classify(self, images: torch.Tensor, batch: int = 250) -> tuple[torch.Tensor, torch.Tensor]:
        """Name the object and the style of every image.

        Args:
            images: uint8 (N, 64, 64, 3), or float in [0, 1] (N, 3, 64, 64).
            batch: Images per pass.

        Returns:
            Positions in `OBJECTS` (N,) and positions in `STYLES` (N,).

        Raises:
            ValueError: The images have another shape.
        """
        if images.dtype == torch.uint8 and images.shape[1:] == (64, 64, 3):
            images = images.permute(0, 3, 1, 2)
        if images.shape[1:] != (3, 64, 64):
            shape = tuple(images.shape)
            raise ValueError(f"images must be uint8 (N, 64, 64, 3) or float (N, 3, 64, 64), got {images.dtype} {shape}")
        self.eval()
        objects, styles = [], []
        for part in torch.split(images, batch):
            x = part.to(self.object_head.weight.device, torch.float32)
            object_logits, style_logits = self(x / 255 if part.dtype == torch.uint8 else x)
            objects.append(object_logits.argmax(1).cpu())
            styles.append(style_logits.argmax(1).cpu())
        return torch.cat(objects), torch.cat(styles)


def load_judge() -> Judge:
    """Return the judge with the weights of this package, on the CPU, in float32."""
    with as_file(files("vu_canvas") / "weights" / "judge.safetensors") as path:
        return read_judge(path)


def read_judge(path: Path) -> Judge:
    """Return the judge whose weights lie in a safetensors file, on the CPU, in float32."""
    judge = Judge()
    state = load_file(str(path))
    judge.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return judge.eval()
