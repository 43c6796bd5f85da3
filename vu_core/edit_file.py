"""``edit.safetensors``: an edit as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vu_core.atomic import write_bytes
from vu_core.data import digest
from vu_core.edit import Edit, LowRank, Part, Replace, Sparse
from vu_core.errors import EditError
from vu_core.ops.masks import pack_mask, unpack_mask

FORMAT = 1
"""Version of the layout; a reader refuses a newer one."""

_INT32_LIMIT = 1 << 31


def save_edit(edit: Edit, path: Path) -> None:
    """Write an edit as safetensors: atomically, with equal bytes for equal edits.

    Tensors are called ``<tensor name>.A``, ``.B``, ``.mask`` (packed bits), ``.indices``, ``.values`` or ``.tensor``;
    the one metadata key ``vu`` holds everything else as JSON, and under ``sha256`` the hash of all of it.

    Args:
        edit: what is written.
        path: the file; replaced when it exists.

    Raises:
        EditError: ``VU-E033`` when the facts of the edit are not JSON.
        OSError: when the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "edit.safetensors"
        >>> save_edit(Edit({"head.bias": Replace(torch.ones(2))}, method="demo"), path)
        >>> load_edit(path).method
        'demo'
    """
    from safetensors.torch import save

    header, tensors = _flatten(edit)
    header["sha256"] = _sha256(header, tensors)
    # One metadata key only: safetensors writes several in random order, and equal edits must have equal bytes.
    write_bytes(path, save(tensors, metadata={"vu": _to_json(header)}))


def edit_digest(edit: Edit) -> str:
    """Return a hash over everything in an edit; a child names its parents by it.

    Example:
        >>> edit_digest(Edit({"b": Replace(torch.ones(2))})) == edit_digest(Edit({"b": Replace(torch.ones(2))}))
        True
    """
    return _sha256(*_flatten(edit))


def _sha256(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hash the header as text, and name, dtype, shape and bytes of each tensor, in the order of the names."""
    parts: list[str | bytes] = [_to_json(header)]
    for name in sorted(tensors):
        tensor = tensors[name]
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), raw]
    return digest(*parts)


def _to_json(header: Mapping[str, Any]) -> str:
    try:
        plain = json.loads(json.dumps(header, allow_nan=False))  # keys as the reader will sort them: as text
        return json.dumps(plain, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise EditError(
            "VU-E033",
            f"The facts of the edit cannot be written as JSON: {error}.",
            "Report this to the author of the method: facts hold text, finite numbers, lists and tables only.",
        ) from error


def _flatten(edit: Edit) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for name, part in edit:
        parts[name], stored = _describe(part)
        for suffix, tensor in stored.items():
            plain = tensor.detach().to("cpu").contiguous()
            # safetensors refuses tensors that lie in one memory, such as one tensor under two names.
            storage = plain.untyped_storage().data_ptr()
            tensors[f"{name}.{suffix}"] = plain.clone() if storage in seen else plain
            seen.add(storage)
    header = {
        "format": FORMAT,
        "base": edit.base,
        "parents": list(edit.parents),
        "method": edit.method,
        "facts": dict(edit.facts),
        "may_be_identity": edit.may_be_identity,
        "parts": parts,
    }
    return header, tensors


def _describe(part: Part) -> tuple[dict[str, Any], dict[str, Tensor]]:
    match part:
        case LowRank():
            stored = {"A": part.A, "B": part.B}
            if part.mask is not None:
                stored["mask"] = pack_mask(part.mask)
            shape = [part.B.shape[0], part.A.shape[1]]
            facts = {"alpha": part.alpha, "rank": part.A.shape[0], "shape": shape, "masked": part.mask is not None}
            return {"kind": "low-rank", **facts}, stored
        case Sparse():
            small = math.prod(part.shape) < _INT32_LIMIT
            indices = part.indices.to(torch.int32 if small else torch.int64)
            return {"kind": "sparse", "shape": list(part.shape)}, {"indices": indices, "values": part.values}
        case Replace():
            return {"kind": "replace"}, {"tensor": part.tensor}


def load_edit(path: Path) -> Edit:
    """Read an edit.

    Args:
        path: a file that `save_edit` wrote.

    Returns:
        The same edit, tensors on the CPU.

    Raises:
        EditError: ``VU-E031`` when the file is missing, damaged or no edit; ``VU-E032`` when a newer `vu` wrote it;
            ``VU-E034`` when it is whole, but its content is not what was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a handle, not a dict
        header = json.loads(metadata["vu"], parse_constant=_refuse)
        known = header["format"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(path, _why(path, error)) from error
    if known != FORMAT:
        raise EditError(
            "VU-E032",
            f"The edit {path.name!r} has the format {known}, but this version of vu reads {FORMAT}.",
            "Update vu-core.",
            where=str(path),
        )
    _check_content(path, header, tensors)
    try:
        parts = {name: _read_part(name, entry, tensors) for name, entry in header["parts"].items()}
        return Edit(
            parts,
            base=header["base"],
            parents=tuple(header["parents"]),
            method=header["method"],
            facts=header["facts"],
            may_be_identity=header["may_be_identity"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(path, f"its parts do not fit its header ({error})") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _check_content(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Object to a flipped bit or a changed number: nothing else would notice it."""
    signed = {key: value for key, value in header.items() if key != "sha256"}
    if header.get("sha256") != _sha256(signed, tensors):
        raise EditError(
            "VU-E034",
            f"The edit {path.name!r} is damaged: its content does not have the hash that was written with it.",
            "Copy the file again from where it was made, or repeat the run: `vu unlearn -c run.toml`.",
            where=str(path),
        )


def _why(path: Path, error: Exception) -> str:
    if not path.exists():
        return "there is no such file"
    if isinstance(error, KeyError):
        return "it is a safetensors file without the header of an edit"
    return f"it is damaged or no safetensors file ({error})"


def _unreadable(path: Path, why: str) -> EditError:
    return EditError(
        "VU-E031",
        f"The edit {path.name!r} cannot be read: {why}.",
        "Name the edit.safetensors of a finished run.",
        where=str(path),
    )


def _read_part(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Part:
    kind = entry["kind"]
    if kind == "low-rank":
        a, b = tensors[f"{name}.A"], tensors[f"{name}.B"]
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise ValueError(f"{name}: A and B have the shapes {tuple(a.shape)} and {tuple(b.shape)}")
        if [b.shape[0], a.shape[1]] != entry["shape"] or a.shape[0] != entry["rank"]:
            raise ValueError(f"{name}: A and B are not of shape {entry['shape']} and rank {entry['rank']}")
        mask = unpack_mask(tensors[f"{name}.mask"], (b.shape[0], a.shape[1])) if entry["masked"] else None
        return LowRank(a, b, float(entry["alpha"]), mask)
    if kind == "sparse":
        indices, values = tensors[f"{name}.indices"].long(), tensors[f"{name}.values"]
        shape = tuple(int(size) for size in entry["shape"])
        if indices.shape != values.shape or any(_out_of_range(indices, math.prod(shape))):
            raise ValueError(f"{name}: indices and values do not fit the shape {shape}")
        return Sparse(indices, values, shape)
    if kind == "replace":
        return Replace(tensors[f"{name}.tensor"])
    raise ValueError(f"{name}: unknown kind {kind!r}")


def _out_of_range(indices: Tensor, n: int) -> Iterator[bool]:
    if indices.numel():
        yield bool((indices < 0).any()) or bool((indices >= n).any()) or bool((indices.diff() <= 0).any())
