"""FADE: the model teaches itself to answer the forgotten prompt as another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_core import Batch, Denoiser, Edit, ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.training import (
    Noised,
    NoisingConfig,
    Timesteps,
    TimestepSampler,
    fit,
    is_finished,
    timestep_range,
    uniform_timesteps,
)
from vu_fade.settled import settled
from vu_fade.teacher_bank import ANSWER, TeacherBank

FADE_SOURCE = Source(
    "FADE / SPARE: self-distillation unlearning with sparse and elastic LoRA, 2026 (v1 FADE, v2 SPARE)",
    "https://arxiv.org/abs/2602.07058",
    "paper+fixes",
)
FADE_WEIGHTING = {"name": "simple", "forget_weight": 0.3, "retain_weight": 1.0}


@attrs.frozen
class FadeConfig(NoisingConfig):
    """Settings of `Fade`."""

    teacher_bank: int = setting(
        0,
        help="answers of the teacher per side, computed once and reused; 0 = fresh ones at each step, as in the paper",
        ge=0,
    )
    split_backward: bool = setting(
        False, help="differentiate the two sides one after the other: half the activation memory", speed_only=True
    )
    retain_sampling: str = setting(
        "cycle",
        help="cycle: every retain example once per pass; with_replacement: drawn anew at each step, as released",
        choices=("cycle", "with_replacement"),
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.teacher_bank and self.training.exhausted != "cycle":
            raise ValueError(
                "a teacher bank is as long for both sides, so each starts over: it needs exhausted = 'cycle'"
            )


class Fade:
    """Make a diffusion model answer a forgotten prompt as it answers another one.

    The student is the denoiser with the trainable change, the teacher the same network with the change taken off::

        L_forget = mean((student(z_f, t_f, c_f) - teacher(z_f, t_f, c_o))^2)
        L_retain = mean((student(z_r, t_r, c_r) - teacher(z_r, t_r, c_r))^2)

    ``c_f`` is the caption of a forget image, ``c_o`` its overwrite caption, ``c_r`` the caption of a retain image;
    ``z`` are their latents with noise of a random timestep ``t``. Student and teacher of a side share latents, noise
    and timestep; the two sides share nothing. No gradient flows through the teacher. The weighting makes one update of
    both losses (by default of ``0.3 * L_forget + 1.0 * L_retain``). No noise target enters, so epsilon- and
    v-prediction need no distinction.

    Args:
        config: see `FadeConfig`.

    Example:
        >>> Fade(FadeConfig(teacher_bank=256)).config.teacher_bank
        256

    Source:
        arXiv 2602.07058, v1 "FADE", v2 "SPARE"; the equations follow the released code.

    Deviates:
        Gradients are really clipped (the released code clips an exhausted iterator); retain examples cycle (there:
        each step draws a batch of different ones anew, ``retain_sampling = "with_replacement"``); teacher and student
        each see both sides as one batch.
    """

    Config: ClassVar[type[FadeConfig]] = FadeConfig
    source: ClassVar[Source] = FADE_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": FADE_WEIGHTING,
        "parameters": {"name": "lora", "rank": 4, "alpha": 4.0},
    }

    def __init__(self, config: FadeConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters on both losses and return what came of it.

        Raises:
            ConfigError: ``VU-C090`` when the range of timesteps is empty or leaves the model's.
            UnlearnError: when a loss or a gradient is not finite.
        """
        return distil(model, data, run, run.parameterise(model), self.config)


def distil(
    model: Model,
    data: ForgetRetain,
    run: Run,
    theta: Theta,
    config: FadeConfig,
    *,
    timestep_sampler: TimestepSampler = uniform_timesteps,
    **facts: Any,
) -> Edit:
    """Fit ``theta`` to the objective of FADE, take it off the model and return the edit.

    Args:
        model: the model that ``theta`` is attached to.
        data: forget and retain examples.
        run: the run.
        theta: what is trained.
        config: settings of the objective.
        timestep_sampler: how timesteps are drawn; asked once per example with a generator of its own.
        facts: JSON values to keep with the edit; the number of tuned parameters is added.
    """
    try:
        losses = Distillation.of(model, theta, config, timestep_sampler)
        tables = data
        if config.teacher_bank and not is_finished(run, "main"):
            bank = TeacherBank(losses, config.teacher_bank, apart=config.split_backward)
            tables, run = bank.fill(data, run)
        fit(theta, losses, tables, run, name="main", regularizer_data=data)
        tuned = sum(p.numel() for p in theta.parameters())
        edit = theta.edit()
        return attrs.evolve(edit, facts={**edit.facts, **facts, "tuned_parameters": tuned})
    finally:
        theta.detach()


@attrs.frozen(eq=False)
class Question:
    """What student and teacher are asked about the rows of one side.

    Args:
        noisy: latents z_t, ``(B, C, h, w)``; timesteps: ``(B,)``.
        captions: what the student reads; overwrites: what the teacher reads (the same for retain).
        answer: the teacher's answer ``(B, C, h, w)`` if a bank already holds it.
    """

    noisy: Tensor
    timesteps: Tensor
    captions: tuple[str, ...]
    overwrites: tuple[str, ...]
    answer: Tensor | None = None


@attrs.frozen(eq=False)
class Distillation:
    """The losses of FADE as `fit` wants them: called with the batches of one or both sides.

    Args:
        model: the denoiser; theta: its trainable change; config: settings.
        timesteps: which are drawn.
    """

    model: Denoiser
    theta: Theta
    config: FadeConfig
    timesteps: Timesteps

    @classmethod
    def of(
        cls,
        model: Model,
        theta: Theta,
        config: FadeConfig,
        timestep_sampler: TimestepSampler = uniform_timesteps,
    ) -> Distillation:
        """Make the losses for a model."""
        timesteps = Timesteps(*timestep_range(model, config), timestep_sampler)
        return cls(cast(Denoiser, model), theta, config, timesteps)

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``forget``: L_f and ``retain``: L_r, those that were asked for, as float32 scalars."""
        if not self.config.split_backward:
            return self._losses(batches)
        # Each side is differentiated before the other side's forward pass begins, so its activations are gone by then.
        parameters = self.theta.parameters()
        return {side: settled(self._losses({side: batch})[side], parameters) for side, batch in batches.items()}

    def _losses(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        questions = {side: self.ask(batch) for side, batch in batches.items()}
        teacher = self.teach(questions)
        student = self._answer(questions, {side: q.captions for side, q in questions.items()})
        return {side: F.mse_loss(student[side].float(), teacher[side].float()) for side in questions}

    def ask(self, batch: Batch) -> Question:
        """Draw noise and timesteps for the rows of one side."""
        if batch.side == "retain" and self.config.retain_sampling == "with_replacement":
            batch = attrs.evolve(batch, rows=_drawn_anew(batch))
        if ANSWER in batch:
            return Question(batch["noisy"], batch["timestep"], batch.captions, batch.overwrites, answer=batch[ANSWER])
        drawn = Noised.of(self.model, batch, self.timesteps, self.config.noise_offset)
        return Question(drawn.noisy, drawn.timesteps, batch.captions, batch.overwrites)

    def teach(self, questions: Mapping[str, Question]) -> dict[str, Tensor]:
        """Return the answers of the untouched model per side, without gradient: one pass, or none with a bank."""
        known = {side: q.answer for side, q in questions.items() if q.answer is not None}
        if len(known) == len(questions):
            return known
        with self.theta.base(), torch.no_grad():
            return self._answer(questions, {side: q.overwrites for side, q in questions.items()})

    def _answer(self, questions: Mapping[str, Question], captions: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
        """Predict all sides as one batch and cut the result into sides."""
        z_t = torch.cat([q.noisy for q in questions.values()])
        t = torch.cat([q.timesteps for q in questions.values()])
        c = self.model.embed([caption for side in questions for caption in captions[side]])
        parts = torch.split(self.model.predict(z_t, t, c), [len(q.timesteps) for q in questions.values()])
        return dict(zip(questions, parts, strict=True))


def _drawn_anew(batch: Batch) -> tuple[int, ...]:
    """Return rows as a fresh iterator per step gives them: all different within a step, independent between steps.

    Row ``i`` is at place ``p_i mod N`` of a permutation of the ``N`` rows that belongs to (step, ``p_i div N``), where
    ``p_i`` is its place in the global batch; portions and processes of a step share the permutation.
    """
    n = len(batch.examples)
    passes = {position // n for position in batch.positions}
    orders = {
        index: torch.randperm(n, generator=batch.draws.generator("row", batch.side, batch.step, index)).tolist()
        for index in passes
    }
    return tuple(orders[position // n][position % n] for position in batch.positions)
