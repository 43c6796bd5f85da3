"""A toy of every other kind, each right in every respect that its conformance tests look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from vu_core.adapters import apply_edit, check_fits, load_edit, save_edit
from vu_core.contracts.exporter import Check
from vu_core.contracts.model import Denoiser, Model, TextToImage
from vu_core.contracts.parameters import Theta
from vu_core.data import Batch, Evaluation, ForgetRetain, digest
from vu_core.edit import Edit
from vu_core.errors import EditError, MeasureError
from vu_core.run import Run
from vu_core.score import Score, Status
from vu_core.setting import setting
from vu_core.source import Source
from vu_core.testing.toy_denoiser import CHANNELS, SIZE
from vu_core.testing.toys import TOY_SOURCE
from vu_core.training import Training, fit


@attrs.frozen
class ToyDistillationConfig:
    """Settings of `ToyDistillation`."""

    training: Training = attrs.field(
        factory=lambda: Training(steps=4, batch_size=2, lr=1e-2), metadata={"help": "settings of the training loop"}
    )
    strength: float = setting(1.0, help="factor of the forget loss", gt=0)


class ToyDistillation:
    """Answer a forgotten caption as the untouched model answers its overwrite; keep all else."""

    Config: ClassVar[type[ToyDistillationConfig]] = ToyDistillationConfig
    source: ClassVar[Source] = TOY_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"parameters": {"name": "lora", "rank": 2, "alpha": 2.0}}

    def __init__(self, config: ToyDistillationConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Return the trained change."""
        theta = run.parameterise(model)
        denoiser = cast(Denoiser, model)

        def loss(batch: Batch) -> Tensor:
            z = denoiser.latents(batch)
            t = batch.integers("timestep", 0, denoiser.timesteps)
            noisy = denoiser.add_noise(z, batch.normal("noise", z.shape[1:]), t)
            with theta.base(), torch.no_grad():
                teacher = denoiser.predict(noisy, t, denoiser.embed(batch.overwrites))
            student = denoiser.predict(noisy, t, denoiser.embed(batch.captions))
            return functional.mse_loss(student, teacher) * (self.config.strength if batch.side == "forget" else 1.0)

        fit(theta, lambda batches: {side: loss(batch) for side, batch in batches.items()}, data, run, name="main")
        return theta.edit()


@attrs.frozen
class ToyBrightnessConfig:
    """Settings of `ToyBrightness`."""

    threshold: float = setting(0.0, help="mean brightness below which an image counts as dark", ge=0, le=1)
    batch_size: int = setting(3, help="images generated at a time", ge=1, speed_only=True)


class ToyBrightness:
    """Measure how bright the generated images are."""

    Config: ClassVar[type[ToyBrightnessConfig]] = ToyBrightnessConfig
    source: ClassVar[Source] = TOY_SOURCE
    version: ClassVar[str] = "1"

    def __init__(self, config: ToyBrightnessConfig) -> None:
        self.config = config

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of version, threshold, items and sampling."""
        items = [f"{item.prompt}\n{item.seed}" for item in evaluation.items]
        sampling = [f"{key}={value}" for key, value in sorted(evaluation.generation.items())]
        return digest("toy-brightness", self.version, str(self.config.threshold), *sampling, *items)

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Mapping[str, Any]:
        """Return the mean brightness of every image, in [0, 1]."""
        refuse_empty(evaluation)
        painter, light = cast(TextToImage, model), []
        for first in range(0, len(evaluation.items), self.config.batch_size):
            batch = evaluation.items[first : first + self.config.batch_size]
            images = painter.generate(
                [item.prompt for item in batch],
                [item.seed for item in batch],
                steps=int(evaluation.generation["steps"]),
                guidance=evaluation.generation["guidance"],
            )
            light += [float(image.mean()) / 255 for image in images]
            run.progress("paint", first + len(batch), len(evaluation.items))
        return {"light": light}

    def scores(self, before: Mapping[str, Any], after: Mapping[str, Any], evaluation: Evaluation) -> tuple[Score, ...]:
        """Return ``brightness``."""
        refuse_empty(evaluation)
        was, now = (sum(side["light"]) / len(side["light"]) for side in (before, after))
        return (
            Score(
                name="brightness",
                before=was,
                after=now,
                unit="fraction",
                direction="none",
                n=len(evaluation.items),
                seeds=tuple(sorted({item.seed for item in evaluation.items})),
                fingerprint=self.fingerprint(evaluation),
                help="mean brightness of the images",
            ),
        )

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Doubt dark images."""
        dark = any(score.after < self.config.threshold for score in scores)
        return [("retain_collapsed", "The images are dark.")] if dark else []


def refuse_empty(evaluation: Evaluation) -> None:
    """Raise MeasureError when there is nothing to measure."""
    if not evaluation.items:
        raise MeasureError("VU-S110", "There is no image to measure.", "Ask for at least one.", where="measure")


@attrs.frozen
class ToyWeightingConfig:
    """Settings of `ToyWeighting`."""

    forget_share: float = setting(0.5, help="weight of the normalised forget gradient", ge=0, le=1)


class ToyWeighting:
    """Add the two gradients after scaling each to length one; a zero gradient counts as zero."""

    Config: ClassVar[type[ToyWeightingConfig]] = ToyWeightingConfig
    source: ClassVar[Source] = TOY_SOURCE
    linear: ClassVar[bool] = False

    def __init__(self, config: ToyWeightingConfig) -> None:
        self.config = config

    def coefficients(
        self, gram: Tensor | None, losses: Mapping[str, Tensor], state: MutableMapping[str, Any]
    ) -> tuple[Tensor | float, Tensor | float]:
        """Return ``(1 - share) / |g_retain|`` and ``share / |g_forget|``."""
        if gram is None:
            raise ValueError("this weighting is not linear: it needs the Gram matrix")
        state["calls"] = int(state.get("calls", 0)) + 1
        squared = gram.diagonal()
        inverse = torch.where(squared > 0, squared, torch.ones_like(squared)).rsqrt() * (squared > 0)
        return (1 - self.config.forget_share) * inverse[0], self.config.forget_share * inverse[1]


@attrs.frozen
class ToyAttributionConfig:
    """Settings of `ToyAttribution`."""

    power: float = setting(1.0, help="exponent of the absolute value", gt=0)


class ToyAttribution:
    """Score every parameter by its absolute value."""

    Config: ClassVar[type[ToyAttributionConfig]] = ToyAttributionConfig
    source: ClassVar[Source] = TOY_SOURCE
    version: ClassVar[str] = "1"

    def __init__(self, config: ToyAttributionConfig) -> None:
        self.config = config

    def attribute(
        self, model: Model, data: ForgetRetain, run: Run, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return ``|w| ** power`` per candidate, float32."""
        return {
            name: parameter.detach().float().abs() ** self.config.power
            for name, parameter in model.network.named_parameters()
            if candidates is None or name in candidates
        }


@attrs.frozen
class ToyPenaltyConfig:
    """Settings of `ToyPenalty`."""

    strength: float = setting(0.5, help="factor of the penalty", ge=0)


class ToyPenalty:
    """Penalise the squared change of the weights, each divided by the size that `prepare` found."""

    Config: ClassVar[type[ToyPenaltyConfig]] = ToyPenaltyConfig
    source: ClassVar[Source] = TOY_SOURCE
    side: ClassVar[Literal["retain", "forget", "outside"]] = "retain"

    def __init__(self, config: ToyPenaltyConfig) -> None:
        self.config = config
        self._sizes: dict[str, Tensor] = {}
        self._theta: Theta | None = None

    def prepare(self, model: Model, theta: Theta, data: ForgetRetain, run: Run) -> None:
        """Keep the mean size of each base weight."""
        self._theta = theta
        tensors = dict(model.network.named_parameters())
        self._sizes = {name: delta.detach().abs().mean() + 1 for name, delta in theta.named_deltas()}
        self._sizes |= {n: t.detach().abs().mean() + 1 for n, t in tensors.items() if n in self._sizes}

    def penalty(self) -> Tensor | None:
        """Return ``strength * sum(mean(delta^2) / size)``."""
        if self._theta is None:
            raise RuntimeError("prepare or load_state comes first")
        terms = [delta.square().mean() / self._sizes[name] for name, delta in self._theta.named_deltas()]
        return self.config.strength * torch.stack(terms).sum()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: this is a penalty only."""

    def state(self) -> Mapping[str, Tensor]:
        """Return the sizes."""
        return self._sizes

    def load_state(self, state: Mapping[str, Tensor], theta: Theta) -> None:
        """Put the sizes back."""
        self._sizes, self._theta = dict(state), theta


@attrs.frozen
class ToyExporterConfig:
    """Settings of `ToyExporter`."""

    name: str = setting("toy", help="stem of the file name")


class ToyExporter:
    """Write the edit into one file, as `vu` stores it."""

    Config: ClassVar[type[ToyExporterConfig]] = ToyExporterConfig
    source: ClassVar[Source] = TOY_SOURCE

    def __init__(self, config: ToyExporterConfig) -> None:
        self.config = config

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write ``NAME.safetensors``. Raises: EditError when there is nothing to write, or for another model."""
        if not edit.parts:
            raise EditError("VU-E110", "The edit is empty.", "Unlearn something first.", where="export")
        for name, part in edit:
            check_fits(model.network, name, part)
        file = folder / f"{self.config.name}.safetensors"
        save_edit(edit, file)
        return (file,)

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> tuple[Check, ...]:
        """Compare what a `ToyPainter` predicts and paints with the file and with the edit."""
        with apply_edit(model.network, load_edit(files[0])):
            prediction, image = _answers(cast(Any, model))
        with apply_edit(model.network, edit):
            wanted, painted = _answers(cast(Any, model))
        error = float((prediction - wanted).abs().max() / (1 + wanted.abs().max()))
        return Check("denoiser", error, 1e-4), Check("image", float((image - painted).abs().mean()), 1e-3)

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        """Return the lines that apply the file to a module."""
        return (
            "from pathlib import Path\n\n"
            "from vu_core.adapters import apply_edit, load_edit\n\n"
            f"with apply_edit(network, load_edit(Path({files[0].name!r}))):  # the network of {base!r}\n"
            "    ...\n"
        )


@torch.no_grad()
def _answers(model: Any) -> tuple[Tensor, Tensor]:
    """Return predictions for two captions, ``(2, 2, 4, 4)``, and one image in [0, 1], ``(8, 8, 3)``."""
    noisy = torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    prediction = model.predict(noisy, torch.tensor([20, 80]), model.embed(["", "a red dot"]))
    image = model.generate(["a red dot"], [0], steps=2, guidance=1.0)[0]
    return prediction, torch.from_numpy(image).float() / 255
