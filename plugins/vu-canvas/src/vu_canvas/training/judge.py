"""Stage 2: the judge, trained on renders only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from vu_canvas.judge import Judge
from vu_canvas.training.data import draw, to_unit
from vu_canvas.training.loop import Say, Schedule, Trainer, averaged_weights

SCHEDULE = Schedule(steps=1500, learning_rate=2e-3, warmup=100, weight_decay=1e-2, average=0.9)
BATCH = 64
IMAGES_PER_PAIR = 400
SMOOTHING = 0.02  # of the labels


def blur(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Return images smoothed by a 3x3 binomial kernel, mixed in with a strength (B,) in [0, 1]."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    soft = functional.conv2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return images + (soft - images) * strength.view(-1, 1, 1, 1)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images that are shifted, blurred, made noisy and changed in contrast, each a little.

    Args:
        images: RGB in [0, 1], (B, 3, 64, 64).
        generator: Where the random choices come from.

    Returns:
        Images of the same shape.
    """
    count = len(images)
    down, right = torch.randint(-3, 4, (2,), generator=generator).tolist()
    padded = functional.pad(images, (3, 3, 3, 3), mode="replicate")
    moved = padded[:, :, 3 + down : 67 + down, 3 + right : 67 + right]
    moved = blur(moved, torch.rand(count, generator=generator))
    noise = torch.randn(moved.shape, generator=generator) * 0.05
    noisy = moved + noise * torch.rand(count, 1, 1, 1, generator=generator)
    contrast = 0.9 + 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
    shift = 0.1 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    return ((noisy - 0.5) * contrast + 0.5 + shift).clamp(0, 1)


def train(folder: Path, say: Say, schedule: Schedule = SCHEDULE, device: str = "cpu") -> None:
    """Train the judge on renders of the training split.

    Args:
        folder: Where checkpoints live.
        say: Where progress lines go.
        schedule: How long and how fast.
        device: Where to train; images are drawn and augmented on the processor, the same for every device.
    """
    torch.manual_seed(schedule.seed)
    model = Judge().to(device)
    trainer = Trainer(model, schedule, folder, "judge", say)
    trainer.resume()
    renders = draw("train", IMAGES_PER_PAIR)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows = torch.randint(len(renders.images), (BATCH,), generator=generator)
        images = augment(to_unit(renders.images[rows]), generator).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            objects, styles = model(images)
        asked = renders.objects[rows].to(device), renders.styles[rows].to(device)
        object_loss = functional.cross_entropy(objects.float(), asked[0], label_smoothing=SMOOTHING)
        style_loss = functional.cross_entropy(styles.float(), asked[1], label_smoothing=SMOOTHING)
        return object_loss + style_loss, {"object": object_loss, "style": style_loss}

    trainer.run(loss)


def load(folder: Path) -> Judge:
    """Return the trained judge."""
    model = Judge()
    model.load_state_dict(averaged_weights(folder, "judge"))
    return model.eval()
