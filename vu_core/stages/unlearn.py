"""Bench -> Edit: the only stage that runs a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from vu_core.blame import asked
from vu_core.config import Choice
from vu_core.contracts import Model
from vu_core.edit import Edit, LowRank, Part, Replace, Sparse
from vu_core.errors import EditError, UnlearnError, did_you_mean
from vu_core.report import short_name
from vu_core.stages.bench import Bench
from vu_core.stages.guard import untouched

if TYPE_CHECKING:
    from torch import Tensor, nn


def unlearn(bench: Bench) -> Edit:
    """Run the method and check what it returns and what it leaves behind.

    Args:
        bench: with data.

    Returns:
        The edit with ``base`` and ``method`` filled in, and ``changed_tensors``, ``changed_numbers`` (counts) and
        ``base_model`` (such as ``diffusers=owner/name``) among its facts; where there is a denoiser, also its name
        and its size, as ``denoiser`` and ``denoiser_parameters``.

    Raises:
        UnlearnError: the method left traces in the model or the process (``VU-U050``), or returned no edit
            (``VU-U051``). PluginError: its code, or that of a plugin it works with, failed (``VU-P009``).
        EditError: the edit is empty (``VU-E050``), without effect (``VU-E051``), not finite (``VU-E052``), or does not
            fit the model (``VU-E054``).
    """
    if bench.data is None:
        raise RuntimeError("unlearning needs a bench with data")
    name = bench.plan.config.unlearner.name
    with untouched(bench.model.network, name):
        try:
            with asked(bench.plan.config.unlearner.entry, bench.entries):
                edit = bench.unlearner.unlearn(bench.model, bench.data, bench.run)
        finally:
            bench.run.release()
    if not isinstance(edit, Edit):
        raise UnlearnError(
            "VU-U051",
            f"The method {name!r} returned a {type(edit).__name__} and no Edit.",
            "Tell the authors of the plugin: `unlearn` returns a vu_core.Edit.",
            where=name,
        )
    check_edit(edit, bench.model.network, name)
    told = {**_counts(edit), **_denoiser(bench.model), "base_model": _base_model(bench.plan.config.model)}
    facts = {**edit.facts, **told}
    parents = tuple(each.digest for each in bench.plan.config.edits)
    return attrs.evolve(edit, base=bench.model.facts.base_hash, parents=parents, method=name, facts=facts)


def _base_model(model: Choice) -> str:
    """Return plugin and hub id, or the last part of a path: where a model lies is not part of what it is."""
    return f"{model.name}={short_name(f'{model.name}={model.ref}')}" if model.ref else model.name


def _denoiser(model: Model) -> dict[str, Any]:
    """Return name and size of the part that predicts, so that shares of it can be told without the model."""
    name = getattr(model, "denoiser", None)
    if name is None:
        return {}
    inside = (parameter for at, parameter in model.network.named_parameters() if at.startswith(f"{name}."))
    return {"denoiser": name, "denoiser_parameters": sum(parameter.numel() for parameter in inside)}


def check_edit(edit: Edit, network: nn.Module, who: str) -> None:
    """Object to an edit that does not fit, is not finite or changes nothing. Raises: EditError."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, part in edit:
        if name not in tensors:
            raise EditError(
                "VU-E054",
                f"The edit changes {name!r}, which the model does not have.{did_you_mean(name, tensors)}",
                "Apply an edit to the model it was made for.",
                where=who,
            )
        _check_part(name, part, tensors[name], who)
    if edit.may_be_identity:
        return
    if not edit.parts:
        raise EditError(
            "VU-E050",
            f"The method {who!r} changed nothing: its edit has no parts.",
            "Check that its targets match something, and that the learning rate and steps are not too small.",
            where=who,
        )
    if all(_is_identity(part, tensors[name]) for name, part in edit):
        raise EditError(
            "VU-E051",
            f"The edit of {who!r} has no effect: every change is zero.",
            "Check that what is forgotten differs from its overwrite, that it trains long enough, and that no "
            "regularizer shrinks every change to zero.",
            where=who,
        )


def _check_part(name: str, part: Part, tensor: Tensor, who: str) -> None:
    import torch

    shape = tuple(tensor.shape)
    if isinstance(part, LowRank):
        fits = part.B.shape[1] == part.A.shape[0] and part.B.shape[0] * part.A.shape[1] == tensor.numel()
        fits = fits and (part.mask is None or part.mask.numel() == tensor.numel())
        values = [part.A, part.B, torch.tensor(part.alpha)]
    elif isinstance(part, Sparse):
        inside = not len(part.indices) or (int(part.indices.min()) >= 0 and int(part.indices.max()) < tensor.numel())
        fits = tuple(part.shape) == shape and len(part.indices) == len(part.values) and inside
        values = [part.values]
    else:
        fits = tuple(part.tensor.shape) == shape
        values = [part.tensor]
    if not fits:
        raise EditError(
            "VU-E054",
            f"The edit of {name!r} does not fit its shape {shape}.",
            "Tell the authors of the plugin.",
            where=who,
        )
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise EditError(
            "VU-E052",
            f"The edit of {name!r} holds numbers that are not finite.",
            "Lower the learning rate, or set unlearner.training.max_grad_norm.",
            where=who,
        )


def _is_identity(part: Part, tensor: Tensor) -> bool:
    import torch

    if isinstance(part, Replace):
        return torch.equal(part.tensor.to(tensor), tensor)
    if isinstance(part, Sparse):
        return not bool(part.values.any())
    return not bool(part.delta().any())


def _counts(edit: Edit) -> dict[str, Any]:
    """Count the tensors that change and the numbers in them that may."""
    numbers = 0
    for _, part in edit:
        if isinstance(part, Sparse):
            numbers += len(part.indices)
        elif isinstance(part, Replace):
            numbers += part.tensor.numel()
        elif part.mask is not None:
            numbers += int(part.mask.sum())
        else:
            numbers += part.B.shape[0] * part.A.shape[1]
    return {"changed_tensors": len(edit.parts), "changed_numbers": numbers}
