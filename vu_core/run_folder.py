"""The folder of a run: who may write into it, what lies in it, and in which state it is.

Its files alone tell how far a run has come: without ``edit.safetensors`` unlearning has not ended, without
``scores.json`` measuring has not, without ``README.md``, which is written last, recording has not.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import attrs

from vu_core.errors import RecordError
from vu_core.event import Event

RUN, EDIT, SCORES, EVENTS = "run.toml", "edit.safetensors", "scores.json", "events.jsonl"
ENVIRONMENT, REPORT, CARD = "environment.json", "report.html", "README.md"
IMAGES, CHECKPOINTS = "images", "checkpoints"
SOURCES = "sources"
"""Holds the edits that a composed run was made of."""
INTERFERENCE = "interference.json"
"""Tells of a composed run which edit hurts which concept."""
CONFLICT = "gradient-conflict.json"
"""Tells of a trained run how the gradients of forgetting and keeping agree."""
SEQUENCE = "sequence.toml"
"""Lies in the folder of a sequence of runs, instead of ``run.toml``; the runs are in folders below it."""
LOCK = ".lock"
FREQUENT = ("progress", "gradient_conflict")
"""Types of events that come with every step of training."""

State = Literal["absent", "empty", "foreign", "incomplete", "complete"]


def state_of(folder: Path) -> State:
    """Tell from its files whether ``folder`` holds a run, and whether the run is complete.

    Raises:
        RecordError: the system does not let us look (``VU-R056``).
    """
    try:
        if not folder.exists():
            return "absent"
        if not folder.is_dir():
            return "foreign"
        names = {entry.name for entry in folder.iterdir()} - {LOCK}
    except OSError as error:  # no permission, a name that is too long, a server that does not answer
        raise unreadable(folder, error.strerror or str(error)) from error
    if RUN not in names:
        return "foreign" if names else "empty"
    return "complete" if {EDIT, SCORES, CARD} <= names else "incomplete"


def can_be_resumed(folder: Path) -> bool:
    """Tell whether ``folder`` holds the beginning of a run, or of a sequence of runs, and not yet its end.

    Raises:
        RecordError: the system does not let us look (``VU-R056``).
    """
    state = state_of(folder)
    sequence = state == "foreign" and (folder / SEQUENCE).is_file()
    return not (folder / CARD).exists() if sequence else state == "incomplete"


def reserve(out: str | None, run_id: str) -> tuple[Path, bool]:
    """Choose and make the folder of a new run.

    Args:
        out: the folder itself (``--out``), or ``None`` for ``runs/<id>``, then ``runs/<id>.2`` and so on.
        run_id: 12 hex digits.

    Returns:
        The folder, and whether it was there already, empty.

    Raises:
        RecordError: when ``out`` holds anything at all or is a link to nothing (``VU-R050``), or cannot be made
            (``VU-R055``).
    """
    if out is not None:
        folder = Path(out)
        there = check_vacant(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder, there
    count = 1
    while True:
        folder = Path("runs") / (run_id if count == 1 else f"{run_id}.{count}")
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:  # an earlier run, or one that starts at this moment
                count += 1
                continue
        return folder, False


def check_vacant(folder: Path) -> bool:
    """Object to a folder in which no run can begin; return whether it is there already, empty.

    Raises:
        RecordError: it holds anything at all or is a link to nothing (``VU-R050``), or the system refuses its name
            (``VU-R055``).
    """
    with writing(folder):  # the system may refuse the name itself, such as one that is too long
        there = os.path.lexists(folder) or folder.exists()
    state = state_of(folder)
    if state not in ("absent", "empty"):
        raise _occupied(folder, state)
    if state == "absent" and there:
        raise _leads_nowhere(folder)
    return there


def _occupied(folder: Path, state: State) -> RecordError:
    what = {
        "incomplete": "holds an unfinished run",
        "complete": "holds a finished run",
        "foreign": "is not an empty folder",
    }[state]
    if state == "foreign" and (folder / SEQUENCE).is_file():
        what, state = "holds a sequence of runs", "incomplete" if can_be_resumed(folder) else "complete"
    remedies = {
        "incomplete": f"Continue it with `vu unlearn --resume {shlex.quote(str(folder))}`, or choose another --out.",
        "complete": "Choose another --out; what is finished is never overwritten.",
        "foreign": "Choose an --out that is empty or does not exist yet.",
    }
    return RecordError("VU-R050", f"{str(folder)!r} {what}.", remedies[state], where="run.out")


def _leads_nowhere(folder: Path) -> RecordError:
    return RecordError(
        "VU-R050",
        f"{str(folder)!r} is a link to {str(folder.readlink())!r}, which does not exist.",
        "Make the folder that it leads to, or choose another --out.",
        where="run.out",
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the failure to write ``path`` into a `RecordError` that names it."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space" if full else "Check the permissions"
        raise RecordError(
            "VU-R055",
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            f"{remedy}, or choose another folder with --out; a run that had begun goes on with --resume.",
            where=str(path),
        ) from error


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock file of ``folder``, which names this process.

    The operating system lets go of it when the process dies, however it dies: a killed run can be resumed at once.

    Raises:
        RecordError: when a living process holds it (``VU-R051``).
    """
    path = folder / LOCK
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not (_try_lock(descriptor) and _is_file(descriptor, path)):
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            raise RecordError(
                "VU-R051",
                f"{str(folder)!r} is in use by process {owner or '(unknown)'}.",
                "Wait until it ends, or stop it; then continue with --resume.",
                where=str(folder),
            )
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    """Tell whether ``path`` is still the open file, and not a new one after its last owner let go."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _try_lock(descriptor: int) -> bool:
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def has_won_something(folder: Path) -> bool:
    """Tell whether a run can go on from a checkpoint or an edit."""
    return (folder / EDIT).exists() or any((folder / CHECKPOINTS).glob("*"))


def remove_if_nothing_was_won(folder: Path, *, keep_folder: bool = False) -> bool:
    """Delete what a run that failed early has written; keep a folder that holds a checkpoint or an edit.

    Args:
        folder: the run folder.
        keep_folder: the user made the folder, so it stays, empty as it was.

    Returns:
        Whether the folder was emptied. A folder that this run made is removed with its content.
    """
    if has_won_something(folder):
        return False
    for name in (RUN, ENVIRONMENT, EVENTS, LOCK):
        (folder / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, SOURCES):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not keep_folder:
        with suppress(OSError):  # something of a plugin lies in it
            folder.rmdir()
    return True


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writes that a kill has cut short."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that is complete."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


@attrs.define
class EventLog:
    """The durable events of a run, one JSON object per line: ``time`` (UTC), ``type``, ``stage``, ``values``.

    Lines are only ever appended. Each is handed to the operating system at once, so that killing the process loses
    none; all but those that come with every step are synced to the disk, too. A last line that a crash has torn is cut
    off when the log is opened again.
    """

    path: Path

    def __attrs_post_init__(self) -> None:
        if self.path.exists():
            whole = self.path.read_bytes()
            if whole and not whole.endswith(b"\n"):
                with self.path.open("r+b") as file:
                    file.truncate(whole.rfind(b"\n") + 1)

    def append(self, event: Event) -> None:
        """Write one line. Raises: RecordError when the disk refuses."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "type": event.type, "stage": event.stage, "values": _plain(event.values)}
        with writing(self.path), self.path.open("ab") as file:
            file.write((json.dumps(line, allow_nan=False) + "\n").encode())
            file.flush()
            if event.type not in FREQUENT:
                os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """Return ``value`` with JSON types only; numbers that JSON lacks become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and value - value == 0:  # finite
        return value
    return str(value)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run in order; a torn last line is left out.

    Raises:
        RecordError: when a line in the middle is no event (``VU-R056``).
    """
    path = folder / EVENTS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    events = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = json.loads(line)
            datetime.fromisoformat(event["time"])
            whole = all(isinstance(event[key], str) for key in ("type", "stage")) and isinstance(event["values"], dict)
        except (ValueError, TypeError, KeyError) as error:
            raise unreadable(path, f"line {number} is no event") from error
        if not whole:
            raise unreadable(path, f"line {number} is no event")
        events.append(event)
    return events


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of a run folder. Raises: RecordError (``VU-R056``)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise unreadable(path, "it holds no JSON object")
    return value


def read_environment(folder: Path) -> dict[str, Any]:
    """Return ``environment.json``, with the two tables that tell whether a run still is what it was.

    Raises:
        RecordError: the file or one of the tables is missing or damaged (``VU-R056``).
    """
    path = folder / ENVIRONMENT
    value = read_json(path)
    for name in ("configuration", "data"):
        if not isinstance(value.get(name), dict):
            raise unreadable(path, f"it holds no {name}")
    return value


def unreadable(path: Path, why: str) -> RecordError:
    """Return the error for a file of a run folder that is missing or damaged."""
    return RecordError(
        "VU-R056",
        f"{path.name!r} of the run cannot be read: {why}.",
        "Name the folder of a run; if the file was damaged, repeat the run with `vu unlearn -c run.toml`.",
        where=str(path),
    )


def changed_since(folder: Path, changed: Sequence[str], *, doing: str = "go on", file: str = RUN) -> RecordError:
    """Return the error for a run, or a sequence, whose surroundings are no longer those of its beginning."""
    return RecordError(
        "VU-R053",
        f"The run {str(folder)!r} cannot {doing}: since it began, these have changed: {', '.join(changed)}.",
        f"Put back what it began with, or start anew: `vu unlearn -c {shlex.quote(str(folder / file))}`.",
        where=str(folder),
    )


def no_run(folder: Path) -> RecordError:
    """Return the error for a folder that holds no run."""
    if (folder / SEQUENCE).is_file():
        places = sorted(str(path.parent) for path in folder.glob(f"**/{RUN}"))
        return RecordError(
            "VU-R142",
            f"{str(folder)!r} holds a sequence of runs, where one run is needed.",
            f"Name one of its tasks: {', '.join(places) if places else 'none has begun yet'}.",
            where=str(folder),
        )
    return RecordError(
        "VU-R052",
        f"There is no run in {str(folder)!r}.",
        "Name the folder of a run, such as runs/<id>; it holds a file run.toml.",
        where=str(folder),
    )
