"""What the exporters share: files that are there whole or not at all, and a network that comes back as it was."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from vu_core import EditError
from vu_diffusers.folder import CLASSES
from vu_diffusers.loading import DAMAGE, cause_of


def write_all(folder: Path, write: Callable[[Path], None]) -> tuple[Path, ...]:
    """Let ``write`` fill an empty folder, and move its files to ``folder`` once it is done.

    Args:
        folder: made when it is missing; whatever else lies there stays.
        write: is handed the empty folder.

    Returns:
        The files, sorted.
    """
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        if not existed:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as place:
            staging = Path(place)
            write(staging)
            written = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
            for path in written:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (staging / path).replace(folder / path)
        undo.pop_all()
    return tuple(folder / path for path in written)


def of_pipeline(names: Iterable[str]) -> bool:
    """Tell whether tensors belong to the components of a pipeline, by their names."""
    return all(name.partition(".")[0] in CLASSES for name in names)


def to_json(value: object) -> str:
    """Return JSON with sorted keys, so that equal content has equal bytes."""
    return json.dumps(value, sort_keys=True, indent=2) + "\n"


@contextmanager
def read_by(loader: str, path: Path) -> Iterator[None]:
    """Turn what a loader says about files that it cannot read into one error.

    Raises:
        EditError: VU-E071.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, *DAMAGE) as error:
        raise unreadable(loader, path, cause_of(error)) from error


def unreadable(loader: str, path: Path, cause: str) -> EditError:
    """Return the error for files that their loader cannot read."""
    return EditError(
        "VU-E071",
        f"{loader} cannot read the export: {cause}.",
        "Do not use the files; export again, or use the native format.",
        where=str(path),
    )


def check_there(loader: str, files: tuple[Path, ...]) -> None:
    """Raise unless every file is there: loaders would ask the hub for one that is missing.

    Raises:
        EditError: VU-E071.
    """
    for path in files:
        if not path.is_file():
            raise unreadable(loader, path, "the file is missing")


def check_complete(loader: str, path: Path, network: nn.Module) -> None:
    """Raise when a loader has made tensors without numbers, for which it found none in the files.

    Raises:
        EditError: VU-E071.
    """
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise unreadable(loader, path, f"it finds no numbers for {name!r}")


@contextmanager
def borrowed(network: nn.ModuleDict) -> Iterator[None]:
    """Put everything back that a loader of adapters changes on a network: modules, flags, attributes it leaves behind.

    Loaders wrap modules, make adapters trainable, note on a component that it has some, and draw random numbers for
    factors before they read them. When they stop half-way, their own way back is not open.
    """
    modules = list(network.named_modules(remove_duplicate=False))
    modes = [(module, module.training) for _, module in modules]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    attributes = {component: set(vars(component)) for component in network.values()}
    devices = {parameter.device.index for parameter in network.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for path, module in modules:  # from the outside in
            if path and network.get_submodule(path) is not module:
                network.set_submodule(path, module)
        for module, training in modes:
            module.training = training
        for parameter, trainable in flags:
            parameter.requires_grad_(trainable)
        for component, names in attributes.items():
            for name in vars(component).keys() - names:
                delattr(component, name)
