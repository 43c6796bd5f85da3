"""The exporter ``merged``: a whole pipeline folder whose weights carry the edit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from vu_core import Check, Edit, Model, Run, Source, setting, torch_dtype
from vu_core.adapters import check_fits, compose
from vu_diffusers.delta_file import tensor_named
from vu_diffusers.export_files import check_complete, check_there, read_by, unreadable, write_all
from vu_diffusers.folder import MODEL_INDEX
from vu_diffusers.loading import as_pipeline
from vu_diffusers.lora_layers import inexpressible, largest, require_content, require_pipeline, same_tensor
from vu_diffusers.probe import answers, coarser, comparison, wanted_of
from vu_diffusers.quiet import quiet
from vu_diffusers.stable_diffusion import StableDiffusion

STRENGTH_TOLERANCE = 0.01
"""How much of a change may be lost when the new weights are rounded; trained edits lose 3e-5 of it in bf16."""


@attrs.frozen
class Config:
    """Settings of the exporter ``merged``."""

    precision: str | None = setting(
        None,
        help="precision of the weights in the folder; the one of the loaded model when it says nothing",
        choices=("fp32", "fp16", "bf16"),
    )


class Merged:
    """Write the pipeline with ``W + delta`` as weights: a folder that ``from_pretrained`` loads like the base.

    Sums are formed in float64 and rounded once. Weights are safetensors, never pickles.

    Args:
        config: see `Config`.

    Source: files as ``StableDiffusionPipeline.save_pretrained`` writes them.
    """

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source("diffusers", "https://github.com/huggingface/diffusers", "code")

    def __init__(self, config: Config) -> None:
        self.config = config

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write a pipeline folder.

        Raises:
            EditError: VU-E070 when the edit is empty, changes one tensor under two names or one that no file holds, or
                when the model is no Stable Diffusion pipeline; VU-E054 when the model is another.
        """
        base = require_pipeline(model, "a merged pipeline")
        require_content(edit)
        same_tensor(edit, model)
        stored = {id(t) for part in base.network.values() for t in part.state_dict(keep_vars=True).values()}
        for name, part in edit:
            check_fits(model.network, name, part)
            if id(tensor_named(model.network, name)) not in stored:
                raise inexpressible("A pipeline folder", f"{name!r} is computed when a model is made, not stored", name)
        with quiet():
            networks = {
                component: _rebuilt(network, self._tensors(base, component, edit))
                for component, network in base.network.items()
            }
            pipeline = as_pipeline(nn.ModuleDict(networks), base.tokenizer, base.scheduler)
            return write_all(folder, lambda place: pipeline.save_pretrained(str(place), safe_serialization=True))

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> tuple[Check, ...]:
        """Load the folder with ``StableDiffusionPipeline.from_pretrained`` and compare weights and what it computes.

        Returns:
            ``denoiser``, ``image``; ``weights``: the largest difference of a stored number from ``W + delta`` in that
            precision, over all tensors, which must be 0; ``strength``: the share of the change that rounding has lost,
            ``|1 - <W' - W, delta> / <delta, delta>|``.

        Raises:
            EditError: VU-E071 when diffusers cannot read the folder.
        """
        base = require_pipeline(model, "a merged pipeline")
        wanted = wanted_of(model, edit)
        pipeline = self._loaded(files, base.dtype)
        for component in base.network:
            check_complete("diffusers", files[0].parent, getattr(pipeline, component))
        checks = (self._weights(pipeline, edit, base), _strength(pipeline, edit, base))
        with quiet():
            parts = {name: getattr(pipeline, name).to(base.device, base.dtype) for name in base.network}
        fresh = StableDiffusion.assemble(
            **parts, tokenizer=pipeline.tokenizer, scheduler=pipeline.scheduler, facts=model.facts
        )
        return (*comparison(answers(fresh), wanted, coarser(base.dtype, self._dtype(base.dtype))), *checks)

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        """Return the lines of diffusers; the base is not needed any more."""
        return (
            "from diffusers import StableDiffusionPipeline\n\n"
            f'pipe = StableDiffusionPipeline.from_pretrained(".")  # {base!r} with the edit: nothing else is needed\n'
        )

    def _dtype(self, own: torch.dtype) -> torch.dtype:
        return own if self.config.precision is None else torch_dtype(self.config.precision)

    def _tensors(self, model: Any, component: str, edit: Edit) -> dict[str, Tensor]:
        """Return the new tensors of a component by the names they have in its files."""
        parts = {id(tensor_named(model.network, name)): part for name, part in edit}
        precision, seen, new = self._dtype(model.dtype), set(), {}
        for name, tensor in model.network[component].state_dict(keep_vars=True).items():
            value = tensor.detach().cpu()
            if id(tensor) in parts:
                value = compose(value.double(), [parts[id(tensor)]])
            value = value.to(precision if tensor.is_floating_point() else tensor.dtype).contiguous()
            # A tensor under two names is written twice: safetensors refuses memory that is shared.
            new[name] = value.clone() if value.data_ptr() in seen else value
            seen.add(value.data_ptr())
        return new

    def _loaded(self, files: tuple[Path, ...], own: torch.dtype) -> Any:
        check_there("diffusers", files)
        index = [path for path in files if path.name == MODEL_INDEX]
        if not index:
            raise unreadable("diffusers", files[0], f"there is no {MODEL_INDEX}")
        with quiet(), read_by("diffusers", index[0].parent):
            from diffusers import StableDiffusionPipeline

            return StableDiffusionPipeline.from_pretrained(
                str(index[0].parent),
                torch_dtype=self._dtype(own),
                use_safetensors=True,
                local_files_only=True,
                safety_checker=None,
                requires_safety_checker=False,
            )

    def _weights(self, pipeline: Any, edit: Edit, model: Any) -> Check:
        """Compare every tensor: readers go on with random numbers where a file lacks some."""
        errors = []
        for component in model.network:
            stored = getattr(pipeline, component).state_dict()
            wanted = self._tensors(model, component, edit)
            errors += [float("inf") for _ in stored.keys() ^ wanted.keys()]
            for name in stored.keys() & wanted.keys():
                errors.append(float((stored[name].cpu().double() - wanted[name].double()).abs().max()))
        return Check("weights", largest(errors), 0.0)


def _rebuilt(network: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return a network of the same kind that holds these very tensors; the one of the model is left alone."""
    with torch.device("meta"):
        if isinstance(network.config, Mapping):  # of diffusers
            new = type(network).from_config({k: v for k, v in network.config.items() if k != "_name_or_path"})
        else:  # of transformers
            new = type(network)(copy.deepcopy(network.config))
    new.load_state_dict(tensors, assign=True)
    return new


def _strength(pipeline: Any, edit: Edit, model: Any) -> Check:
    """Return how much of the change rounding has lost: a lot of one that is small beside the steps of a precision."""
    kept = size = 0.0
    for name, part in edit:
        base = tensor_named(model.network, name).detach().cpu().double()
        change = compose(base, [part]) - base
        stored = tensor_named(pipeline.components, name).detach().cpu().double()
        kept += float(((stored - base) * change).sum())
        size += float(change.square().sum())
    return Check("strength", abs(1 - kept / size) if size else 0.0, STRENGTH_TOLERANCE)
