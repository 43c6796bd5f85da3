"""Entry point: run one command, turn whatever happens into a message and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vu_cli.interrupt import EXIT_STATUS, Interruption, interruption_line

if TYPE_CHECKING:
    from vu_core.plugins import Plugins

BROKEN_PIPE_STATUS = 141
"""128 + SIGPIPE: what a shell reports for a program whose reader went away."""


def main() -> int:
    """Run `vu` as a program; the console script returns this exit status."""
    with Interruption().watched() as interruption:
        return run(sys.argv[1:], interruption)


def run(arguments: Sequence[str], interruption: Interruption | None = None, *, plugins: Plugins | None = None) -> int:
    """Run one command line and return its exit status; it prints, but raises nothing.

    Args:
        arguments: what follows ``vu``.
        interruption: who watches for Ctrl-C.
        plugins: what to use in place of the installed plugins.

    Example:
        >>> run(["--version"])  # doctest: +SKIP
        0
    """
    interruption = interruption or Interruption()
    try:
        return _run(list(arguments), interruption, plugins)
    except KeyboardInterrupt as error:
        interruption.folder = getattr(error, "folder", interruption.folder)
        _say_interrupted(interruption, as_json="--json" in arguments)
        return EXIT_STATUS
    except BrokenPipeError:
        _close_stdout()
        return BROKEN_PIPE_STATUS


def _run(arguments: list[str], interruption: Interruption, plugins: Plugins | None) -> int:
    from vu_cli import failure
    from vu_cli.group import cli
    from vu_cli.render import show
    from vu_cli.session import Failed, Session

    session = Session(arguments=tuple(arguments), json="--json" in arguments, interruption=interruption)
    if plugins is not None:
        session.plugins = plugins
    try:
        result = cli.main(arguments, prog_name="vu", standalone_mode=False, obj=session)
        if isinstance(result, Failed):
            raise result.error
        status = result if isinstance(result, int) else show(result, session)
        session.out.flush()
    except BrokenPipeError:
        raise
    except Exception as error:  # the one place where everything ends: a message and a status, nothing is swallowed
        if interruption.happened:
            raise KeyboardInterrupt from error
        return failure.report(error, session)
    return status


def _say_interrupted(interruption: Interruption, *, as_json: bool) -> None:
    import json

    folder = interruption.resumable
    sys.stderr.write(f"{interruption_line(folder)}\n")
    if as_json:
        kept = str(folder) if folder is not None else None
        error = {
            "code": "",
            "kind": "Interrupted",
            "problem": "interrupted",
            "resume": kept,
            "exit_status": EXIT_STATUS,
        }
        sys.stdout.write(json.dumps({"error": error}, indent=2) + "\n")


def _close_stdout() -> None:
    """Point standard output to nowhere, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
