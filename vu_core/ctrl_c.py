"""Tell the user's Ctrl-C from a `KeyboardInterrupt` that some code raises by itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noticing() -> Iterator[Callable[[], bool]]:
    """Watch for Ctrl-C while entered; whoever handled it before still does.

    Python raises `KeyboardInterrupt` for a Ctrl-C in its main thread only, so that one anywhere else is never the
    user's.

    Returns:
        A function that tells whether Ctrl-C was pressed.

    Example:
        >>> with noticing() as pressed:
        ...     pressed()
        False
    """
    before = signal.getsignal(signal.SIGINT)
    count = 0

    def pressed() -> bool:
        return count > 0

    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    handle = before

    def notice(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        handle(number, frame)

    signal.signal(signal.SIGINT, notice)
    try:
        yield pressed
    finally:
        if signal.getsignal(signal.SIGINT) is notice:  # a plugin may have put its own there
            signal.signal(signal.SIGINT, before)
