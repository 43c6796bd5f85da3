"""Which adapter lies at a place on this machine, and what it changes: edits of vu, and LoRA files of other tools."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vu_core import Edit, EditError, LowRank, Replace, Sparse

if TYPE_CHECKING:
    from torch import Tensor

EDIT, RUN = "edit.safetensors", "run.toml"
DIFFUSERS = "pytorch_lora_weights.safetensors"
PEFT, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
KNOWN = (EDIT, DIFFUSERS, PEFT)
"""Names of adapter files that their writers always use."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that run code when they are opened."""
AGAIN = "Export the adapter again."


@attrs.frozen(eq=False)
class Change:
    """How one module of a model changes.

    Args:
        module: its name, as the file has it; the name of a tensor where that is no weight.
        part: the change itself.
        bytes: size of the tensors that store it.
    """

    module: str
    part: LowRank | Sparse | Replace
    bytes: int


@attrs.frozen(eq=False)
class Adapter:
    """What a file or folder says about a model.

    Args:
        file: the file that was read.
        format: who writes such files, in words.
        changes: one per module, by name.
        method, base, facts: of an edit of vu; other files do not say.
        notes: what the file left open, and how it was understood.
    """

    file: Path
    format: str
    changes: tuple[Change, ...]
    method: str = ""
    base: str = ""
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()


def read_adapter(path: Path) -> Adapter:
    """Read the adapter at a place; nothing is downloaded and no pickle is opened.

    Args:
        path: a run folder of vu, an ``edit.safetensors``, a LoRA file of diffusers, peft or kohya, or a folder that
            holds one of these.

    Returns:
        Its changes, tensors on the CPU in the precision of the file. Factors of convolutions are flattened to matrices.

    Raises:
        EditError: ``VU-E096`` when there is no adapter, or more than one; ``VU-E097`` for a pickle; ``VU-E098`` for a
            damaged file; ``VU-E099`` when what the file holds is no adapter that vu can read. From an edit of vu also
            ``VU-E031``, ``VU-E032``, ``VU-E034``.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "style.safetensors"
        >>> down, up = torch.ones(2, 3), torch.ones(4, 2)
        >>> save_file({"lora_unet_mid.lora_down.weight": down, "lora_unet_mid.lora_up.weight": up}, path)
        >>> adapter = read_adapter(path)
        >>> adapter.format, adapter.changes[0].module, adapter.changes[0].part.rank
        ('LoRA in the style of kohya', 'lora_unet_mid', 2)
    """
    from vu_elastic_lora.reading_lora import read_lora

    file = _located(path)
    with _opened(file) as stored:
        is_edit = "vu" in (stored.metadata() or {})
        return _checked(_from_edit(file, stored) if is_edit else read_lora(file, stored))


def _located(path: Path) -> Path:
    """Return the file that a path means."""
    try:
        if path.is_dir():
            return _in_folder(path)
        there = path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise damaged(path, error.strerror or str(error)) from error
    if not there:
        raise EditError(
            "VU-E096",
            f"There is no file or folder {str(path)!r}.",
            "Name a run folder or an adapter file on this machine; `vu inspect` downloads nothing.",
            where=str(path),
        )
    if path.suffix.lower() in PICKLES:
        raise _pickle(path)
    return path


def _in_folder(folder: Path) -> Path:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    if RUN in names:
        if EDIT not in names:
            raise EditError(
                "VU-E096",
                f"The run {str(folder)!r} has no edit yet.",
                f"Let it go on: `vu unlearn --resume {shlex.quote(str(folder))}`.",
                where=str(folder),
            )
        return folder / EDIT
    stored = [name for name in names if name.endswith(".safetensors")]
    found = [name for name in stored if name in KNOWN] or stored
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise EditError(
            "VU-E096",
            f"The folder {str(folder)!r} holds {len(found)} files that may be meant: {', '.join(found)}.",
            "Name one of the files.",
            where=str(folder),
        )
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLES]
    if pickles:
        raise _pickle(folder / pickles[0])
    below = sorted(entry.name for entry in folder.iterdir() if any((entry / name).is_file() for name in KNOWN))
    raise EditError(
        "VU-E096",
        f"The folder {str(folder)!r} holds no adapter.",
        f"Name one of its folders: {', '.join(below)}." if below else "Name a run folder, or an adapter file.",
        where=str(folder),
    )


def _pickle(path: Path) -> EditError:
    return EditError(
        "VU-E097",
        f"{path.name!r} is a pickle, which can run any code when it is opened, so vu does not open it.",
        "Ask its author for the adapter as safetensors, or convert it where nothing can be lost.",
        where=str(path),
    )


def damaged(path: Path, why: str) -> EditError:
    """Return the error for a file that cannot be read at all."""
    return EditError(
        "VU-E098",
        f"{path.name!r} cannot be read: {why}.",
        "Copy or export the adapter again; vu reads safetensors files.",
        where=str(path),
    )


def no_adapter(path: Path, problem: str, remedy: str) -> EditError:
    """Return the error for a whole file that holds no adapter, or one that vu cannot read."""
    return EditError("VU-E099", problem, remedy, where=str(path))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise damaged(path, f"it is damaged or no safetensors file ({error})") from error


def _from_edit(path: Path, stored: Any) -> Adapter:
    from vu_core.adapters import load_edit

    edit: Edit = load_edit(path)
    # A tensor of the file is called like the part, and behind that which of its tensors it is.
    sizes: dict[str, int] = {}
    for name in stored.keys():  # noqa: SIM118  a handle, not a dict
        owner = name.rpartition(".")[0]
        sizes[owner] = sizes.get(owner, 0) + stored.get_tensor(name).nbytes
    changes = tuple(Change(name.removesuffix(".weight"), part, sizes[name]) for name, part in edit)
    notes = () if changes else ("The edit changes nothing: it has no parts.",)
    form = "run of vu" if (path.parent / RUN).is_file() else "edit of vu"
    return Adapter(path, form, changes, edit.method, edit.base, edit.facts, notes)


def _checked(adapter: Adapter) -> Adapter:
    """Object to numbers that are not finite: nothing can be said about a change that holds them."""
    for change in adapter.changes:
        if not all(_is_finite(values) for values in _numbers(change.part)):
            raise no_adapter(
                adapter.file,
                f"The change of {change.module!r} holds numbers that are not finite.",
                "Export or train the adapter again, with a lower learning rate.",
            )
    return adapter


def _numbers(part: LowRank | Sparse | Replace) -> Iterable[Tensor]:
    import torch

    if isinstance(part, LowRank):
        return part.A, part.B, torch.tensor(part.alpha)
    return (part.values,) if isinstance(part, Sparse) else (part.tensor,)


def _is_finite(values: Tensor) -> bool:
    import torch

    # Not every precision of eight bits can be asked.
    return bool(torch.isfinite(values.float() if values.dtype.itemsize == 1 else values).all())
