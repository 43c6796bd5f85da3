"""How long, how fast and in which portions a run trains."""

from __future__ import annotations

import math

import attrs

from vu_core.errors import ConfigError
from vu_core.setting import setting


@attrs.frozen
class Training:
    """Settings of `fit`; the table ``[unlearner.training]``. Exactly one of ``steps`` and ``epochs``."""

    steps: int | None = setting(None, help="optimiser steps", ge=1)
    epochs: int | None = setting(None, help="passes over the side that epoch_of names", ge=1)
    batch_size: int = setting(2, help="examples per side and optimiser step, before accumulation", ge=1)
    accumulation: int = setting(1, help="micro-batches per optimiser step; k batches of b equal one of k*b", ge=1)
    lr: float = setting(1e-4, help="peak learning rate", gt=0)
    optimizer: str = setting("adamw", help="adamw, or plain stochastic gradient descent", choices=("adamw", "sgd"))
    momentum: float = setting(0.9, help="momentum of sgd; adamw has its own", ge=0, lt=1)
    schedule: str = setting("cosine", help="learning rate after the warm-up", choices=("constant", "linear", "cosine"))
    min_lr: float = setting(0.0, help="learning rate that linear and cosine fall to", ge=0)
    warmup_steps: int = setting(0, help="steps of linear warm-up, fewer than the steps of the run", ge=0)
    weight_decay: float = setting(0.01, help="weight decay: decoupled with adamw, part of the gradient with sgd", ge=0)
    decay_vectors: bool = setting(
        True, help="decay biases and the weights of norms too, and not only tensors of two and more dimensions"
    )
    max_grad_norm: float = setting(1.0, help="gradients are scaled down to this norm; 0 = never", ge=0)
    exhausted: str = setting(
        "cycle",
        help="cycle: each side starts over; retain_only: an epoch is a pass over the retain examples, on them alone "
        "when the forget ones are through",
        choices=("cycle", "retain_only"),
    )
    epoch_of: str = setting(
        "forget", help="the side that an epoch is a pass over; the other one is cycled", choices=("forget", "retain")
    )
    gradient_conflict: bool = setting(
        False, help="differentiate both sides apart, whatever the weighting, and report how their gradients conflict"
    )
    checkpoint_every: float = setting(
        60.0, help="seconds between checkpoints; 0 = after every step", ge=0, speed_only=True
    )

    def __attrs_post_init__(self) -> None:
        if self.schedule != "constant" and self.min_lr > self.lr:
            raise ValueError(f"the learning rate cannot fall from lr = {self.lr:g} to min_lr = {self.min_lr:g}")


def planned_steps(training: Training, n_forget: int, processes: int = 1, n_retain: int | None = None) -> int:
    """Return the number of optimiser steps of a run: ``steps`` as given, or ``epochs`` times `epoch_steps`.

    Args:
        training: the settings.
        n_forget: number of forget examples, >= 1.
        processes: how many processes share each batch.
        n_retain: number of retain examples; ``None`` or 0 when only the forget side is trained on.

    Returns:
        At least 1.

    Raises:
        ConfigError: ``VU-C031`` unless exactly one of ``steps`` and ``epochs`` is given.

    Example:
        >>> planned_steps(Training(epochs=2, batch_size=4), 10)
        6
        >>> planned_steps(Training(epochs=2, batch_size=4), 10, n_retain=2)
        10
    """
    if training.steps is not None and training.epochs is None:
        return training.steps
    if training.epochs is not None and training.steps is None:
        return training.epochs * epoch_steps(training, n_forget, processes, n_retain)
    raise ConfigError(
        "VU-C031",
        "Exactly one of 'steps' and 'epochs' says how long to train, but "
        + ("both are" if training.steps is not None else "neither is")
        + " given.",
        "Set unlearner.training.steps, or unlearner.training.epochs.",
        where="unlearner.training",
    )


def epoch_steps(training: Training, n_forget: int, processes: int = 1, n_retain: int | None = None) -> int:
    """Return the number of optimiser steps of an epoch, a pass over one side.

    ``ceil(n / B)`` with ``B = min(batch_size * accumulation * processes, n_forget, n_retain)``, the examples of a side
    that a step really sees, and n the examples of the side that ``epoch_of`` names. With ``exhausted = "retain_only"``
    an epoch is a pass over the retain examples, if they are more.

    Args:
        training: the settings.
        n_forget: number of forget examples, >= 1.
        processes: how many processes share each batch.
        n_retain: number of retain examples; ``None`` or 0 when only the forget side is trained on.

    Returns:
        At least 1.

    Example:
        >>> epoch_steps(Training(epochs=2, batch_size=4), 10, n_retain=40)
        3
        >>> epoch_steps(Training(epochs=2, batch_size=4, epoch_of="retain"), 10, n_retain=40)
        10
    """
    batch = training.batch_size * training.accumulation * processes
    size = min(batch, n_forget, n_retain or n_forget)
    passed = n_retain if training.epoch_of == "retain" and n_retain else n_forget
    longest = max(n_forget, n_retain or 0) if training.exhausted == "retain_only" else passed
    return math.ceil(longest / size)


def check_warmup(training: Training, total: int) -> None:
    """Refuse a warm-up that the run never leaves. Raises: ConfigError ``VU-C030``."""
    if training.warmup_steps >= total:
        raise ConfigError(
            "VU-C030",
            f"The warm-up takes {training.warmup_steps} steps, but the run has only {total}: the learning rate "
            "would never reach its value.",
            "Use a shorter warm-up, or train longer.",
            where="unlearner.training.warmup_steps",
        )


def learning_rate(training: Training, step: int, total: int) -> float:
    """Return the learning rate of one step: linear warm-up, then the schedule.

    With W warm-up steps, ``u = (step - W) / (total - W)`` and ``d = lr - min_lr``: ``lr * (step + 1) / (W + 1)`` during
    the warm-up, then ``lr`` (constant), ``min_lr + d * (1 - u)`` (linear) or ``min_lr + d * (1 + cos(pi u)) / 2``
    (cosine).

    Args:
        training: the settings.
        step: optimiser step, from 0.
        total: number of steps.

    Example:
        >>> [round(learning_rate(Training(steps=4, lr=1.0, schedule="linear"), step, 4), 2) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    warmup = training.warmup_steps
    if step < warmup:
        return training.lr * (step + 1) / (warmup + 1)
    passed = (step - warmup) / (total - warmup)
    falls = training.lr - training.min_lr
    if training.schedule == "linear":
        return training.min_lr + falls * (1.0 - passed)
    if training.schedule == "cosine":
        return training.min_lr + falls * 0.5 * (1.0 + math.cos(math.pi * passed))
    return training.lr
