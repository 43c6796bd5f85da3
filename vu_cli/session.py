"""What one invocation of `vu` carries from command to command: streams, the way to print, plugins."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import attrs

from vu_cli.interrupt import Interruption
from vu_core import Scorecard, Table, VuError

if TYPE_CHECKING:
    from pathlib import Path

    import click

    from vu_cli.progress import Heard
    from vu_core import Plan, RunRecord
    from vu_core.plugins import Plugins
    from vu_core.sequence_record import SequencePlan, SequenceRecord


RecordT = TypeVar("RecordT", "RunRecord", "SequenceRecord")


@attrs.define(slots=False)
class Session:
    """State of one invocation.

    Args:
        out: the stream for results; err: the stream for progress, notes and errors. Both are taken when the program
            starts, so that output of libraries can be diverted without touching ours.
        arguments: the command line after ``vu``.
        json: print one JSON document on ``out`` and nothing else there.
        quiet: print results and errors only.
        interruption: knows the run folder that a resume could continue.
        objection: what is wrong although there is a result to show; it is printed after the result and decides the
            exit status.
    """

    out: TextIO = attrs.field(factory=lambda: sys.stdout)
    err: TextIO = attrs.field(factory=lambda: sys.stderr)
    arguments: tuple[str, ...] = ()
    json: bool = False
    quiet: bool = False
    interruption: Interruption = attrs.field(factory=Interruption)
    objection: VuError | None = None

    @cached_property
    def plugins(self) -> Plugins:
        """Everything that is installed, looked up once."""
        from vu_cli.silence import silenced
        from vu_core.plugins import discover

        with silenced():
            return discover()

    @contextlib.contextmanager
    def watching(self) -> Iterator[Heard]:
        """Show events as progress while entered, and keep what libraries print off the output."""
        from vu_cli.progress import Heard
        from vu_cli.render import watcher
        from vu_cli.silence import silenced

        with silenced(), watcher(self) as watch:
            yield Heard(watch)

    def announce(self, plan: Plan | SequencePlan, folder: Path) -> None:
        """Show a plan before its run starts, unless only results are wanted, and remember its folder for Ctrl-C."""
        from vu_cli.render import show_plan

        self.interruption.folder = folder
        show_plan(plan, folder, self)

    def untold(self, record: RecordT) -> RecordT:
        """Return a record without the notes that were shown with its plan already."""
        plan_was_shown = not (self.json or self.quiet)
        return attrs.evolve(record, notes=()) if plan_was_shown else record


@attrs.frozen
class Page:
    """A text that a command shows as it is.

    Args:
        text: what a reader sees; facts: the same for ``--json``.
        wrapped: lines that are too long may be broken; those of code must not.
    """

    text: str
    facts: dict[str, Any]
    wrapped: bool = True


@attrs.frozen
class Measurement:
    """What `vu measure` returns.

    Args:
        scorecard: the scores; files: where they were written; warnings: what a reader must know.
    """

    scorecard: Scorecard
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@attrs.frozen
class Evidence:
    """Numbers that a command gives reasons with.

    Args:
        tables: what a reader sees; facts: the same numbers, whole, for ``--json``.
        warnings: what a reader must know.
    """

    tables: tuple[Table, ...]
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()


@attrs.frozen
class Returned:
    """What a command returned, on its way past click, which would take some values for an exit status."""

    noun: Any


@attrs.frozen
class Failed:
    """An exception on its way out of a command, past click, which would give some of them a meaning of its own.

    Args:
        error: what was raised; status: the exit status, where it is not that of the error.
    """

    error: BaseException
    status: int | None = None


def of(context: click.Context) -> Session:
    """Return the session of a click context; a new one where click runs on its own, as in completion."""
    return context.ensure_object(Session)
