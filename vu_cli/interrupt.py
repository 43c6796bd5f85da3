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
from vu_core.run_folder import state_of

EXIT_STATUS = 130


def interruption_line(folder: Path | None) -> str:
    """Return what is said after Ctrl-C; ``folder`` is the run that can be continued, if there is one.

    Example:
        >>> interruption_line(Path("runs/0123456789ab"))
        'interrupted; continue with: vu unlearn --resume runs/0123456789ab'
    """
    if folder is None:
        return "interrupted"
    return f"interrupted; continue with: vu unlearn --resume {shlex.quote(str(folder))}"


@attrs.define
class Interruption:
    """Remembers Ctrl-C. The first one unwinds the program; a second one ends it at once.

    Ending at once is safe: everything that `vu` writes is complete under its name or not there at all.

    Args:
        folder: the folder of the run that is going on; happened: Ctrl-C was pressed.
    """

    folder: Path | None = None
    happened: bool = False

    @property
    def resumable(self) -> Path | None:
        """The run folder, if it holds the beginning of a run and not yet its end."""
        with contextlib.suppress(RecordError):  # a folder that cannot be looked into cannot be resumed either
            if self.folder is not None and state_of(self.folder) == "incomplete":
                return self.folder
        return None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.happened:
            show_cursor = "\x1b[?25h" if os.isatty(2) else ""
            with contextlib.suppress(OSError):
                os.write(2, f"\r{show_cursor}{interruption_line(self.resumable)}\n".encode())
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
