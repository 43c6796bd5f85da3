"""Log records of libraries as events of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vu_core.event import Event


class _EventHandler(logging.Handler):
    def __init__(self, emit: Callable[[Event], None], stage: str) -> None:
        super().__init__(logging.WARNING)
        self._emit = emit
        self._stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        values = {"logger": record.name, "level": record.levelname.lower(), "message": record.getMessage()}
        self._emit(Event("log", self._stage, values))


@contextmanager
def logs_as_events(emit: Callable[[Event], None], stage: str = "run") -> Iterator[None]:
    """Turn records of level WARNING and above, and Python warnings, into durable ``log`` events while entered.

    The root logger gets one more handler and loses it again; ``warnings.warn`` is routed through `logging` meanwhile.

    Args:
        emit: takes the events, such as the writer of ``events.jsonl``.
        stage: stage named in the events.

    Example:
        >>> seen = []
        >>> with logs_as_events(seen.append):
        ...     logging.getLogger("library").warning("old argument")
        >>> seen[0].values["message"]
        'old argument'
    """
    handler = _EventHandler(emit, stage)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
