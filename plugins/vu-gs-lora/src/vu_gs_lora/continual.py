"""Sequence ``continual``: every task forgets p further classes of a shuffled list."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import ClassVar

import attrs

from vu_core import ConfigError, SequenceTask, Source, setting


@attrs.frozen
class ContinualConfig:
    """Settings of ``continual``."""

    tasks: int = setting(4, help="number of tasks N", ge=1)
    classes_per_task: int = setting(20, help="classes p that each task forgets", ge=1)
    retain: int | None = setting(
        None, help="classes n0 that the first task retains; all that it does not forget when absent", ge=1
    )
    missing: int = setting(0, help="retained classes m without any training example", ge=0)
    order_seed: int = setting(1337, help="seed of the order of the classes", ge=0)


class Continual:
    """Divide K classes into N tasks of p classes each.

    The classes are shuffled once and forgotten from the end of that order::

        order      = shuffle(0 .. K-1)                     Python's Mersenne Twister, seed 1337
        retain_t   = order[0 : n0 - t p]                   of these, order[0 : m] have no training example
        forget_t   = order[n0 - t p : n0 - t p + p]
        old_t      = order[n0 - t p + p : K]               in neither side; must stay forgotten

    n0 is the number of classes that the *first* task retains: K - p unless ``retain`` says less, and then the classes
    behind count as old from the beginning. In the notation "X-Y" of the paper a task knows X classes before it and
    forgets Y of them: K = 100, N = 4 and p = 20 are 100-20, 80-20, 60-20 and 40-20. Labels are never renumbered.

    Args:
        config: see `ContinualConfig`.

    Example:
        >>> letters = {letter: f"class:{letter}" for letter in "abcdef"}
        >>> for task in Continual(ContinualConfig(tasks=2, classes_per_task=2)).tasks(letters):
        ...     print(task.forget, task.leave_out)
        ('class:f', 'class:e') ()
        ('class:d', 'class:c') ('class:f', 'class:e')

    Source:
        GS-LoRA, Zhao et al. 2024, https://arxiv.org/abs/2403.11530; classes without examples: GS-LoRA++,
        https://arxiv.org/abs/2501.09705.
    """

    Config: ClassVar[type[ContinualConfig]] = ContinualConfig
    source: ClassVar[Source] = Source("GS-LoRA, Zhao et al. 2024", "https://arxiv.org/abs/2403.11530", "paper")
    metrics: ClassVar[tuple[str, ...]] = ("continual", "edit-size")

    def __init__(self, config: ContinualConfig) -> None:
        self.config = config

    def tasks(self, classes: Mapping[str, str]) -> tuple[SequenceTask, ...]:
        """Return the tasks in order.

        Args:
            classes: class name to concept text, in the order of the labels.

        Raises:
            ConfigError: there are too few classes for so many tasks (``VU-C160``).
        """
        config, concepts = self.config, tuple(classes.values())
        p = config.classes_per_task
        n0 = self._retained(len(concepts))
        order = list(range(len(concepts)))
        random.Random(config.order_seed).shuffle(order)
        shuffled = tuple(concepts[label] for label in order)
        missing = shuffled[: config.missing]
        tasks = []
        for t in range(config.tasks):
            start = n0 - t * p
            forget, old = shuffled[start : start + p], shuffled[start + p :]
            tasks.append(SequenceTask(forget, leave_out=old, missing=missing))
        return tuple(tasks)

    def _retained(self, K: int) -> int:
        """Return n0, or say why K classes are not enough."""
        config = self.config
        N, p, m = config.tasks, config.classes_per_task, config.missing
        n0 = K - p if config.retain is None else config.retain
        last = n0 - (N - 1) * p  # classes that the last task retains
        if n0 + p > K or last <= m:
            raise ConfigError(
                "VU-C160",
                f"The data has {K} classes, but "
                + (
                    f"the first task retains {n0} and forgets {p}, which are {n0 + p}."
                    if n0 + p > K
                    else f"{N} tasks of {p}, {m} missing classes and one more that the last task retains with examples "
                    + (f"are {N * p + m + 1}." if n0 == K - p else f"do not fit into the {n0 + p} of the first task.")
                ),
                "Use fewer tasks, fewer classes per task or fewer missing ones"
                + ("." if config.retain is None else ", or another sequence.retain."),
                where="sequence",
            )
        return n0
