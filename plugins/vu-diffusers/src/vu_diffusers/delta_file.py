"""The exporter ``delta``: what changes in which tensor, as plain numbers, and the function that applies it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from vu_core import Check, Edit, EditError, Model, Replace, Run, Source
from vu_core.adapters import apply_edit, check_fits, compose
from vu_diffusers.export_files import check_there, of_pipeline, read_by, write_all
from vu_diffusers.lora_layers import largest, require_content, same_tensor
from vu_diffusers.probe import answers, comparison, precision_of, wanted_of

FILE = "delta.safetensors"
FORMAT = 1
"""Version of the layout; a reader refuses a newer one."""

_INT32_LIMIT = 1 << 31


@attrs.frozen
class Config:
    """The exporter ``delta`` has no settings."""


class Delta:
    """Write the change of every tensor, without factors and without the base: exact, for every edit of every model.

    ``<name>.values`` has the change in float32 (float64 for a float64 base, int64 for whole numbers), dense or, where
    that is smaller, of the numbers that change at all; then ``<name>.indices`` has their positions in the flattened
    tensor. The sum is rounded to the precision of the base. Where that gives a neighbour of the new number,
    ``<name>.rest.values`` has what is missing, at ``<name>.rest.indices``::

        new = round(base + values + rest)                       summed in float64

    Args:
        config: see `Config`.
    """

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source("safetensors", "https://github.com/huggingface/safetensors", "own")

    def __init__(self, config: Config) -> None:
        self.config = config

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write ``delta.safetensors`` into ``folder``.

        Raises:
            EditError: VU-E070 when the edit is empty or changes one tensor under two names, VU-E054 when the model is
                another.
        """
        from safetensors.torch import save_file

        require_content(edit)
        same_tensor(edit, model)
        tensors: dict[str, Tensor] = {}
        shapes: dict[str, list[int]] = {}
        for name, part in edit:
            check_fits(model.network, name, part)
            base = tensor_named(model.network, name).detach().cpu()
            wide = base.double()
            change = compose(wide, [part]) - wide  # before it is rounded
            for suffix, tensor in _terms(base, change, compose(base, [part])).items():
                tensors[f"{name}.{suffix}"] = tensor
            shapes[name] = list(base.shape)
        header = {"format": FORMAT, "base": edit.base, "method": edit.method, "shapes": shapes}
        # One metadata key only: safetensors writes several in random order.
        metadata = {"vu_delta": json.dumps(header, sort_keys=True)}
        return write_all(folder, lambda place: save_file(tensors, str(place / FILE), metadata=metadata))

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> tuple[Check, ...]:
        """Read the file as `apply_delta` does, and compare every tensor and what the model computes.

        Returns:
            Outputs and image, and ``tensors``: the largest difference of a new number, which must be 0.

        Raises:
            EditError: VU-E071 when the file cannot be read, VU-E072 when it does not fit the model.
        """
        check_there("vu", files)
        changes = read_delta(files[0])
        new = {name: change.applied_to(fitting(model.network, name, change)) for name, change in changes.items()}
        errors = [float("inf") for _ in new.keys() ^ edit.parts.keys()]
        for name, part in edit:
            wanted = compose(tensor_named(model.network, name), [part])
            if name in new:
                errors.append(float((new[name].double() - wanted.double()).abs().max()) if wanted.numel() else 0.0)
        with apply_edit(model.network, Edit({name: Replace(tensor) for name, tensor in new.items()})):
            found = answers(model)
        checks = comparison(found, wanted_of(model, edit), precision_of(model.network))
        return (*checks, Check("tensors", largest(errors), 0.0))

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        """Return the lines that change a pipeline of diffusers, or any other module."""
        if not of_pipeline(read_delta(files[0])):
            return (
                "from vu_diffusers.delta_file import apply_delta\n\n"
                f"apply_delta(network, {FILE!r})  # network: the torch.nn.Module of {base!r}\n"
            )
        return (
            "from diffusers import StableDiffusionPipeline\n"
            "from vu_diffusers.delta_file import apply_delta\n\n"
            f"pipe = StableDiffusionPipeline.from_pretrained({base!r})\n"
            f"apply_delta(pipe.components, {FILE!r})\n"
        )


@attrs.frozen(eq=False)
class Change:
    """What is added to one tensor.

    Args:
        shape: of the tensor.
        terms: (positions in the flattened tensor, or ``None`` for all of them; numbers), summed in this order.
    """

    shape: tuple[int, ...]
    terms: tuple[tuple[Tensor | None, Tensor], ...]

    def applied_to(self, base: Tensor) -> Tensor:
        """Return the new tensor in precision and place of the base: summed in float64, rounded once."""
        total = base.detach().to("cpu", torch.float64, copy=True).flatten()
        for indices, values in self.terms:
            if indices is None:
                total += values.double().flatten()
            else:
                total.index_add_(0, indices.long(), values.double())
        return total.reshape(self.shape).to(base.device, base.dtype)


@torch.no_grad()
def apply_delta(networks: nn.Module | Mapping[str, Any], file: str | Path) -> None:
    """Change the weights of a model as a file of the exporter ``delta`` says: all of them, or none.

    Args:
        networks: the components of a pipeline by name, such as ``pipe.components``, or a module that holds them.
        file: ``delta.safetensors``.

    Raises:
        EditError: VU-E071 when the file cannot be read, VU-E072 when it does not fit the networks.

    Example:
        >>> import tempfile
        >>> from vu_core.testing import ToyPainter, toy_run
        >>> model, place = ToyPainter(), Path(tempfile.mkdtemp())
        >>> edit = Edit({"unet.time.bias": Replace(torch.ones(8))})
        >>> (file,) = Delta(Config()).export(edit, model, place, toy_run(place))
        >>> apply_delta(model.network, file)
        >>> model.network["unet"].time.bias.tolist()[:2]
        [1.0, 1.0]
    """
    changes = read_delta(Path(file))
    tensors = {name: fitting(networks, name, change) for name, change in changes.items()}
    for name, tensor in tensors.items():
        tensor.copy_(changes[name].applied_to(tensor))


def read_delta(path: Path) -> dict[str, Change]:
    """Return the changes by tensor name. Raises: EditError VU-E071 when the file is damaged or something else."""
    from safetensors import safe_open

    with read_by("vu", path), safe_open(str(path), "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  a handle, not a dict
        header = json.loads((file.metadata() or {})["vu_delta"])
        if header["format"] != FORMAT:
            raise ValueError(f"it has the format {header['format']}, but this version of vu reads {FORMAT}")
        changes = {name: _change(name, tuple(shape), stored) for name, shape in header["shapes"].items()}
        if stored:
            raise ValueError(f"{min(stored)!r} belongs to no tensor of its header")
    return changes


def _change(name: str, shape: tuple[int, ...], stored: dict[str, Tensor]) -> Change:
    """Take the terms of one tensor out of what was stored. Raises: KeyError, ValueError."""
    numel = math.prod(shape)
    terms = []
    for term in (name, f"{name}.rest"):
        if term != name and f"{term}.values" not in stored:
            continue
        values, indices = stored.pop(f"{term}.values"), stored.pop(f"{term}.indices", None)
        fits = tuple(values.shape) == shape if indices is None else values.shape == indices.shape == (len(values),)
        if not fits or (
            indices is not None and indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < numel
        ):
            raise ValueError(f"the change of {name!r} does not fit the shape {shape}")
        terms.append((indices, values))
    return Change(shape, tuple(terms))


def tensor_named(networks: nn.Module | Mapping[str, Any], name: str) -> Tensor:
    """Return a parameter or buffer. Raises: EditError VU-E072 when there is none of that name."""
    component, _, path = name.partition(".")
    module = networks if isinstance(networks, nn.Module) else networks.get(component)
    path = name if isinstance(networks, nn.Module) else path
    owner, _, leaf = path.rpartition(".")
    try:
        tensor = getattr(module.get_submodule(owner), leaf)  # type: ignore[union-attr]
    except AttributeError:
        tensor = None
    if not isinstance(tensor, Tensor):
        raise _misfit(f"they have no tensor {name!r}")
    return tensor


def fitting(networks: nn.Module | Mapping[str, Any], name: str, change: Change) -> Tensor:
    """Return the tensor that a change is for. Raises: EditError VU-E072 when its shape is another."""
    tensor = tensor_named(networks, name)
    if tuple(tensor.shape) != change.shape:
        raise _misfit(f"{name!r} has the shape {tuple(tensor.shape)} there, but {change.shape} in the file")
    return tensor


def _misfit(problem: str) -> EditError:
    return EditError(
        "VU-E072",
        f"The change does not fit the networks: {problem}.",
        "Apply it to the model it was exported for; its header names the base hash.",
    )


def _terms(base: Tensor, change: Tensor, new: Tensor) -> dict[str, Tensor]:
    """Return what is stored of one tensor.

    Args:
        base: as loaded.
        change: before it is rounded, float64.
        new: base and change, rounded to the precision of the base.
    """
    floating = base.dtype.is_floating_point
    precision = torch.promote_types(base.dtype, torch.float32) if floating else torch.int64
    values = change.round().to(precision) if not floating else change.to(precision)
    total = base.double() + values.double()
    # Rounding the sum of rounded numbers may give a neighbour of what the edit gives.
    wrong = (total.to(base.dtype) != new).flatten().nonzero().flatten()
    rest = (new.double() - total).flatten()[wrong].to(precision)
    terms = _smaller(values)
    if len(wrong):
        terms |= {"rest.indices": _indices(wrong, base.numel()), "rest.values": rest}
    return terms


def _smaller(values: Tensor) -> dict[str, Tensor]:
    """Return the numbers, or those that are not zero with their positions, whichever takes fewer bytes."""
    places = values.flatten().nonzero().flatten()
    indices = _indices(places, values.numel())
    chosen = values.flatten()[places]
    if indices.nbytes + chosen.nbytes < values.nbytes:
        return {"indices": indices, "values": chosen}
    return {"values": values.contiguous()}


def _indices(places: Tensor, numel: int) -> Tensor:
    return places.to(torch.int32 if numel < _INT32_LIMIT else torch.int64)
