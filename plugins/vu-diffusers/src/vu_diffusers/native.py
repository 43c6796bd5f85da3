"""The exporter ``native``: the edit as `vu` keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import attrs

from vu_core import Check, Edit, Model, Run, Source
from vu_core.adapters import apply_edit, check_fits, edit_digest, load_edit, save_edit
from vu_diffusers.export_files import check_there, of_pipeline, write_all
from vu_diffusers.lora_layers import require_content
from vu_diffusers.probe import answers, comparison, precision_of, wanted_of

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
        """Write ``edit.safetensors`` into ``folder``.

        Raises:
            EditError: VU-E070 when the edit is empty, VU-E054 when the model is another.
        """
        require_content(edit)
        for name, part in edit:
            check_fits(model.network, name, part)
        return write_all(folder, lambda place: save_edit(edit, place / FILE))

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> tuple[Check, ...]:
        """Read the file again and compare everything in it, and what the model computes.

        Returns:
            Outputs and image, which differ by nothing, and ``edit``: 0 when the file holds the very edit, else 1.

        Raises:
            EditError: VU-E071 for a missing file, VU-E031 to VU-E034 for one that is damaged.
        """
        check_there("vu", files)
        again = load_edit(files[0])
        with apply_edit(model.network, again):
            found = answers(model)
        checks = comparison(found, wanted_of(model, edit), precision_of(model.network))
        return (*checks, Check("edit", float(edit_digest(again) != edit_digest(edit)), 0.0))

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        """Return the lines that let a pipeline of diffusers, or any other module, compute with the edit."""
        if not of_pipeline(load_edit(files[0]).parts):
            return (
                "from pathlib import Path\n\n"
                "from vu_core.adapters import apply_edit, load_edit\n\n"
                f"with apply_edit(network, load_edit(Path({FILE!r}))):  # network: the torch.nn.Module of {base!r}\n"
                "    outputs = network(inputs)\n"
            )
        return (
            "from pathlib import Path\n\n"
            "import torch\n"
            "from diffusers import StableDiffusionPipeline\n"
            "from vu_core.adapters import apply_edit, load_edit\n\n"
            f"pipe = StableDiffusionPipeline.from_pretrained({base!r})\n"
            "network = torch.nn.ModuleDict({name: getattr(pipe, name) for name in ('unet', 'text_encoder', 'vae')})\n"
            f"with apply_edit(network, load_edit(Path({FILE!r}))):\n"
            "    image = pipe('a prompt').images[0]\n"
        )
