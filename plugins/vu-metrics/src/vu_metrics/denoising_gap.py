"""How far the edited denoiser is from the untouched one, on images that no method has seen."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attrs
import numpy as np

from vu_core import (
    Batch,
    Denoiser,
    Evaluation,
    Examples,
    MeasureError,
    Model,
    Observations,
    Run,
    Score,
    Source,
    Status,
    digest,
    setting,
)
from vu_metrics.intervals import Floats, bootstrap_mean

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen
class DenoisingGapConfig:
    """Settings of `DenoisingGap`."""

    examples: int = setting(16, help="unseen images per side, evenly spread over those there are", ge=1)
    draws: int = setting(4, help="noise levels per image, evenly spread over all timesteps", ge=1)
    coordinates: int = setting(1024, help="numbers of every prediction that are compared, drawn once", ge=1)
    resamples: int = setting(1000, help="bootstrap samples behind the intervals", ge=100)
    min_ratio: float = setting(1.0, help="forget gap / retain gap at or below which nothing was forgotten", ge=0)
    max_rise: float = setting(0.5, help="relative rise of the retain loss that is reported as a collapse", ge=0)
    batch_size: int = setting(8, help="noisy images per forward pass", ge=1, speed_only=True)


class DenoisingGap:
    """Compare the predictions of the denoiser before and after, for the captions of unseen images.

    For image i and noise level t with noise n (equal before and after)::

        z_t = add_noise(latents(x_i), n, t)
        gap  = mean((eps_after(z_t, t, c_i) - eps_before(z_t, t, c_i))^2)     over at most ``coordinates`` numbers
        loss = mean((eps(z_t, t, c_i) - target)^2)                            target: noise, or velocity

    ``forget_gap`` and ``retain_gap`` are means over images of the mean over noise levels: how much the edit changes
    what the model does with the captions of either side. ``forget_loss`` and ``retain_loss`` say whether it became
    worse at them. The coordinates are drawn once, so the gap is an unbiased estimate of the one over all numbers, and
    exact when there are no more. Noise levels are the middles of ``draws`` equal parts of the T timesteps.
    """

    Config: ClassVar[type[DenoisingGapConfig]] = DenoisingGapConfig
    source: ClassVar[Source] = Source("Denoising gap, part of vu", "https://arxiv.org/abs/2006.11239", "own")
    version: ClassVar[str] = "1"

    def __init__(self, config: DenoisingGapConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the settings and of the pixels and captions that are used."""
        config = self.config
        parts: list[str | bytes] = [
            self.version,
            *(str(getattr(config, k)) for k in ("examples", "draws", "coordinates", "resamples")),
        ]
        for examples in both_sides(evaluation):
            for row in self._rows(examples):
                parts += [examples.captions[row], content(examples, row)]
        return digest("denoising-gap", *parts)

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return per side losses ``(images, draws)`` and the compared predictions, base64 of little-endian float32.

        Draws do not depend on the seed of the run, so that runs can be compared.

        Raises:
            MeasureError: a side has no unseen image, the model has no denoiser, or a prediction is not finite.
        """
        if not isinstance(model, Denoiser):
            raise MeasureError(
                "VU-S090",
                f"The metric 'denoising-gap' needs a model with a denoiser; {model.facts.name!r} has none.",
                "Choose another metric or another model.",
                where="measure.metrics",
            )
        fixed = attrs.evolve(run, seed=0)
        observed: dict[str, Any] = {}
        for examples in both_sides(evaluation):
            rows = self._rows(examples)
            prepared = cast("Model", model).prepare(examples, fixed)
            losses, predictions = self._look(model, prepared, rows, fixed, run)
            if not (np.isfinite(losses).all() and np.isfinite(predictions).all()):
                raise MeasureError(
                    "VU-S096",
                    f"The denoiser predicts numbers that are not finite for {examples.side} images.",
                    "The edit has destroyed the model: unlearn again with a lower learning rate.",
                    where="denoising-gap",
                )
            observed[examples.side] = {
                "losses": [[float(value) for value in row] for row in losses],
                "predictions": base64.b64encode(predictions.astype("<f4").tobytes()).decode(),
            }
        return observed

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return ``forget_gap``, ``retain_gap``, ``forget_loss`` and ``retain_loss``; n is the number of images.

        Raises:
            MeasureError: the observations are not about the same images.
        """
        fingerprint = self.fingerprint(evaluation)
        seed = int(fingerprint[:8], 16)
        gaps, losses = [], []
        for side, direction in (("forget", "up"), ("retain", "down")):
            was, now = loss_per_image(before[side]), loss_per_image(after[side])
            gap = gap_per_image(before[side], after[side], len(now))
            shared: dict[str, Any] = {"unit": "mse", "direction": direction, "n": len(now), "fingerprint": fingerprint}
            low, high = bootstrap_mean(gap, self.config.resamples, seed)
            gaps.append(
                Score(
                    name=f"{side}_gap",
                    before=0.0,
                    after=float(gap.mean()),
                    ci_low=low,
                    ci_high=high,
                    help=f"mean squared change of the denoiser's prediction on unseen {side} images",
                    **shared,
                )
            )
            low, high = bootstrap_mean(now, self.config.resamples, seed)
            change = bootstrap_mean(now - was, self.config.resamples, seed)
            losses.append(
                Score(
                    name=f"{side}_loss",
                    before=float(was.mean()),
                    after=float(now.mean()),
                    ci_low=low,
                    ci_high=high,
                    change_low=change[0],
                    change_high=change[1],
                    help=f"denoising loss on unseen {side} images with their captions",
                    **shared,
                )
            )
        return (*gaps, *losses)

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Doubt an edit that moves forget no more than retain, and a retain loss that rises much."""
        by_name = {score.name: score for score in scores}
        found: list[tuple[Status, str]] = []
        forget, retain, loss = (by_name.get(name) for name in ("forget_gap", "retain_gap", "retain_loss"))
        if forget is not None and retain is not None and forget.after <= self.config.min_ratio * retain.after:
            found.append(
                (
                    "not_forgotten",
                    f"The denoiser changed by {forget.after:.2g} on forget images, {retain.after:.2g} on retain ones.",
                )
            )
        if loss is not None and loss.before is not None and loss.after > (1 + self.config.max_rise) * loss.before:
            found.append(("retain_collapsed", f"The retain loss rose from {loss.before:.3g} to {loss.after:.3g}."))
        return found

    def _rows(self, examples: Examples) -> list[int]:
        """Return the rows that are looked at: all, or ``examples`` evenly spread ones."""
        count = min(self.config.examples, len(examples))
        return [i * len(examples) // count for i in range(count)]

    def _look(
        self, model: Denoiser, examples: Examples, rows: list[int], draws: Run, run: Run
    ) -> tuple[Floats, Floats]:
        """Return losses ``(images, draws)`` and compared predictions ``(images * draws, K)``."""
        import torch

        pairs = [(row, draw) for row in rows for draw in range(self.config.draws)]
        losses: list[Tensor] = []
        predictions: list[Tensor] = []
        with torch.no_grad():
            for first in range(0, len(pairs), self.config.batch_size):
                chunk = pairs[first : first + self.config.batch_size]
                batch = Batch(
                    examples=examples,
                    rows=tuple(row for row, _ in chunk),
                    step=0,
                    positions=tuple(range(first, first + len(chunk))),
                    draws=draws,
                    device=torch.device(run.device),
                )
                levels = [(2 * draw + 1) * model.timesteps // (2 * self.config.draws) for _, draw in chunk]
                loss, prediction = self._predict(model, batch, torch.tensor(levels, device=batch.device), draws)
                losses.append(loss)
                predictions.append(prediction)
                what = f"compare the denoiser on unseen {examples.side} images"
                run.progress(what, min(first + len(chunk), len(pairs)), len(pairs))
        shape = (len(rows), self.config.draws)
        return torch.cat(losses).double().numpy().reshape(shape), torch.cat(predictions).double().numpy()

    def _predict(self, model: Denoiser, batch: Batch, t: Tensor, draws: Run) -> tuple[Tensor, Tensor]:
        """Return the loss ``(B,)`` and the compared numbers ``(B, K)`` of one batch, on the CPU."""
        import torch

        z = model.latents(batch)  # (B, C, h, w)
        noise = batch.normal("denoising-gap", z.shape[1:]).to(z.dtype)  # (B, C, h, w)
        prediction = model.predict(model.add_noise(z, noise, t), t, model.embed(batch.captions)).float()
        target = model.target(z, noise, t).float()
        flat = prediction.flatten(1)
        kept = min(self.config.coordinates, flat.shape[1])
        picked = torch.randperm(flat.shape[1], generator=draws.generator("coordinates"))[:kept].sort().values
        return (prediction - target).square().flatten(1).mean(dim=1).cpu(), flat[:, picked.to(flat.device)].cpu()


def both_sides(evaluation: Evaluation) -> tuple[Examples, Examples]:
    """Return unseen forget and retain images. Raises: MeasureError when a side has none."""
    examples = evaluation.examples
    if examples is None or not all(map(len, examples)):
        raise MeasureError(
            "VU-S091",
            "The denoising gap needs unseen images of both sides, and this data has none in its "
            f"{evaluation.split} part.",
            "Give the data more images, so that some can be held out, or leave 'denoising-gap' out of measure.metrics.",
            where="measure.metrics",
        )
    return examples


def content(examples: Examples, row: int) -> bytes:
    """Return the bytes of an image, or of its columns where there are no pixels."""
    import torch

    if examples.load is not None:
        return examples.load(row, torch.Generator().manual_seed(0)).contiguous().numpy().tobytes()
    return b"".join(
        column[row].detach().cpu().float().contiguous().numpy().tobytes()
        for _, column in sorted(examples.tensors.items())
    )


def loss_per_image(observed: Mapping[str, Any]) -> Floats:
    """Return the loss of every image, ``(N,)``."""
    per_draw: Floats = np.asarray(observed["losses"], dtype=np.float64)
    return np.asarray(per_draw.mean(axis=1))


def gap_per_image(before: Mapping[str, Any], after: Mapping[str, Any], images: int) -> Floats:
    """Return the mean squared difference of the predictions of every image, ``(N,)``."""
    was, now = (
        np.frombuffer(base64.b64decode(o["predictions"]), dtype="<f4").astype(np.float64) for o in (before, after)
    )
    if was.shape != now.shape or len(before["losses"]) != images:
        raise MeasureError(
            "VU-S093",
            "What was observed before and after the edit is not about the same images.",
            "Clear the cache (`vu cache clear`) and measure again.",
            where="denoising-gap",
        )
    return np.asarray(np.square(now - was).reshape(images, -1).mean(axis=1))
