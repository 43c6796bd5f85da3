"""A toy sequence, for tests only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs

from vu_core.contracts.sequence import SequenceTask
from vu_core.errors import ConfigError
from vu_core.setting import setting
from vu_core.source import Source


@attrs.frozen
class ToySequenceConfig:
    """Settings of `ToySequence`."""

    tasks: int = setting(2, help="number of tasks", ge=1)
    missing: int = setting(0, help="classes, from the end, that are retained without examples", ge=0)


class ToySequence:
    """Forget the classes one by one, in their order."""

    Config: ClassVar[type[ToySequenceConfig]] = ToySequenceConfig
    source: ClassVar[Source] = Source("A toy for tests, part of vu", "https://example.org/toy", "own")
    metrics: ClassVar[tuple[str, ...]] = ("toy-brightness",)

    def __init__(self, config: ToySequenceConfig) -> None:
        self.config = config

    def tasks(self, classes: Mapping[str, str]) -> tuple[SequenceTask, ...]:
        """Return a task per class. Raises: ConfigError when no class would be left."""
        concepts = tuple(classes.values())
        count, missing = self.config.tasks, self.config.missing
        if len(concepts) <= count + missing:
            raise ConfigError("VU-C160", f"There are {len(concepts)} classes only.", "Use fewer tasks.")
        kept_blind = concepts[len(concepts) - missing :]
        return tuple(SequenceTask((concepts[n],), missing=kept_blind, name=f"the {n + 1}.") for n in range(count))
