"""What safetensors files tell without torch: names, shapes, and a hash over the stored tensors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from vu_core.cache import cache_root
from vu_core.data import digest
from vu_core.errors import ModelError

_LONGEST_HEADER = 100_000_000  # bytes; the limit of the format
_CHUNK = 1 << 22


@attrs.frozen
class StoredTensor:
    """One tensor of a safetensors file.

    Args:
        name: as stored; dtype: word of the format, such as ``F16``; shape: its shape.
        begin, end: place of the bytes in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0


def stored_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """Return the tensors that a safetensors file announces, by name.

    Raises:
        ModelError: VU-M074 when the file is cut short or is no safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LONGEST_HEADER, size):
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
        start = 8 + length
        tensors = tuple(
            StoredTensor(
                name,
                str(entry["dtype"]),
                tuple(int(extent) for extent in entry["shape"]),
                start + int(entry["data_offsets"][0]),
                start + int(entry["data_offsets"][1]),
            )
            for name, entry in sorted(header.items())
            if name != "__metadata__"
        )
        if not tensors:
            raise ValueError("it holds no tensors")
        last = max(tensor.end for tensor in tensors)
        if last != size:
            raise ValueError(f"it should have {last} bytes and has {size}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise ModelError(
            "VU-M074",
            f"The weights file {str(path)!r} is damaged: {error}.",
            "Copy or download the file again.",
            where=str(path),
        ) from error
    return tensors


def base_hash(files: Mapping[str, Iterable[Path]]) -> str:
    """Return the hash that identifies a model: over its tensors as they lie on disk.

    Component, name, dtype, shape and bytes of every tensor enter, sorted, so that sharding and file names do not
    matter. The result is remembered under ``$VU_CACHE`` by path, time of change and size of the files.

    Args:
        files: weights files per component.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelError: VU-M074 when a file is damaged.
    """
    paths = {component: sorted(found) for component, found in files.items()}
    key = _key(paths)
    remembered = cache_root() / "base-hash" / f"{key[:32]}.json"
    known = _recall(remembered, key)
    if known is not None:
        return known
    pairs = [(component, path) for component, found in paths.items() for path in found]
    result = digest(*sorted(line for component, path in pairs for line in _tensor_lines(component, path)))
    about = f"base hash of {os.path.commonpath([path for _, path in pairs])}" if pairs else "base hash of nothing"
    _remember(remembered, {"key": key, "about": about, "value": result})
    return result


def _recall(path: Path, key: str) -> str | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or torn: the hash is computed again
        return None
    if not isinstance(known, dict) or known.get("key") != key or not isinstance(known.get("value"), str):
        return None
    return str(known["value"])


def _key(paths: Mapping[str, Iterable[Path]]) -> str:
    parts = []
    for component, found in sorted(paths.items()):
        for path in found:
            status = path.stat()
            parts.append(f"{component}\0{path.resolve()}\0{status.st_mtime_ns}\0{status.st_size}")
    return digest("base-hash 1", *parts)


def _tensor_lines(component: str, path: Path) -> Iterable[str]:
    with path.open("rb") as file:
        for tensor in stored_tensors(path):
            state = hashlib.sha256()
            file.seek(tensor.begin)
            left = tensor.end - tensor.begin
            while left:
                chunk = file.read(min(_CHUNK, left))
                state.update(chunk)
                left -= len(chunk)
            yield json.dumps([component, tensor.name, tensor.dtype, tensor.shape, state.hexdigest()])


def _remember(path: Path, content: dict[str, str]) -> None:
    """Keep the hash for the next run; without a writable cache it is simply computed again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)
