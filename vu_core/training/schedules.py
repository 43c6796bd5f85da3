"""Numbers that change from task to task or from epoch to epoch."""

from __future__ import annotations

import attrs

from vu_core.errors import ConfigError
from vu_core.setting import setting


@attrs.frozen
class From:
    """A step function of the epoch: ``before`` for epochs below ``start_epoch``, then ``value``."""

    start_epoch: int = setting(help="first epoch with the value, from 0", ge=0)
    value: float = setting(help="the value from there on")
    before: float = setting(0.0, help="the value until then")

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the range of the setting holds for; a ``before`` of 0 means that nothing acts yet, and always may be."""
        return (self.value, self.before) if self.before else (self.value,)


Schedule = float | tuple[float, ...] | From
"""What the annotation of such a field is: one number; a list with one number per task; or a step function.

In a file: ``0.2``, ``[0.2, 0.25, 0.25, 0.2]`` or ``{start_epoch = 20, value = 0.01}``.
"""


def value_at(schedule: Schedule, *, task: int = 0, epoch: int = 0, name: str = "the schedule") -> float:
    """Return the number that holds in an epoch of a task.

    Args:
        schedule: see `Schedule`; never changed.
        task: number of the task in its sequence, from 0 (``run.task``).
        epoch: from 0.
        name: key of the setting, for the message.

    Raises:
        ConfigError: ``VU-C054`` when a list has no number for the task.

    Example:
        >>> value_at((0.2, 0.25), task=1), value_at(From(20, 0.01), epoch=19), value_at(From(20, 0.01), epoch=20)
        (0.25, 0.0, 0.01)
    """
    if isinstance(schedule, From):
        return schedule.value if epoch >= schedule.start_epoch else schedule.before
    if isinstance(schedule, tuple):
        if task >= len(schedule):
            raise ConfigError(
                "VU-C054",
                f"{name} has numbers for {len(schedule)} tasks, but this is task {task + 1}.",
                "Give one number per task of the sequence, or one number for all.",
                where=name,
            )
        return schedule[task]
    return schedule
