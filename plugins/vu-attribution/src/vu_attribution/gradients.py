"""Gradients of the loss that a model was trained with, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_core import Batch, Classifier, DataError, Denoiser, Examples, Model, PlanError, Run, UnlearnError
from vu_core.training import Noised, Timesteps

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
class LossGradients:
    """Differentiate a loss in one pass over a table.

    Row order and batches are fixed: ``rows 0..B-1``, ``B..2B-1``, and so on; the last batch may be smaller.

    Args:
        loss: of a batch, a scalar; see `own_loss`. parameters: what to differentiate with respect to, by name.
        draws: source of random numbers; batch_size: examples per gradient.
    """

    loss: Callable[[Batch], Tensor]
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
            gradients = self._scaled(self.loss(batch), tensors)
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


def own_loss(model: Model, guidance: float = 0.0) -> Callable[[Batch], Tensor]:
    """Return the loss of a batch that the model was trained with, as a float32 scalar.

    A classifier has its cross entropy. A denoiser has, with noise and a timestep of its own per example::

        mean(((1 + w) eps(z_t, t, c) - w eps(z_t, t, "") - y)^2)        y: noise or velocity, `Denoiser.target`

    Args:
        model: a denoiser or a classifier.
        guidance: w; a classifier has none.

    Raises:
        PlanError: ``VU-L091`` when the model is neither.
    """
    if isinstance(model, Denoiser):
        return DenoisingLoss(model, guidance)
    if isinstance(model, Classifier):
        return ClassificationLoss(model)
    raise PlanError(
        "VU-L091",
        f"This attribution needs a denoiser or a classifier, but the model {model.facts.name!r} is neither.",
        "Choose an attribution that looks at no data, such as magnitude, or another model.",
        where="unlearner.attribution.name",
    )


@attrs.frozen(eq=False)
class DenoisingLoss:
    """The loss of a guided denoiser; see `own_loss`.

    Args:
        model: the denoiser; guidance: w.
    """

    model: Denoiser
    guidance: float

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of the rows."""
        drawn = Noised.of(self.model, batch, Timesteps(0, self.model.timesteps))
        y = self.model.target(drawn.latents, drawn.noise, drawn.timesteps)  # (B, C, h, w)
        return F.mse_loss(self._guided(drawn, batch.captions).float(), y.float())

    def _guided(self, drawn: Noised, captions: Sequence[str]) -> Tensor:
        """Return ``(1 + w) eps(c) - w eps("")``, ``(B, C, h, w)``; gradients flow through both."""
        z_t, t, w = drawn.noisy, drawn.timesteps, self.guidance
        if w == 0:
            return self.model.predict(z_t, t, self.model.embed(captions))
        c = self.model.embed([*captions, *[""] * len(captions)])  # (2B, L, D)
        with_caption, without = self.model.predict(z_t.repeat(2, 1, 1, 1), t.repeat(2), c).chunk(2)
        return (1 + w) * with_caption - w * without


@attrs.frozen(eq=False)
class ClassificationLoss:
    """The mean cross entropy of the rows.

    Args:
        model: the classifier.
    """

    model: Classifier

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of the rows."""
        logits = self.model.logits(self.model.images(batch))  # (B, K)
        return F.cross_entropy(logits.float(), self.model.labels(batch))


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
