"""Gradients of the denoising loss, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_core import Batch, DataError, Denoiser, Examples, Model, PlanError, Run, UnlearnError

SCALES = (65536.0, 4096.0, 256.0, 16.0, 1.0)
"""Factors on the loss in fp16, tried in this order."""


@attrs.frozen
class OwnDraws:
    """The run's generators under a prefix, so that an attribution never shares a draw with the training.

    Args:
        run: source of the generators; prefix: name of the attribution.
    """

    run: Run
    prefix: str

    def generator(self, name: str, *keys: object) -> torch.Generator:
        """Return the run's generator called ``prefix/name``."""
        return self.run.generator(f"{self.prefix}/{name}", *keys)


@attrs.frozen
class DenoisingGradients:
    """Differentiate the loss that the denoiser was trained with, in one pass over a table.

    ``loss of a batch = mean((denoiser(z_t, t, c) - y)^2)``

    with ``y`` the noise or the velocity (`Denoiser.target`), a random timestep and fresh noise per example, all drawn
    from the run's seed. Row order and batches are fixed: ``rows 0..B-1``, ``B..2B-1``, and so on.

    Args:
        model: the model; parameters: what to differentiate with respect to, by name.
        draws: source of noise and timesteps; batch_size: examples per gradient.
    """

    model: Denoiser
    parameters: Mapping[str, Tensor]
    draws: OwnDraws
    batch_size: int

    def count(self, examples: Examples) -> int:
        """Return how many gradients `over` yields."""
        return -(-len(examples) // self.batch_size)

    def over(self, examples: Examples) -> Iterator[dict[str, Tensor]]:
        """Yield one gradient per batch, float32, by name; a parameter that the loss does not see has gradient zero.

        Raises:
            DataError: ``VU-D090`` when the table is empty.
            UnlearnError: ``VU-U036`` when the gradients overflow in fp16.
        """
        if not len(examples):
            raise DataError(
                "VU-D090",
                f"There are no {examples.side} examples to compute an attribution from.",
                "Provide at least one example of this side, or choose an attribution that needs no data.",
                where="unlearner.attribution",
            )
        total = self.count(examples)
        for index in range(total):
            first = index * self.batch_size
            rows = tuple(range(first, min(first + self.batch_size, len(examples))))
            yield self._gradient(examples, rows)
            self.draws.run.progress(f"{self.draws.prefix} ({examples.side})", index + 1, total)

    def _gradient(self, examples: Examples, rows: tuple[int, ...]) -> dict[str, Tensor]:
        # Keys: the row itself, so that another batch size changes only what is summed, not what is drawn.
        batch = Batch(examples, rows, 0, rows, self.draws, torch.device(self.draws.run.device))
        tensors = list(self.parameters.values())
        with torch.enable_grad(), _differentiable(tensors):
            z = self.model.latents(batch)  # (B, C, h, w)
            t = batch.integers("timestep", 0, self.model.timesteps)  # (B,)
            n = batch.normal("noise", z.shape[1:]).to(z.dtype)  # (B, C, h, w)
            z_t = self.model.add_noise(z, n, t)
            prediction = self.model.predict(z_t, t, self.model.embed(batch.captions))
            loss = F.mse_loss(prediction.float(), self.model.target(z, n, t).float())
            gradients = self._scaled(loss, tensors)
        return {
            name: torch.zeros_like(p, dtype=torch.float32) if g is None else g
            for (name, p), g in zip(self.parameters.items(), gradients, strict=True)
        }

    def _scaled(self, loss: Tensor, tensors: list[Tensor]) -> list[Tensor | None]:
        """Return the gradients in float32.

        Those below 6e-8 vanish in fp16, so there the loss is scaled up and the gradients are divided in float32; both
        by a power of two, which rounds nothing. The scale is the largest one that overflows nowhere.
        """
        half = self.draws.run.precision == "fp16" or any(tensor.dtype == torch.float16 for tensor in tensors)
        for scale in SCALES if half else (1.0,):
            found = torch.autograd.grad(loss * scale, tensors, allow_unused=True, retain_graph=scale > 1.0)
            gradients = [None if g is None else g.float() for g in found]
            if scale != 1.0:
                gradients = [None if g is None else g / scale for g in gradients]
            if not half or _finite(gradients):
                return gradients
        raise UnlearnError(
            "VU-U036",
            f"The attribution {self.draws.prefix!r} meets gradients that are not finite in fp16, however small the "
            "loss is scaled.",
            "Use --set run.precision=bf16 or fp32.",
            where="unlearner.attribution",
        )


def _finite(gradients: Sequence[Tensor | None]) -> bool:
    """Tell whether every number is finite, by one copy from the device."""
    sound = [g.isfinite().all() for g in gradients if g is not None]
    return not sound or bool(torch.stack(sound).all())


def as_denoiser(model: Model) -> Denoiser:
    """Return the model as what these gradients need.

    Raises:
        PlanError: ``VU-L091`` when it is no denoiser.
    """
    if not isinstance(model, Denoiser):
        raise PlanError(
            "VU-L091",
            f"This attribution needs a denoiser, but the model {model.facts.name!r} has no denoising loss.",
            "Choose an attribution that looks at no data, such as magnitude, or a diffusion model.",
            where="unlearner.attribution.name",
        )
    return model


@contextmanager
def _differentiable(tensors: list[Tensor]) -> Iterator[None]:
    """Let gradients flow to ``tensors``, and put their flags back."""
    before = [tensor.requires_grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor, flag in zip(tensors, before, strict=True):
            tensor.requires_grad_(flag)
