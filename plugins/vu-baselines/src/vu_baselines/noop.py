"""Noop: the model as it is, through every stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from vu_core import Edit, ForgetRetain, Model, Run, Source


@attrs.frozen
class NoopConfig:
    """``noop`` has no settings."""


class Noop:
    """Change nothing: the scores of the untouched model, measured as those of every other method.

    Args:
        config: empty.

    Example:
        >>> Noop(NoopConfig()).defaults
        {}

    Source:
        The control that a method must beat.
    """

    Config: ClassVar[type[NoopConfig]] = NoopConfig
    source: ClassVar[Source] = Source("No unlearning, a control", "https://arxiv.org/abs/2310.12508", "own")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, config: NoopConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Return an edit without parts."""
        return Edit({}, may_be_identity=True)
