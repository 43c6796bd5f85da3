"""Ctrl-C: one line, exit status 130, also when it is pressed again."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import attrs

from vu_core import RecordError
from vu_core.run_folder import can_be_resumed

EXIT_STATUS = 130


def interruption_line(folder: Path | None, further: str = "") -> str:
    """Return what is said after Ctrl-C.

    Args:
        folder: the run that can be continued, if there is one.
        further: the command for what would have come after the run.

    Example:
        >>> interruption_line(Path("runs/0123456789ab"))
        'interrupted; continue with: vu unlearn --resume runs/0123456789ab'
    """
    commands = [] if folder is None else [f"vu unlearn --resume {shlex.quote(str(folder))}"]
    commands += [further] if further else []
    return f"interrupted{'; continue with: ' if commands else ''}{', then: '.join(commands)}"


@attrs.define
class Interruption:
    """Remembers Ctrl-C. The first one unwinds the program; a second one ends it at once.

    Ending at once is safe: everything that `vu` writes is complete under its name or not there at all.

    Args:
        folder: the folder of the run that is going on; happened: Ctrl-C was pressed.
        further: the command that, given the folder, does what comes after the run, where something does.
    """

    folder: Path | None = None
    happened: bool = False
    further: str = ""

    @property
    def resumable(self) -> Path | None:
        """The folder, if it holds the beginning of a run or of a sequence, and not yet its end."""
        with contextlib.suppress(RecordError):  # a folder that cannot be looked into cannot be resumed either
            if self.folder is not None and can_be_resumed(self.folder):
                return self.folder
        return None

    @property
    def line(self) -> str:
        """What is said after Ctrl-C."""
        known = self.further and self.folder is not None
        return interruption_line(self.resumable, f"{self.further} {shlex.quote(str(self.folder))}" if known else "")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.happened:
            show_cursor = "\x1b[?25h" if os.isatty(2) else ""
            with contextlib.suppress(OSError):
                os.write(2, f"\r{show_cursor}{self.line}\n".encode())
            os._exit(EXIT_STATUS)
        self.happened = True
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def watched(self) -> Iterator[Interruption]:
        """Take over SIGINT while entered; afterwards it is ignored if it came, as only the exit is left."""
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN if self.happened else before)
