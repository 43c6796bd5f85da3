"""A new folder that appears whole under its name, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vu_core.atomic import sync_folder
from vu_core.errors import RecordError

_NAME = 40  # characters of the name that the staging folder repeats: all of a long one would make it too long


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield an empty staging folder beside ``out``, and rename it to ``out`` at the end.

    Whatever ends the block early, Ctrl-C too, takes the staging folder away: then nothing is left. Only a process that
    is killed leaves it, under a name that begins with a dot and ends in ``.part``.

    Args:
        out: a folder that does not exist, or an empty one; parents that are missing are made at the end.

    Raises:
        RecordError: ``out`` is something else (``VU-R124``), or the system refuses to write (``VU-R125``).

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "export"
        >>> with whole_folder(out) as staging:
        ...     (staging / "a.txt").write_text("a")
        ...     out.exists()
        1
        False
        >>> [path.name for path in out.iterdir()]
        ['a.txt']
    """
    target = _free(out)
    beside = _nearest(target)
    staging = beside / f".{target.name[:_NAME]}.{secrets.token_hex(4)}.part"
    with writing_folder(out):
        staging.mkdir()
    try:
        yield staging
        with writing_folder(out):
            _put(staging, target, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def writing_folder(out: Path) -> Iterator[None]:
    """Turn the failure to write what goes to ``out`` into a `RecordError` that names it (``VU-R125``)."""
    try:
        yield
    except OSError as error:
        raise unwritable(out, error) from error


def is_full(error: BaseException) -> bool:
    """Tell whether the disk is full; an error of safetensors says it in its text only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"(os error {errno.ENOSPC})" in str(error)


def unwritable(out: Path, error: BaseException) -> RecordError:
    """Return the error for a folder that the system refuses to write."""
    return RecordError(
        "VU-R125",
        f"{str(out)!r} cannot be written: {getattr(error, 'strerror', None) or error}.",
        f"{'Free some space' if is_full(error) else 'Check the permissions'}, or choose another folder.",
        where=str(out),
    )


def _free(out: Path) -> Path:
    """Return the absolute path of a folder that may be made or replaced; behind a link, what it leads to."""
    problem = ""
    with writing_folder(out):
        target = Path(os.path.realpath(out))
        if out.is_symlink() and not out.exists():
            problem = "is a link to nothing"
        elif target == Path.cwd():
            problem = "is the folder that you are in"
        elif target.is_dir():
            problem = "is not empty" if any(target.iterdir()) else ""
        elif target.exists():
            problem = "is a file"
        elif not _nearest(target).is_dir():
            problem = f"lies below {_nearest(target).name!r}, which is no folder"
    if problem:
        raise taken(out, problem)
    return target


def _nearest(target: Path) -> Path:
    """Return the first parent that is there: on the file system where the target will be."""
    return next(folder for folder in target.parents if folder.exists())


def taken(out: Path, problem: str) -> RecordError:
    """Return the error for a folder that is not free."""
    return RecordError(
        "VU-R124",
        f"{str(out)!r} {problem}.",
        "Choose a folder that does not exist yet, or an empty one; nothing is ever overwritten.",
        where=str(out),
    )


def _put(staging: Path, target: Path, out: Path) -> None:
    """Rename, with everything on the disk before; missing parents stay only when it succeeds."""
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        if target.is_dir():
            staging.chmod(target.stat().st_mode)
            if os.name == "nt":  # elsewhere a rename takes the place of an empty folder
                target.rmdir()
        target.parent.mkdir(parents=True, exist_ok=True)
        _flush(staging)
        staging.rename(target)
    except OSError as error:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise taken(out, "was filled meanwhile") from error
        raise
    sync_folder(target.parent)


def _flush(folder: Path) -> None:
    """Put every file and name on the disk: after a power cut, a name without content would look whole."""
    for path in (*folder.rglob("*"), folder):
        sync_folder(path)  # the system syncs a file in the same way
