"""Write a file so that it is either the old one or the new one, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Put ``data`` into ``path`` through a temporary sibling, fsync and rename.

    A reader, a killed process or a power cut sees the old file or the new one, never a part. Missing parent folders are
    made.

    Args:
        path: the file; replaced when it exists.
        data: its whole content.

    Raises:
        OSError: when the folder cannot be written or the disk is full; the old file is then untouched.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_bytes(folder / "scores.json", b"{}")
        >>> [entry.name for entry in folder.iterdir()]
        ['scores.json']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Put ``text`` into ``path`` as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable; does nothing where folders cannot be opened (Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
