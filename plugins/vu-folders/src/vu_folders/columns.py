"""One entry of a metadata file: what must be there, what may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vu_core import DataError, did_you_mean

RESERVED = ("folder", "class")
"""Names of axes that come from folders, so that no column can be called so."""


def read_entry(entry: Any, where: str, overwrite_column: str) -> tuple[str, str, str, dict[str, str]]:
    """Return file name, caption, overwrite caption (empty when there is none), and the further text columns.

    Columns that hold no text (numbers, lists) are ignored: they name nothing.

    Raises:
        DataError: VU-D072 for missing keys and wrong types.
    """
    if not isinstance(entry, dict):
        raise _wrong(f"This entry is no JSON object but {entry!r}.", where)
    for key in ("file_name", "text"):
        if key not in entry:
            raise _wrong(f"This entry has no {key!r}.{did_you_mean(key, entry)}", where)
    for key in ("file_name", "text", overwrite_column):
        if not isinstance(entry.get(key, ""), str):
            raise _wrong(f"{key!r} must be text, but is {entry[key]!r}.", where)
    if not entry["file_name"].strip():
        raise _wrong("'file_name' is empty.", where)
    fixed = {"file_name", "text", overwrite_column}
    columns = {k: v for k, v in entry.items() if k not in fixed and isinstance(v, str) and v}
    if taken := [key for key in columns if key in RESERVED]:
        raise _wrong(f"The column {taken[0]!r} has a name that stands for folders.", where)
    return entry["file_name"], entry["text"], entry.get(overwrite_column, "").strip(), columns


def read_text(path: Path) -> str:
    """Return the text of a metadata file. Raises: DataError VU-D071 when it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "VU-D071",
            f"{str(path)!r} is no UTF-8 text: byte {error.start} cannot be read.",
            "Save the file as UTF-8.",
            where=str(path),
        ) from error


def _wrong(problem: str, where: str) -> DataError:
    return DataError("VU-D072", problem, 'Write {"file_name": "...", "text": "..."} and further columns.', where=where)
