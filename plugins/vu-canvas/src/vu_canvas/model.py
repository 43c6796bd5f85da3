"""The model plugin `canvas-diffusion`: the pipeline that ships with this package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from vu_core import ModelError, ModelFacts, Source, setting
from vu_diffusers.model import Config as DiffusersConfig
from vu_diffusers.model import Diffusers

if TYPE_CHECKING:
    from vu_core import Model


@attrs.frozen
class CanvasDiffusionConfig:
    """Settings of `CanvasDiffusion`."""

    steps: int = setting(10, help="sampling steps when measure.steps says nothing", ge=1)
    guidance: float = setting(2.5, help="guidance scale when measure.guidance says nothing; 1 = off", ge=0)


class CanvasDiffusion:
    """Draw ten objects in ten styles, 64x64, from prompts such as ``A star image in neon style.``.

    A real Stable Diffusion pipeline in small: CLIP tokenizer and text model, autoencoder, UNet with cross-attention,
    v-prediction. Plain diffusers loads the folder; `vu` reads it with the class behind the model ``diffusers``.
    """

    Config: ClassVar[type[CanvasDiffusionConfig]] = CanvasDiffusionConfig
    source: ClassVar[Source] = Source(
        "High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al. 2022",
        "https://arxiv.org/abs/2112.10752",
        "own",
    )

    def __init__(self, ref: str, config: CanvasDiffusionConfig) -> None:
        if ref:
            raise ModelError(
                "VU-M090",
                f"The model 'canvas-diffusion' ships with vu-canvas and takes no place: {ref!r}.",
                f"Write `--model canvas-diffusion`, or `--model diffusers={ref}` for a pipeline of your own.",
                where="model.ref",
            )
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: a folder on disk belongs to the model ``diffusers``."""
        return False

    def inspect(self) -> ModelFacts:
        """Return the facts of the shipped files. Raises: ModelError when the package came without weights."""
        return self._facts(self._pipeline().inspect())

    def load(self, *, device: str, precision: str) -> Model:
        """Read the weights. Raises: ModelError."""
        model = self._pipeline().load(device=device, precision=precision)
        model.facts = self._facts(model.facts)
        return model

    def _pipeline(self) -> Diffusers:
        folder = Path(str(files("vu_canvas"))) / "weights" / "diffusion"
        if not (folder / "model_index.json").is_file():
            raise ModelError(
                "VU-M091",
                "vu-canvas came without its model: weights/diffusion is missing from the package.",
                "Install vu-canvas again, or train the model with `python -m vu_canvas.train`.",
                where="vu-canvas",
            )
        settings = DiffusersConfig(steps=self.config.steps, guidance=self.config.guidance)
        return Diffusers(str(folder), settings)

    def _facts(self, facts: ModelFacts) -> ModelFacts:
        """Return the facts under this model's name and without the place on this machine."""
        return attrs.evolve(facts, name="canvas-diffusion", ref="", licence="apache-2.0")
