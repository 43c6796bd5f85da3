"""What commands of plugins find on the command line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vu_core.event import Event
from vu_core.plan import Plan

if TYPE_CHECKING:
    from vu_core.plugins import Plugins


class Host(Protocol):
    """The program around a command: ``@click.pass_obj`` hands it to the function behind the command.

    A command returns nouns (`vu_core.Table`, `vu_core.RunRecord`, ...) and prints nothing itself.
    """

    @property
    def plugins(self) -> Plugins:
        """Everything that is installed."""
        ...

    def watching(self) -> AbstractContextManager[Callable[[Event], None]]:
        """Show events as progress while entered, and keep what libraries print off the output."""
        ...

    def announce(self, plan: Plan, folder: Path) -> None:
        """Show a plan before its run starts, and remember its folder for Ctrl-C."""
        ...
