"""Standard output and standard error of one invocation: what cannot be written is an error, not a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO, TextIO, TypeVar

from vu_core import RecordError

LOST = "VU-R122"
"""Code of the error that says that standard output cannot be written."""
ResultT = TypeVar("ResultT")


class _Guarded(io.TextIOBase):
    """A standard stream that remembers when it failed; ``None`` stands for one that was closed from the beginning."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._why = "it is closed" if stream is None else ""

    @property
    def lost(self) -> bool:
        """Something could not be written."""
        return bool(self._why)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "errors", None) or "strict"

    @property
    def buffer(self) -> BinaryIO | None:
        """The stream below for bytes, into which click writes completion scripts."""
        return getattr(self._stream, "buffer", None)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("the stream was closed before the program began")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        return self._do(lambda stream: stream.write(_spelt(text, stream)), len(text))

    def flush(self) -> None:
        self._do(lambda stream: stream.flush(), None)

    def _do(self, work: Callable[[TextIO], ResultT], otherwise: ResultT) -> ResultT:
        if self.lost or self._stream is None:
            self._failed(self._why)
            return otherwise
        try:
            return work(self._stream)
        except (OSError, ValueError) as error:
            self._why = getattr(error, "strerror", None) or str(error)
            if isinstance(error, BrokenPipeError):
                raise
            self._failed(self._why)
            return otherwise

    def _failed(self, why: str) -> None:
        """Do nothing: whoever cannot be told cannot be told that, either."""

    def abandon(self) -> None:
        """Point a stream that failed to nowhere, so that the last flush of the interpreter does not fail again."""
        if self.lost and self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class _Results(_Guarded):
    """Standard output: results that get lost are an error."""

    def _failed(self, why: str) -> None:
        raise RecordError(
            LOST,
            f"Standard output cannot be written: {why}.",
            "Send it to a terminal, a pipe or a file on a disk with space; what a run wrote into its folder is kept.",
        )


def _spelt(text: str, stream: TextIO) -> str:
    """Return ``text`` in the characters that the stream knows."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Let ``sys.stdout`` raise `RecordError` where it cannot be written, and ``sys.stderr`` give up in silence.

    A reader that goes away is a BrokenPipeError, as ever.
    """
    out, err = _Results(sys.stdout), _Guarded(sys.stderr)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        out.abandon()
        err.abandon()
