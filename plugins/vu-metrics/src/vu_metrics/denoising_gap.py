"""How far the edited denoiser is from the untouched one, on images that no method has seen."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

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
from vu_metrics.intervals import FEWEST, Floats, bootstrap_mean, percentiles, resampled_means

if TYPE_CHECKING:
    from torch import Tensor


Way = Literal["up", "down"]
SIDES: Mapping[str, Way] = {"forget": "up", "retain": "down"}
"""Which way gap and loss of a side should go."""


@attrs.frozen
class DenoisingGapConfig:
    """Settings of `DenoisingGap`."""

    examples: int = setting(16, help="unseen images per side, evenly spread over those there are", ge=1)
    draws: int = setting(4, help="noise levels per image, evenly spread over all timesteps", ge=1)
    coordinates: int = setting(1024, help="numbers of every prediction that are compared, drawn once", ge=1)
    resamples: int = setting(1000, help="bootstrap samples behind the intervals", ge=100)
    min_share: float = setting(0.2, help="an overwrite_share below this is reported as not forgotten", le=1)
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

    A gap alone does not tell forgetting from damage: any edit, a random one too, moves predictions. What was asked is
    that the model answers a forget caption c as the untouched one answers its overwrite o. With means over the same
    forget images, noise and noise levels::

        overwrite_share = 1 - mean((eps_after(z_t, t, c) - eps_before(z_t, t, o))^2)
                            / mean((eps_before(z_t, t, c) - eps_before(z_t, t, o))^2)

    1: the overwrite has taken the place; 0: nothing came nearer to it; below 0: predictions went elsewhere. An edit in
    a random direction is near 0 when small and far below 0 when large: at the best length it reaches the squared cosine
    between its direction and the asked one. Data without overwrite captions has no such score.

    ``gap_difference`` is the forget gap minus the retain gap: an edit that moves both sides alike is not about forget.

    Intervals are percentile bootstraps over images; with fewer than five images on a side there is none.
    """

    Config: ClassVar[type[DenoisingGapConfig]] = DenoisingGapConfig
    source: ClassVar[Source] = Source("Denoising gap, part of vu", "https://arxiv.org/abs/2006.11239", "own")
    version: ClassVar[str] = "2"

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
                asked = "" if examples.overwrites is None else examples.overwrites[row]
                parts += [examples.captions[row], asked, content(examples, row)]
        return digest("denoising-gap", *parts)

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return per side losses ``(images, draws)`` and the compared predictions, base64 of little-endian float32.

        Of the untouched model also those for the overwrite captions. Draws do not depend on the seed of the run, so
        that runs can be compared.

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
            losses, predictions, asked = self._look(model, prepared, rows, fixed, run)
            if not (np.isfinite(losses).all() and np.isfinite(predictions).all()):
                raise MeasureError(
                    "VU-S096",
                    f"The denoiser predicts numbers that are not finite for {examples.side} images.",
                    "The edit has destroyed the model: unlearn again with a lower learning rate.",
                    where="denoising-gap",
                )
            observed[examples.side] = {
                "losses": [[float(value) for value in row] for row in losses],
                "predictions": packed(predictions),
                **({} if asked is None else {"asked": packed(asked)}),
            }
        return observed

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return ``overwrite_share``, ``gap_difference``, and gap and loss of both sides; n is the number of images.

        Raises:
            MeasureError: the observations are not about the same images.
        """
        fingerprint = self.fingerprint(evaluation)
        seed, count = int(fingerprint[:8], 16), self.config.resamples
        gaps: dict[str, Floats] = {}
        losses = []
        for side in ("forget", "retain"):
            was, now = loss_per_image(before[side]), loss_per_image(after[side])
            gaps[side] = distance_per_image(before[side]["predictions"], after[side]["predictions"], len(was), len(now))
            change = bootstrap_mean(now - was, count, seed) or (None, None)
            loss = gap_score(f"{side}_loss", now, bootstrap_mean(now, count, seed), SIDES[side], fingerprint)
            losses.append(
                attrs.evolve(
                    loss,
                    before=float(was.mean()),
                    change_low=change[0],
                    change_high=change[1],
                    help=f"denoising loss on unseen {side} images",
                )
            )
        found = [
            gap_score(f"{side}_gap", gap, bootstrap_mean(gap, count, seed), SIDES[side], fingerprint)
            for side, gap in gaps.items()
        ]
        share = self._share(before["forget"], after["forget"], seed, fingerprint)
        return (*share, self._difference(gaps, seed, fingerprint), *found, *losses)

    def _share(
        self, before: Mapping[str, Any], after: Mapping[str, Any], seed: int, fingerprint: str
    ) -> tuple[Score, ...]:
        """Return ``overwrite_share``; nothing where nothing was asked."""
        if "asked" not in before:
            return ()
        n = len(before["losses"])
        asked = distance_per_image(before["predictions"], before["asked"], n, n)
        left = distance_per_image(after["predictions"], before["asked"], n, len(after["losses"]))
        if not asked.mean() > 0:
            return ()
        interval = None
        if n >= FEWEST and asked.min() > 0:
            drawn = [resampled_means(column, self.config.resamples, seed) for column in (left, asked)]
            interval = percentiles(1 - drawn[0] / drawn[1])
        score = gap_score("overwrite_share", left, interval, "up", fingerprint)
        share = 1 - float(left.mean()) / float(asked.mean())
        return (
            attrs.evolve(score, after=share, unit="ratio", help="how near forget captions came to their overwrite"),
        )

    def _difference(self, gaps: Mapping[str, Floats], seed: int, fingerprint: str) -> Score:
        """Return ``gap_difference``; the sides hold different images and are resampled apart."""
        forget, retain = gaps["forget"], gaps["retain"]
        interval = None
        if min(len(forget), len(retain)) >= FEWEST:
            drawn = [resampled_means(gap, self.config.resamples, seed + i) for i, gap in enumerate((forget, retain))]
            interval = percentiles(drawn[0] - drawn[1])
        score = gap_score("gap_difference", forget, interval, "up", fingerprint)
        difference = float(forget.mean() - retain.mean())
        return attrs.evolve(
            score,
            after=difference,
            n=len(forget) + len(retain),
            help="forget gap minus retain gap: is the edit about forget?",
        )

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Doubt a low share, a gap not clearly larger on forget than on retain images, a retain loss that rises.

        Clearly larger is a difference whose interval lies above 0; too few images for one cannot tell more than the
        sign.
        """
        found: list[tuple[Status, str]] = []
        by_name = {score.name: score for score in scores}
        share, difference, loss = (by_name.get(n) for n in ("overwrite_share", "gap_difference", "retain_loss"))
        if share is not None and share.after < self.config.min_share:
            way = f"Forget captions came {100 * share.after:.0f} % of the way to their overwrite"
            found.append(("not_forgotten", f"{way}, less than {100 * self.config.min_share:.0f} %."))
        if difference is not None:
            forget, retain = (by_name[f"{side}_gap"].after for side in ("forget", "retain"))
            clearly = difference.after > 0 if difference.ci_low is None else difference.ci_low > 0
            if not clearly:
                both = f"{forget:.2g} and {retain:.2g}"
                more = "not clearly more" if difference.after > 0 else "no more"
                sentence = f"The denoiser changed {more} on forget images than on retain ones, by {both}."
                found.append(("not_forgotten", sentence))
        if loss is not None and loss.before is not None and loss.after > (1 + self.config.max_rise) * loss.before:
            found.append(("retain_collapsed", f"The retain loss rose from {loss.before:.3g} to {loss.after:.3g}."))
        return found

    def _rows(self, examples: Examples) -> list[int]:
        """Return the rows that are looked at: all, or ``examples`` evenly spread ones."""
        count = min(self.config.examples, len(examples))
        return [i * len(examples) // count for i in range(count)]

    def _look(
        self, model: Denoiser, examples: Examples, rows: list[int], draws: Run, run: Run
    ) -> tuple[Floats, Floats, Floats | None]:
        """Return losses ``(images, draws)`` and compared predictions ``(images * draws, K)``.

        The last are predictions for the overwrite captions, of the untouched model and where there are some.
        """
        import torch

        asked = examples.overwrites is not None and run.edit is None
        pairs = [(row, draw) for row in rows for draw in range(self.config.draws)]
        losses: list[Tensor] = []
        predictions: list[Tensor] = []
        overwrites: list[Tensor] = []
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
                t = torch.tensor(levels, device=batch.device)
                loss, prediction = self._predict(model, batch, t, batch.captions)
                losses.append(loss)
                predictions.append(prediction)
                if asked:
                    overwrites.append(self._predict(model, batch, t, batch.overwrites)[1])
                what = f"compare the denoiser on unseen {examples.side} images"
                run.progress(what, min(first + len(chunk), len(pairs)), len(pairs))
        shape = (len(rows), self.config.draws)
        return (
            torch.cat(losses).double().numpy().reshape(shape),
            torch.cat(predictions).double().numpy(),
            torch.cat(overwrites).double().numpy() if asked else None,
        )

    def _predict(self, model: Denoiser, batch: Batch, t: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the loss ``(B,)`` and the compared numbers ``(B, K)`` of one batch, on the CPU."""
        import torch

        z = model.latents(batch)  # (B, C, h, w)
        noise = batch.normal("denoising-gap", z.shape[1:]).to(z.dtype)  # (B, C, h, w)
        prediction = model.predict(model.add_noise(z, noise, t), t, model.embed(captions)).float()
        target = model.target(z, noise, t).float()
        flat = prediction.flatten(1)
        kept = min(self.config.coordinates, flat.shape[1])
        picked = torch.randperm(flat.shape[1], generator=batch.draws.generator("coordinates"))[:kept].sort().values
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


def packed(predictions: Floats) -> str:
    """Return the numbers as JSON text: base64 of little-endian float32."""
    return base64.b64encode(predictions.astype("<f4").tobytes()).decode()


def distance_per_image(one: str, other: str, images: int, again: int) -> Floats:
    """Return the mean squared difference of packed predictions of every image, ``(images,)``.

    Raises:
        MeasureError: they are not about the same images.
    """
    was, now = (np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64) for text in (one, other))
    if was.shape != now.shape or images != again:
        raise MeasureError(
            "VU-S093",
            "What was observed before and after the edit is not about the same images.",
            "Clear the cache (`vu cache clear`) and measure again.",
            where="denoising-gap",
        )
    return np.asarray(np.square(now - was).reshape(images, -1).mean(axis=1))


def gap_score(
    name: str, values: Floats, interval: tuple[float, float] | None, direction: Way, fingerprint: str
) -> Score:
    """Return the score of a mean over images that is 0 for the untouched model."""
    low, high = interval or (None, None)
    return Score(
        name=name,
        before=0.0,
        after=float(values.mean()),
        unit="mse",
        direction=direction,
        n=len(values),
        ci_low=low,
        ci_high=high,
        fingerprint=fingerprint,
        help=f"mean squared change of the denoiser's prediction on unseen {name.partition('_')[0]} images",
    )
