"""The head of a safetensors file, read without torch and without its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_header(path: Path) -> dict[str, Any]:
    """Return what is written about the tensors of a file: name -> dtype, shape, offsets, and ``__metadata__``.

    Raises:
        OSError: the file cannot be read. ValueError: it is no safetensors file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty.safetensors"
        >>> _ = path.write_bytes((2).to_bytes(8, "little") + b"{}")
        >>> read_header(path)
        {}
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise ValueError(f"{path.name} is no safetensors file: its head is longer than the file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} is no safetensors file: its head is no table")
    return header
