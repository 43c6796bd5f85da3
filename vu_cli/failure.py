"""Whatever goes wrong becomes a message in plain words and an exit status."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from vu_cli.output import LOST
from vu_cli.render import show_error, show_line
from vu_cli.session import Session
from vu_core import ConfigError, RecordError, VuError, did_you_mean

BUG_STATUS = 1
_DISTRIBUTIONS = ("vu-core", "torch", "diffusers", "transformers", "accelerate", "click", "rich")


def report(error: BaseException, session: Session, status: int | None = None) -> int:
    """Print an exception for people, and for machines with ``--json``; return the exit status.

    Args:
        error: what was raised.
        session: says how and where to print.
        status: the exit status, where it is not that of the error.
    """
    if isinstance(error, click.ClickException):
        error = usage_error(error)
    if isinstance(error, VuError):
        show_error(error, session)
        document: dict[str, object] = dict(error.as_dict())
        lost = error.code == LOST
    else:
        document, lost = _bug(error, session), False
    status = getattr(error, "exit_status", BUG_STATUS) if status is None else status
    if session.json and not lost:
        document["exit_status"] = status
        try:
            session.out.write(json.dumps({"error": document}, indent=2, ensure_ascii=False) + "\n")
            session.out.flush()
        except RecordError as unwritable:
            show_error(unwritable, session)
    return status


def usage_error(error: click.ClickException) -> ConfigError:
    """Return what click found wrong with a command line, in the words of `vu`."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "vu"
    remedy = f"Run `{command} --help`."
    if context is not None and isinstance(error, click.exceptions.NoArgsIsHelpError):
        return ConfigError("VU-C120", f"`{command}` lacks a command or an argument.", remedy, where=command)
    if isinstance(error, click.NoSuchOption):
        known = [name for parameter in context.command.params for name in parameter.opts] if context is not None else []
        hint = did_you_mean(error.option_name, [*known, "--help"])
        return ConfigError("VU-C122", f"`{command}` has no option '{error.option_name}'.{hint}", remedy, where=command)
    problem = error.format_message().strip()
    complete = problem.endswith((".", "?", "!"))
    return ConfigError("VU-C120", problem if complete else f"{problem}.", remedy, where=command)


def _bug(error: BaseException, session: Session) -> dict[str, object]:
    """Write the report file and say so in one sentence."""
    text = _report_text(error, session)
    summary = " ".join(traceback.format_exception_only(error)[-1].split())
    path = _write_report(text)
    kept = f"a report for the bug tracker lies in {path}" if path is not None else "no report could be written"
    show_line(f"This is a bug in vu or in a plugin ({summary[:200]}); {kept}.", session, "bold red")
    if path is None:
        show_line(text, session)
    kept_in = str(path) if path is not None else None
    return {"code": "", "kind": "Bug", "problem": summary, "report": kept_in, "exit_status": BUG_STATUS}


def _report_text(error: BaseException, session: Session) -> str:
    versions = [f"{name} {_version(name)}" for name in _DISTRIBUTIONS]
    return "\n".join(
        [
            f"time: {datetime.now(UTC).isoformat(timespec='seconds')}",
            f"command line: vu {' '.join(map(repr, session.arguments))}",
            f"python: {platform.python_version()} on {platform.system()} {platform.machine()}",
            f"versions: {', '.join(versions)}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(absent)"


def _write_report(text: str) -> Path | None:
    """Write into the cache folder, or where temporary files go; ``None`` when both refuse."""
    from vu_core import cache_root

    name = f"vu-bug-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    for folder in (cache_root() / "reports", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding=sys.getdefaultencoding())
        except OSError:
            continue
        return folder / name
    return None
