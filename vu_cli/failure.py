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

from vu_cli.interrupt import interruption_line
from vu_cli.output import LOST
from vu_cli.render import show_error, show_line
from vu_cli.session import Session
from vu_core import ConfigError, RecordError, VuError, did_you_mean

BUG_STATUS = 1
PLUGIN_FAILED = ("VU-P007", "VU-P009")
"""Codes of errors that stand for whatever the code of a plugin raised; its authors need the traceback."""
_DISTRIBUTIONS = ("vu-core", "torch", "diffusers", "transformers", "accelerate", "click", "rich")


def report(error: BaseException, session: Session, status: int | None = None) -> int:
    """Print an exception for people, and for machines with ``--json``; return the exit status.

    A bug, in `vu` or in a plugin that failed (`PLUGIN_FAILED`), leaves a report file with the traceback, which the
    message names. After a bug of `vu`, the message also names the run that can be resumed.

    Args:
        error: what was raised.
        session: says how and where to print.
        status: the exit status, where it is not that of the error.
    """
    if isinstance(error, click.ClickException):
        error = usage_error(error)
    if isinstance(error, VuError):
        document, lost = _told(error, session), error.code == LOST
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


def _told(error: VuError, session: Session) -> dict[str, object]:
    """Say what is wrong; where code of a plugin failed, write the report file for its authors first."""
    document: dict[str, object] = dict(error.as_dict())
    if error.code not in PLUGIN_FAILED or error.__cause__ is None:
        show_error(error, session)
        return document
    text = _report_text(error, session)
    path = _write_report(text)
    show_error(error, session, report="none could be written" if path is None else str(path))
    if path is None:
        show_line(text, session)
    return {**document, "report": None if path is None else str(path)}


def _bug(error: BaseException, session: Session) -> dict[str, object]:
    """Write the report file and say so in one sentence, and in another how the run goes on if it can."""
    text = _report_text(error, session)
    summary = " ".join(traceback.format_exception_only(error)[-1].split())
    path = _write_report(text)
    kept = f"a report for the bug tracker lies in {path}" if path is not None else "no report could be written"
    show_line(f"This is a bug in vu or in a plugin ({summary[:200]}); {kept}.", session, "bold red")
    if path is None:
        show_line(text, session)
    resumable = session.interruption.resumable
    if resumable is not None:
        show_line(interruption_line(resumable), session)
    places = {"report": path, "resume": resumable}
    kept_in = {name: None if place is None else str(place) for name, place in places.items()}
    return {"code": "", "kind": "Bug", "problem": summary, **kept_in, "exit_status": BUG_STATUS}


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
