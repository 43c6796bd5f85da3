"""The exporter ``peft``: adapter folders that ``PeftModel.from_pretrained`` reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vu_core import Check, Edit, Model, Run, Source
from vu_diffusers.export_files import borrowed, check_there, read_by, to_json, write_all
from vu_diffusers.folder import CLASSES
from vu_diffusers.lora_layers import Factors, LoraConfig, adapter_check, lora_factors, require_pipeline
from vu_diffusers.probe import answers, coarser, comparison, wanted_of
from vu_diffusers.quiet import quiet

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ADAPTER = "default"
LIBRARIES = {"unet": "diffusers", "text_encoder": "transformers"}


class Peft:
    """Write low-rank edits as adapters of peft: ``adapter_config.json`` and ``adapter_model.safetensors``.

    A and B stand in the file as they were trained, and r and alpha in the configuration: the most frequent ones as
    ``r`` and ``lora_alpha``, others in ``rank_pattern`` and ``alpha_pattern``. peft adapts one network at a time: an
    edit of the denoiser alone fills the folder itself, any other has one folder per component, such as ``unet/``.

    Args:
        config: see `LoraConfig`.

    Source: files as ``PeftModel.save_pretrained`` writes them.
    """

    Config: ClassVar[type[LoraConfig]] = LoraConfig
    source: ClassVar[Source] = Source("LoRA, Hu et al. 2021", "https://arxiv.org/abs/2106.09685", "code")

    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def export(self, edit: Edit, model: Model, folder: Path, run: Run) -> tuple[Path, ...]:
        """Write two files per component into ``folder``, or into folders in it.

        Raises:
            EditError: VU-E070 when the format cannot express the edit, VU-E054 when the model is another.
        """
        layers = lora_factors(edit, model, "peft")
        return write_all(folder, lambda place: self._write(layers, place))

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Model, run: Run) -> tuple[Check, ...]:
        """Load the folders with ``PeftModel.from_pretrained`` onto the model's networks and compare what it computes.

        Returns:
            ``denoiser``, ``image``, and ``factors``: the products of the factors that peft has read.

        Raises:
            EditError: VU-E071 when peft cannot read the files.
        """
        from peft import PeftModel

        base = require_pipeline(model, "an adapter of peft")
        layers = lora_factors(edit, model, "peft")
        check_there("peft", files)
        wanted = wanted_of(model, edit)
        precision = coarser(base.dtype, self.config.dtype)
        with quiet(), borrowed(base.network):
            for path in _configs(files):
                component = _component(path)
                with read_by("peft", path):
                    PeftModel.from_pretrained(base.network[component], str(path.parent))
            factors = adapter_check(base.network, ADAPTER, layers, precision)
            return (*comparison(answers(model), wanted, precision), factors)

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        """Return the lines of diffusers and peft."""
        components = [_component(path) for path in _configs(files)]
        inside = {name: "" if components == ["unet"] else f", subfolder={name!r}" for name in components}
        loading = "".join(f"PeftModel.from_pretrained(pipe.{name}, '.'{where})\n" for name, where in inside.items())
        return (
            "from diffusers import StableDiffusionPipeline\n"
            "from peft import PeftModel\n\n"
            f"pipe = StableDiffusionPipeline.from_pretrained({base!r})\n"
            f"{loading}"
        )

    def _write(self, layers: Sequence[Factors], place: Path) -> None:
        from safetensors.torch import save_file

        components = sorted({layer.component for layer in layers})
        for component in components:
            folder = place if components == ["unet"] else place / component
            folder.mkdir(exist_ok=True)
            own = [layer for layer in layers if layer.component == component]
            (folder / CONFIG).write_text(to_json(_config(own)), encoding="utf-8")
            tensors: dict[str, Tensor] = {}
            for layer in own:
                for side, factor in (("A", layer.down), ("B", layer.up)):
                    key = f"base_model.model.{layer.path}.lora_{side}.weight"
                    tensors[key] = factor.to(self.config.dtype).contiguous()
            save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})


def _configs(files: tuple[Path, ...]) -> list[Path]:
    return sorted(path for path in files if path.name == CONFIG)


def _component(config: Path) -> str:
    """Return what an adapter is for. Raises: EditError VU-E071."""
    with read_by("peft", config):
        kind = json.loads(config.read_text(encoding="utf-8"))["auto_mapping"]["base_model_class"]
        return {known: component for component, known in CLASSES.items()}[kind]


def _config(layers: Sequence[Factors]) -> dict[str, Any]:
    """Return the configuration of one component; the names of its modules are those of this version of transformers."""
    component = layers[0].component
    ranks = {layer.path: layer.rank for layer in layers}
    alphas = {layer.path: layer.alpha for layer in layers}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "auto_mapping": {"base_model_class": CLASSES[component], "parent_library": LIBRARIES[component]},
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "target_modules": sorted(ranks),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
