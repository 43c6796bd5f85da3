"""The stage ``vit``: a classifier of the 100 identities, trained on renders only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from vu_canvas.render import STYLES
from vu_canvas.training.data import draw, to_signed
from vu_canvas.training.loop import Say, Schedule, Trainer, averaged_weights
from vu_canvas.vit import CanvasViT

SCHEDULE = Schedule(steps=3500, learning_rate=1.5e-3, warmup=200, weight_decay=2e-2, average=0.99)
BATCH = 96
IMAGES_PER_PAIR = 400
SMOOTHING = 0.02  # of the labels


def train(
    folder: Path, say: Say, schedule: Schedule = SCHEDULE, device: str = "cpu", images_per_pair: int = IMAGES_PER_PAIR
) -> None:
    """Train the classifier on renders of the training split.

    Args:
        folder: Where checkpoints live.
        say: Where progress lines go.
        schedule: How long and how fast.
        device: Where to train; images are drawn and chosen on the processor, the same for every device.
        images_per_pair: How many drawings of each identity.
    """
    torch.manual_seed(schedule.seed)
    model = CanvasViT().to(device)
    trainer = Trainer(model, schedule, folder, "vit", say)
    trainer.resume()
    renders = draw("train", images_per_pair)
    identities = renders.objects * len(STYLES) + renders.styles  # (N,)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows = torch.randint(len(identities), (BATCH,), generator=generator)
        images, wanted = to_signed(renders.images[rows]).to(device), identities[rows].to(device)
        logits = model(images)  # (B, 100)
        right = (logits.detach().argmax(1) == wanted).float().mean()
        return functional.cross_entropy(logits, wanted, label_smoothing=SMOOTHING), {"right": right}

    trainer.run(loss)


def load(folder: Path) -> CanvasViT:
    """Return the trained classifier."""
    model = CanvasViT()
    model.load_state_dict(averaged_weights(folder, "vit"))
    return model.eval()
