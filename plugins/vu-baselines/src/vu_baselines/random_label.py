"""Random label: another answer for what is forgotten, the right one for the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_core import (
    Batch,
    Classifier,
    ConfigError,
    Denoiser,
    Edit,
    ForgetRetain,
    Model,
    PlanError,
    Run,
    Source,
    Theta,
    setting,
)
from vu_core.adapters import check_subset, subset
from vu_core.training import (
    Noised,
    NoisingConfig,
    Timesteps,
    Training,
    denoising_loss,
    fit,
    learning_rate,
    timestep_range,
)

Losses = Callable[[Mapping[str, Batch]], dict[str, Tensor]]


@attrs.frozen
class RandomLabelConfig(NoisingConfig):
    """Settings of `RandomLabel`."""

    training: Training = setting(
        Training(epochs=5, batch_size=8, lr=1e-5, schedule="constant", weight_decay=0.0),
        help="settings of the training loop",
    )
    forget_scale: float = setting(1.0, help="beta: factor on the forget loss", gt=0)
    teacher: str = setting(
        "current",
        help="diffusion models; who answers the overwrite caption. current: the network as trained so far; base: the "
        "untouched one",
        choices=("current", "base"),
    )
    subset: str | None = setting(
        None,
        help="diffusion models; train only x, x-strict, u, self or all of the denoiser; absent = all that the run's "
        "parameters train",
        check=check_subset,
    )
    relabel: str = setting(
        "uniform",
        help="classifiers. uniform: one of the K - 1 wrong labels; parity: one of all K, the right one included; "
        "next: (y + 1) mod K",
        choices=("uniform", "parity", "next"),
    )
    order: str = setting(
        "mixed",
        help="classifiers. mixed: every step sees both sides; sequential: each epoch passes over the forget examples "
        "and then over the retain ones",
        choices=("mixed", "sequential"),
    )


class RandomLabel:
    """Teach a wrong answer for what is forgotten, and the right one for the rest.

    Both losses are descended. A diffusion model answers the forgotten caption ``c_f`` as it answers the overwrite
    caption ``c'``, at the same noisy latents::

        L_forget = beta * mean((eps(z_t, t, c_f) - sg eps(z_t, t, c'))^2)        sg: no gradient
        L_retain = mean((eps(z_t, t, c_r) - y)^2)                                y: noise or velocity

    The teacher is the network as trained so far, or the untouched one (``teacher = "base"``). A classifier of K classes
    learns a wrong label ``y'`` for a forget image, drawn uniformly among the K - 1 others, once per image and pass::

        L_forget = beta * CE(x_f, y')
        L_retain = CE(x_r, y_r)

    Dropout is off and batch norm keeps its statistics.

    Args:
        config: see `RandomLabelConfig`. The values are those for Stable Diffusion. The recipe for `torch-module`
            has those of the paper for classifiers: ``epochs = 10``, ``optimizer = "sgd"``, ``lr = 0.01``,
            ``weight_decay = 5e-4``, ``batch_size = 256``.

    Example:
        >>> RandomLabel(RandomLabelConfig(relabel="next")).config.relabel
        'next'

    Source:
        Golatkar et al. 2020, arXiv 1911.04933 (classifiers); SalUn, Fan et al. 2023, arXiv 2310.12508 (diffusion).

    Deviates:
        A label never equals the truth and stays for a pass (released code: it may, ``relabel = "parity"``). Every step
        sees both sides (there: all forget images of an epoch first, ``order = "sequential"``, or both shuffled
        together). Loaders are shuffled and gone through (there: the first batch at each step). A sequential training
        begins each pass without momentum. Under a Nash weighting ``forget_scale`` does nothing
        but where the weighting falls back, and a run that sets it is warned.
    """

    Config: ClassVar[type[RandomLabelConfig]] = RandomLabelConfig
    source: ClassVar[Source] = Source(
        "Random labels as in SalUn, Fan et al. 2023", "https://arxiv.org/abs/2310.12508", "paper+fixes"
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "simple", "forget_weight": 1.0, "retain_weight": 1.0},
        "parameters": {"name": "full"},
    }

    def __init__(self, config: RandomLabelConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on both losses and return what came of it.

        Raises:
            ConfigError: ``VU-C090`` when no timestep can be drawn; ``VU-C113`` when a setting is not for this kind of
                model; ``VU-C148`` when the sides cannot take turns.
            PlanError: ``VU-L092`` when nothing belongs to the subset; ``VU-L095`` when there is no other label.
            UnlearnError: when a loss or a gradient is not finite.
        """
        return relearn(model, data, run, self.config)


def relearn(
    model: Model,
    data: ForgetRetain,
    run: Run,
    config: RandomLabelConfig,
    *,
    retain_penalty: Callable[[Theta], Tensor] | None = None,
) -> Edit:
    """Fit the run's parameters to the objective of `RandomLabel`, take them off the model and return the edit.

    Args:
        model: a denoiser or a classifier.
        data: forget and retain examples.
        run: the run.
        config: settings of the objective.
        retain_penalty: a scalar of what is trained, added to the retain loss.
    """
    make, targets = _objective(model, run, config)
    _warn_of_scale(run, config)
    theta = run.parameterise(model, targets=targets)
    try:
        losses = make(theta)

        def penalised(batches: Mapping[str, Batch]) -> dict[str, Tensor]:
            values = losses(batches)
            if retain_penalty is not None and "retain" in values:
                values["retain"] = values["retain"] + retain_penalty(theta)
            return values

        if config.order == "sequential":
            fit_in_turns(theta, penalised, data, run)
        else:
            fit(theta, penalised, data, run)
        tuned = sum(p.numel() for p in theta.parameters())
        edit = theta.edit()
        return attrs.evolve(edit, facts={**edit.facts, "tuned_parameters": tuned})
    finally:
        theta.detach()


def fit_in_turns(theta: Theta, losses: Losses, data: ForgetRetain, run: Run) -> None:
    """Pass over the forget examples and then over the retain ones, in every epoch; each pass is a `fit` of its own.

    The learning rate of an epoch is that of the schedule, counted in epochs.

    Raises:
        ConfigError: ``VU-C148`` when the training has no epochs, or the weighting needs both sides at once.
    """
    training = run.training
    linear = run.weighting is None or run.weighting.linear
    if training is None or training.epochs is None or not linear:
        raise ConfigError(
            "VU-C148",
            "With order = 'sequential' an epoch passes over one side after the other, but "
            + ("the weighting needs both at once." if not linear else "the training counts steps and no epochs."),
            "Use order = 'mixed'." if not linear else "Set unlearner.training.epochs in place of steps.",
            where="unlearner.order",
        )
    schedule = attrs.evolve(training, warmup_steps=0)
    for epoch in range(training.epochs):
        rate = learning_rate(schedule, epoch, training.epochs)
        once = attrs.evolve(run, training=attrs.evolve(schedule, epochs=1, lr=rate, schedule="constant"))
        forget = attrs.evolve(data, retain=data.retain.take(()))
        retain = attrs.evolve(data, forget=data.forget.take(()))
        fit(theta, losses, forget, once, name=f"epoch {epoch} forget", regularizer_data=data)
        fit(theta, losses, retain, once, name=f"epoch {epoch} retain", regularizer_data=data)


def _objective(
    model: Model, run: Run, config: RandomLabelConfig
) -> tuple[Callable[[Theta], Losses], Collection[str] | None]:
    """Return what makes the losses of this kind of model, and which tensors are trained (``None``: all)."""
    if isinstance(model, Denoiser):
        _refuse(config, ("relabel", "order"), "a diffusion model")
        timesteps = Timesteps(*timestep_range(model, config))
        targets = None if config.subset is None else subset(run.candidates(model), config.subset)
        return lambda theta: OtherCaption(model, theta, config, timesteps), targets
    _refuse(config, ("noise_offset", "timestep_low", "timestep_high", "teacher", "subset"), "a classifier")
    classifier = cast(Classifier, model)
    if len(classifier.classes) < 2:
        raise PlanError(
            "VU-L095",
            f"The classifier {model.facts.name!r} has one class only, so there is no other label to learn.",
            "Choose a classifier of two classes or more.",
            where="model",
        )
    return lambda theta: OtherLabel(classifier, config.forget_scale, config.relabel), None


def _warn_of_scale(run: Run, config: RandomLabelConfig) -> None:
    if config.forget_scale != 1 and getattr(run.weighting, "scale_free", False):
        run.emit(
            "warning",
            text=f"forget_scale = {config.forget_scale:g} does not shift the balance: this weighting looks at the "
            "direction of each gradient, not at its length. Use the weighting nash-asymmetric to give one side more "
            "power.",
        )


def _refuse(config: RandomLabelConfig, fields: Collection[str], kind: str) -> None:
    """Object to settings that would do nothing. Raises: ConfigError ``VU-C113``."""
    usual = {field.name: field.default for field in attrs.fields(type(config))}
    set_here = [name for name in fields if getattr(config, name) != usual[name]]
    if set_here:
        raise ConfigError(
            "VU-C113",
            f"The model is {kind}, for which {', '.join(set_here)} would do nothing.",
            "Leave it out.",
            where=f"unlearner.{set_here[0]}",
        )


@attrs.frozen(eq=False)
class OtherCaption:
    """The losses of a diffusion model as `fit` wants them.

    Args:
        model: the denoiser; theta: its trainable change; config: settings.
        timesteps: which are drawn.
    """

    model: Denoiser
    theta: Theta
    config: RandomLabelConfig
    timesteps: Timesteps

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``forget``: L_forget and ``retain``: L_retain, those that were asked for, as float32 scalars."""
        of_side = {"forget": self._forget, "retain": self._retain}
        return {side: of_side[side](batch) for side, batch in batches.items()}

    def _forget(self, batch: Batch) -> Tensor:
        drawn = Noised.of(self.model, batch, self.timesteps, self.config.noise_offset)
        wanted = self._teach(drawn, batch.overwrites)  # (B, C, h, w)
        answer = self.model.predict(drawn.noisy, drawn.timesteps, self.model.embed(batch.captions))  # (B, C, h, w)
        return self.config.forget_scale * F.mse_loss(answer.float(), wanted.float())

    def _retain(self, batch: Batch) -> Tensor:
        drawn = Noised.of(self.model, batch, self.timesteps, self.config.noise_offset)
        return denoising_loss(self.model, drawn, batch.captions)

    @torch.no_grad()
    def _teach(self, drawn: Noised, overwrites: tuple[str, ...]) -> Tensor:
        """Return the answers to the overwrite captions, without gradient, ``(B, C, h, w)``."""
        if self.config.teacher == "current":
            return self.model.predict(drawn.noisy, drawn.timesteps, self.model.embed(overwrites))
        with self.theta.base():
            return self.model.predict(drawn.noisy, drawn.timesteps, self.model.embed(overwrites))


@attrs.frozen(eq=False)
class OtherLabel:
    """The losses of a classifier as `fit` wants them.

    Args:
        model: the classifier; forget_scale: beta; relabel: which label is learned instead of the right one.
    """

    model: Classifier
    forget_scale: float
    relabel: str

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``forget``: L_forget and ``retain``: L_retain, those that were asked for, as float32 scalars."""
        return {side: self._loss(batch) for side, batch in batches.items()}

    def _loss(self, batch: Batch) -> Tensor:
        z = self.model.logits(self.model.images(batch)).float()  # (B, K)
        if batch.side == "retain":
            return F.cross_entropy(z, self.model.labels(batch))
        return self.forget_scale * F.cross_entropy(z, self.wrong_labels(batch))

    def wrong_labels(self, batch: Batch) -> Tensor:
        """Return y', int64 ``(B,)``: the same for a row throughout a pass over the forget examples."""
        y, k = self.model.labels(batch), len(self.model.classes)  # (B,)
        if self.relabel == "next":
            return (y + 1) % k
        # Not a draw of the step: seeded by the row and the pass.
        keys = zip(batch.rows, batch.passes, strict=True)
        generators = [batch.draws.generator("relabel", row, passed) for row, passed in keys]
        if self.relabel == "parity":
            return _uniform(k, generators).to(y)
        others = _uniform(k - 1, generators).to(y)  # (B,), 0 .. K - 2
        return others + (others >= y)  # the truth is stepped over


def _uniform(count: int, generators: list[torch.Generator]) -> Tensor:
    """Draw a number from ``0 .. count - 1`` with each generator, ``(B,)``."""
    return torch.cat([torch.randint(count, (1,), generator=generator) for generator in generators])
