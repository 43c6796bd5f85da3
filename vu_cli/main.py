"""Entry point: run one command, turn whatever happens into a message and an exit status."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vu_cli.interrupt import EXIT_STATUS, Interruption
from vu_cli.output import guarded
from vu_core import RecordError

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
        with guarded():
            try:
                return _run(list(arguments), interruption, plugins)
            except KeyboardInterrupt as error:
                interruption.folder = getattr(error, "folder", interruption.folder)
                _say_interrupted(interruption, as_json="--json" in arguments)
                return EXIT_STATUS
    except BrokenPipeError:
        return BROKEN_PIPE_STATUS


def _run(arguments: list[str], interruption: Interruption, plugins: Plugins | None) -> int:
    from vu_cli import failure
    from vu_cli.group import cli
    from vu_cli.render import show
    from vu_cli.session import Failed, Returned, Session

    session = Session(arguments=tuple(arguments), json="--json" in arguments, interruption=interruption)
    if plugins is not None:
        session.plugins = plugins
    try:
        session.out.flush()  # nothing is begun whose result could not be printed
        result = cli.main(arguments, prog_name="vu", standalone_mode=False, obj=session)
        if isinstance(result, Failed):
            if result.status is not None:
                return failure.report(result.error, session, result.status)
            raise result.error
        status = show(result.noun, session) if isinstance(result, Returned) else int(result or 0)
        session.out.flush()
    except BrokenPipeError:
        raise
    except SystemExit as end:
        if getattr(session.out, "lost", False):  # click's own answer to a broken pipe, while it prints help
            raise BrokenPipeError from end
        raise
    except Exception as error:  # the one place where everything ends: a message and a status, nothing is swallowed
        if interruption.happened:
            raise KeyboardInterrupt from error
        return failure.report(error, session)
    return status


def _say_interrupted(interruption: Interruption, *, as_json: bool) -> None:
    import json

    folder = interruption.resumable
    sys.stderr.write(f"{interruption.line}\n")
    if as_json:
        kept = str(folder) if folder is not None else None
        error = {
            "code": "",
            "kind": "Interrupted",
            "problem": "interrupted",
            "resume": kept,
            "exit_status": EXIT_STATUS,
        }
        with contextlib.suppress(RecordError):  # the line above is all that can be said then
            sys.stdout.write(json.dumps({"error": error}, indent=2) + "\n")
