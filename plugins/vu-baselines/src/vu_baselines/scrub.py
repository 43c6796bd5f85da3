"""SCRUB: part from the teacher on what is forgotten, and follow it on the rest, in turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch.nn.functional as F
from torch import Tensor

from vu_baselines.relabelled import DEFAULTS, Losses, TrunkConfig, as_classifier, published, train, trained
from vu_baselines.smoothing import Smoothing, SmoothingConfig
from vu_baselines.teacher import TEACHERS, Teacher
from vu_core import Batch, Classifier, ConfigError, Edit, ForgetRetain, Model, Run, Side, Source, Theta, setting
from vu_core.training import Training, calls_per_step, steps_per_epoch

SCRUB_SOURCE = Source(
    "Towards unbounded machine unlearning, Kurmanji et al. 2023", "https://arxiv.org/abs/2302.09880", "paper+fixes"
)
SCRUB_TRAINING = attrs.evolve(published(1e-4, 0.0), schedule="constant", weight_decay=5e-4)
"""Of the released code of GS-LoRA, but for decoupled weight decay."""


@attrs.frozen
class ScrubConfig(TrunkConfig):
    """Settings of `Scrub`."""

    training: Training = setting(
        SCRUB_TRAINING, help="settings of the training loop; an epoch is a pass over the retain examples"
    )
    retained: float = setting(
        0.99,
        help="gamma: factor on the cross entropy of retain examples; published: 0.99, 2 to forget 50 or 90 of 100, 20 "
        "on ImageNet-100",
        ge=0,
    )
    distillation: float = setting(1e-3, help="a: factor on the distance to the teacher on retain examples", ge=0)
    temperature: float = setting(2.0, help="T: answers are divided by it before the softmax", gt=0)
    cap: float | None = setting(
        None, help="distance to the teacher beyond which a forget batch is let be; absent = none", gt=0
    )
    inner_epochs: int = setting(10, help="passes over the retain examples in a round", ge=1)
    max_epochs: int = setting(
        5, help="passes over the forget examples in a round, each before one over the retain examples", ge=0
    )
    teacher: str = setting("pretrained", help=TEACHERS, choices=("pretrained", "task-start"))

    def __attrs_post_init__(self) -> None:
        if self.max_epochs > self.inner_epochs:
            raise ValueError(f"max_epochs = {self.max_epochs} is more than inner_epochs = {self.inner_epochs}")
        if self.training.exhausted != "cycle":
            raise ValueError("training.exhausted must be 'cycle': which side a step is about is a matter of its turn")


@attrs.frozen
class Turns:
    """Which side a step is about.

    A round has ``inner_epochs`` passes over the retain examples; a pass over the forget examples goes before each of
    the first ``max_epochs``.

    Args:
        forget_steps: steps of a pass over the forget examples; retain_steps: over the retain ones.
        inner_epochs: passes of a round; max_epochs: how many of them follow a forget pass.

    Example:
        >>> turns = Turns(forget_steps=1, retain_steps=2, inner_epochs=2, max_epochs=1)
        >>> [turns.side(step) for step in range(turns.round_steps)]
        ['forget', 'retain', 'retain', 'retain', 'retain']
    """

    forget_steps: int
    retain_steps: int
    inner_epochs: int
    max_epochs: int

    @property
    def round_steps(self) -> int:
        """Steps of a round."""
        return self.max_epochs * self.forget_steps + self.inner_epochs * self.retain_steps

    def side(self, step: int) -> Side:
        """Return the side of a step, from 0."""
        epoch, inside = divmod(step % self.round_steps, self.forget_steps + self.retain_steps)
        return "forget" if epoch < self.max_epochs and inside < self.forget_steps else "retain"

    def total(self, epochs: int) -> int:
        """Return the steps of so many passes over the retain examples."""
        rounds, rest = divmod(epochs, self.inner_epochs)
        begun = min(rest, self.max_epochs) * self.forget_steps + rest * self.retain_steps
        return rounds * self.round_steps + begun


class Scrub:
    """Part from the teacher on what is forgotten, and follow teacher and labels on the rest.

    With z the logits, z_t those of the teacher and ``KD = mean_b T^2 KL(softmax(z_t / T) || softmax(z / T))``, over all
    weights but those of the head::

        max-step:  L = -KD(x_f)
        min-step:  L = gamma * CE(x_r, y_r) + a * KD(x_r)

    A round has ``inner_epochs`` passes of min-steps over the retain examples. Before each of the first ``max_epochs``
    goes a pass of max-steps over the forget examples; the others undo what these have cost. One optimiser serves all.

    Args:
        config: see `ScrubConfig`.

    Example:
        >>> Scrub(ScrubConfig(retained=2.0)).config.retained
        2.0

    Source:
        Kurmanji et al. 2023, arXiv 2302.09880; the numbers are those of GS-LoRA, Zhao et al. 2024, arXiv 2403.11530.

    Deviates:
        A pass over the forget examples is as many batches as they make, taken from a cycle through them: across the
        end of the cycle an image may come twice and another one not. Weight decay is decoupled (released code: part of
        the gradient). The learning rate is constant (there: a tenth for the last fifth).
    """

    Config: ClassVar[type[ScrubConfig]] = ScrubConfig
    source: ClassVar[Source] = SCRUB_SOURCE
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: ScrubConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            ConfigError: ``VU-C150`` when no side has a turn.
            PlanError: ``VU-L115``, ``VU-L120`` about the head.
        """
        return scrub(model, data, run, self.config)


def scrub(
    model: Model, data: ForgetRetain, run: Run, config: ScrubConfig, strength: float = 0.0, decay: float = 0.0
) -> Edit:
    """Train as `Scrub` does, or with ``strength`` as `ScrubS`, and return the edit.

    Args:
        model: the classifier.
        data: both sides.
        run: the run.
        config: settings.
        strength: sm, factor on the distance to the moving mean; 0 = none.
        decay: of the moving mean, per round.
    """
    classifier = as_classifier(model)
    teacher = Teacher.of_logits(classifier, run, config.teacher)
    turns = turns_of(data, run, config)
    smoothing = Smoothing(SmoothingConfig(strength, decay, turns.round_steps)) if strength else None

    def make(theta: Theta) -> Losses:
        return ScrubLosses(classifier, theta, teacher, turns, config, smoothing)

    targets = trained(model, run, config.train_head)
    run = _planned(run, turns)
    if smoothing is not None:
        run = attrs.evolve(run, regularizers=(*run.regularizers, smoothing))
    seen = attrs.evolve(data, forget=teacher.taught(data.forget), retain=teacher.taught(data.retain))
    return train(model, seen, run, make, targets=targets)


def turns_of(data: ForgetRetain, run: Run, config: ScrubConfig) -> Turns:
    """Return the turns for these examples; a side that the weighting leaves out has none.

    Raises:
        ConfigError: ``VU-C150`` when no side has any.
    """
    sides = {side for call in calls_per_step(data, run) for side in call}
    if sides == {"forget"} and not config.max_epochs:
        raise ConfigError(
            "VU-C150",
            "There is no retain side to pass over, and max_epochs = 0 leaves out the forget side: no step is left.",
            "Set unlearner.max_epochs, or give the retain side a weight and examples.",
            where="unlearner.max_epochs",
        )
    steps = {side: _steps_of(side, data, run) if side in sides else 0 for side in ("forget", "retain")}
    inner = config.inner_epochs if steps["retain"] else max(1, config.max_epochs)
    return Turns(steps["forget"], steps["retain"], inner, config.max_epochs)


def _steps_of(side: str, data: ForgetRetain, run: Run) -> int:
    """Return the steps of a pass over one side."""
    if run.training is None:
        raise RuntimeError("scrub needs run.training")
    training = attrs.evolve(run.training, epoch_of=side, exhausted="cycle")
    return steps_per_epoch(data, attrs.evolve(run, training=training))


def _planned(run: Run, turns: Turns) -> Run:
    """Return the run with the steps of both kinds for its epochs; steps that were given stay."""
    if run.training is None or run.training.epochs is None or run.training.steps is not None:
        return run
    training = attrs.evolve(run.training, epochs=None, steps=turns.total(run.training.epochs))
    return attrs.evolve(run, training=training)


@attrs.frozen(eq=False)
class ScrubLosses:
    """The losses as `fit` wants them; the side that is not at turn is 0.

    Args:
        model: the classifier; theta: what is trained; teacher: its answers; turns: which side a step is about.
        config: settings; smoothing: the moving mean of SCRUB-S, or ``None``.
    """

    model: Classifier
    theta: Theta
    teacher: Teacher
    turns: Turns
    config: ScrubConfig
    smoothing: Smoothing | None = None

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return one scalar per side that was handed over."""
        of_side = {"forget": self.forget, "retain": self.retain}
        return {
            side: of_side[side](batch) if side == self.turns.side(batch.step) else self._nothing()
            for side, batch in batches.items()
        }

    def forget(self, batch: Batch) -> Tensor:
        """Return the loss of a max-step, ``-KD``; with a cap ``max(0, cap - KD)``."""
        z = self.model.logits(self.model.images(batch)).float()  # (B, K)
        kd = divergence(z, self.teacher(batch, self.theta), self.config.temperature)
        return -kd if self.config.cap is None else F.relu(self.config.cap - kd)

    def retain(self, batch: Batch) -> Tensor:
        """Return the loss of a min-step, ``gamma * CE + a * KD + sm * R``."""
        z = self.model.logits(self.model.images(batch)).float()  # (B, K)
        kd = divergence(z, self.teacher(batch, self.theta), self.config.temperature)
        loss = self.config.retained * F.cross_entropy(z, self.model.labels(batch)) + self.config.distillation * kd
        return loss if self.smoothing is None else loss + self.smoothing.distance()

    def _nothing(self) -> Tensor:
        """Return 0 with a gradient of zeros: a weighting that differentiates side by side wants one of each."""
        return 0.0 * self.theta.parameters()[0].float().sum()


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``mean_b T^2 KL(softmax(z_t / T) || softmax(z / T))``, a scalar.

    Args:
        student: logits z, ``(B, K)``.
        teacher: logits z_t, ``(B, K)``.
        temperature: T.

    Example:
        >>> import torch
        >>> round(divergence(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]]), 2.0).item(), 4)
        0.4931
    """
    log_q = (student.float() / temperature).log_softmax(dim=1)  # (B, K)
    log_q_t = (teacher.float() / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(log_q, log_q_t, reduction="batchmean", log_target=True)
