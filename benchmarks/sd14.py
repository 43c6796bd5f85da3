"""The work of the benchmarks: networks of Stable Diffusion 1.4's size, one image per side, FADE on both."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import torch

from vu_core import Batch, Event, Examples, ForgetRetain, Run, Theta
from vu_core.adapters import Lora, LoraConfig
from vu_core.plugins import discover
from vu_core.training import Training
from vu_diffusers.stable_diffusion import StableDiffusion
from vu_fade.fade import Distillation, FadeConfig

PIXELS, TOKENS = 128, 77
Networks = tuple[Any, Any, Any, Any]
"""UNet, VAE, text model, scheduler."""


@attrs.frozen
class RandomTokens:
    """A tokenizer that gives every caption 77 ids of its own, as many as the reference reads.

    Args:
        vocabulary: number of ids.
    """

    vocabulary: int

    def __call__(self, captions: Sequence[str], **settings: Any) -> Any:
        rows = [
            torch.randint(
                0, self.vocabulary, (TOKENS,), generator=torch.Generator().manual_seed(zlib.crc32(c.encode()))
            )
            for c in captions
        ]
        ids = torch.stack(rows)
        return SimpleNamespace(input_ids=ids) if settings.get("return_tensors") else {"input_ids": ids.tolist()}


def shared_twin(unet: Any) -> Any:
    """Return another UNet of the same configuration whose weights are the very tensors of the first."""
    with torch.device("meta"):
        twin = type(unet).from_config(unet.config)
    twin.load_state_dict(unet.state_dict(), assign=True)
    return twin.requires_grad_(False).eval()


def model_of(networks: Networks, *, twin: bool) -> StableDiffusion:
    """Return the model class that `vu` uses around the networks; ``twin`` leaves the modules of the UNet to others."""
    unet, vae, text, scheduler = networks
    return StableDiffusion.assemble(
        unet=shared_twin(unet) if twin else unet,
        vae=vae,
        text_encoder=text,
        tokenizer=RandomTokens(text.config.vocab_size),
        scheduler=scheduler,
    )


def data_of(images: int = 1) -> ForgetRetain:
    """Return random images with captions, as many per side as asked for."""

    def pixels(row: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(3, PIXELS, PIXELS, generator=generator)

    def table(side: Any) -> Examples:
        captions = tuple(f"{side} {row}" for row in range(images))
        overwrites = tuple(f"overwrite {row}" for row in range(images)) if side == "forget" else None
        return Examples(side=side, captions=captions, overwrites=overwrites, load=pixels)

    return ForgetRetain(table("forget"), table("retain"), table("forget"), table("retain"))


def run_of(folder: Path, listener: Callable[[Event], None] = lambda event: None, *, steps: int, batch: int = 1) -> Run:
    """Return a run with the settings of the reference: rank 4, alpha 4, AdamW 1e-4, weights 0.3 and 1.0, clip 1.0."""
    weighting = discover(installed=False).registry.get("weighting", "simple").load()
    folder.mkdir(parents=True, exist_ok=True)
    return Run(
        seed=0,
        device="cpu",
        precision="fp32",
        folder=folder,
        cache=folder / "cache",
        training=Training(steps=steps, batch_size=batch, lr=1e-4, schedule="constant"),
        parameters=Lora(LoraConfig(rank=4, alpha=4.0)),
        weighting=weighting(weighting.Config(forget_weight=0.3, retain_weight=1.0)),
        emit_event=listener,
    )


class BareLoop:
    """FADE's own losses in a loop of five lines: what a step of `fit` is compared with.

    Args:
        model: the model.
        data: prepared examples.
        run: settings.
        config: settings of the losses, as in the run that is compared.
    """

    def __init__(self, model: StableDiffusion, data: ForgetRetain, run: Run, config: FadeConfig) -> None:
        self.theta: Theta = run.parameterise(model)
        self.losses = Distillation.of(model, self.theta, config)
        self.data, self.run, self.count = data, run, 0
        self.optimizer = torch.optim.AdamW(self.theta.parameters(), lr=1e-4)

    def step(self) -> None:
        """Losses, backward pass, clipping, update."""
        size = self.run.training.batch_size if self.run.training else 1
        rows = tuple(range(size))
        batches = {
            table.side: Batch(table, rows, self.count, rows, self.run, torch.device("cpu"))
            for table in (self.data.forget, self.data.retain)
        }
        found = self.losses(batches)
        (0.3 * found["forget"] + found["retain"]).backward()
        torch.nn.utils.clip_grad_norm_(self.theta.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.count += 1
