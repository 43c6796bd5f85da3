"""Libraries speak to the events of the run, never to the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Read by the libraries when they are imported, so they are set before; a value of the user wins."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class _LogStream(io.TextIOBase):
    """A text stream whose complete lines become log records; what a carriage return overwrites is dropped."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._rest = ""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            visible = _CONTROL.sub("", line.rstrip("\r").rsplit("\r", 1)[-1]).rstrip()
            if visible:
                self._logger.warning("%s", visible)
        self._rest = self._rest.rsplit("\r", 1)[-1]
        return len(text)

    def flush(self) -> None:
        """Keep an unfinished line until it is finished."""


def prepare_libraries() -> None:
    """Ask libraries that are not imported yet to be quiet, by environment variables and log filters."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())  # otherwise `logging` prints warnings itself, as a last resort


@contextlib.contextmanager
def silenced(*, stdout: bool = True) -> Iterator[None]:
    """Divert everything that is printed or warned to `logging` while entered.

    Log records become events of the run (`vu_core.log_events`). Streams opened before, such as our own consoles, still
    reach the terminal.

    Args:
        stdout: divert standard output too, not only standard error.
    """
    prepare_libraries()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(_LogStream(logging.getLogger("stderr"))))
        if stdout:
            stack.enter_context(contextlib.redirect_stdout(_LogStream(logging.getLogger("stdout"))))
        stack.enter_context(warnings.catch_warnings())
        logging.captureWarnings(True)
        stack.callback(logging.captureWarnings, False)
        yield
