"""The exporter ``native``: the edit as `vu` keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import attrs

from vu_core import Edit, EditError, Model, Run, Source
from vu_core.adapters import apply_edit, edit_digest, load_edit, save_edit
from vu_diffusers.probe import outputs, relative_error
from vu_diffusers.stable_diffusion import StableDiffusion

FILE = "edit.safetensors"


@attrs.frozen
class Config:
    """The exporter ``native`` has no settings."""


class Native:
    """Write any edit exactly: factors, alpha, packed masks, sparse and whole tensors, base hash and parents.

    Args:
        config: see `Config`.
    """

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source("safetensors", "https://github.com/huggingface/safetensors", "own")

    def __init__(self, config: Config) -> None:
        self.config = config

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write ``edit.safetensors`` into ``folder``. Raises: EditError VU-E070 when the edit is empty."""
        if not edit.parts:
            raise EditError("VU-E070", "The edit is empty: there is nothing to write.", "Export another edit.")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        save_edit(edit, path)
        return (path,)

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> float:
        """Read the file again; returns the error of the denoiser's outputs, which is 0.

        Raises:
            EditError: VU-E071 when anything in the file differs from the edit.
        """
        again = load_edit(files[0])
        if edit_digest(again) != edit_digest(edit):
            raise EditError(
                "VU-E071",
                "The file read again differs from the edit.",
                "Do not use the file; check the disk.",
                where=str(files[0]),
            )
        if not isinstance(model, StableDiffusion):
            return 0.0
        with apply_edit(model.network, edit):
            wanted = outputs(model)
        with apply_edit(model.network, again):
            return relative_error(outputs(model), wanted)
