"""The model plugin ``diffusers``: finds a Stable Diffusion pipeline, tells its facts, loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from vu_core import ModelError, ModelFacts, Source, did_you_mean, setting
from vu_diffusers.folder import MODEL_INDEX, PIPELINE, PipelineFolder, open_folder
from vu_diffusers.hub import HUB_ID, Remote, unreachable

if TYPE_CHECKING:
    from vu_diffusers.stable_diffusion import StableDiffusion


@attrs.frozen
class Config:
    """Settings of the model ``diffusers``, the table ``[model]``."""

    variant: str | None = setting(None, help="middle part of the weights' file names, such as fp16")
    revision: str | None = setting(None, help="branch, tag or commit of a hub id")
    local_files_only: bool = setting(False, help="never ask the hub; use what its local cache holds")
    steps: int = setting(50, help="sampling steps when measure.steps says nothing", ge=1)
    guidance: float = setting(7.5, help="guidance scale when measure.guidance says nothing; 1 = off", ge=0)
    gradient_checkpointing: bool = setting(
        False, help="compute activations twice instead of keeping them: less memory, slower", speed_only=True
    )


class Diffusers:
    """Read a Stable Diffusion 1.x / 2.x pipeline from a local folder or a hub id.

    Understood are pipelines of UNet2DConditionModel, CLIPTextModel and AutoencoderKL that predict the noise (epsilon)
    or the velocity (v-prediction), with safetensors weights. The safety checker is not loaded.

    Args:
        ref: folder written by diffusers' ``save_pretrained``, or ``owner/name`` on the hub. A folder wins.
        config: see `Config`.

    Example:
        >>> import tempfile
        >>> from vu_diffusers.tiny import tiny_pipeline
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Diffusers(str(tiny_pipeline(folder)), Config()).inspect().resolution
        32
    """

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source(
        "High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al. 2022",
        "https://arxiv.org/abs/2112.10752",
        "code",
    )
    takes_hub_ids: ClassVar[bool] = True
    name: ClassVar[str] = "diffusers"

    def __init__(self, ref: str, config: Config) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is a folder with the index file of a Stable Diffusion pipeline."""
        index = path / MODEL_INDEX
        if not index.is_file():
            return False
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
        except ValueError:
            return True  # a damaged index: `inspect` says so
        return isinstance(content, dict) and content.get("_class_name") == PIPELINE

    def inspect(self) -> ModelFacts:
        """Return what the files tell, without torch.

        Raises:
            ModelError: VU-M070 to VU-M077; the message names the file and what to do.
        """
        place = self._locate()
        generation = {"steps": float(self.config.steps), "guidance": self.config.guidance}
        if isinstance(place, Remote):
            return place.facts(self.name, generation)
        return place.facts(self.name, self.ref, generation)

    def load(self, *, device: str = "cpu", precision: str = "fp32") -> StableDiffusion:
        """Read the weights, after fetching them if need be; frozen, in evaluation mode.

        Args:
            device: ``cpu``, ``cuda``, ...
            precision: ``fp32``, ``bf16`` or ``fp16``, whatever the files hold.

        Raises:
            ModelError: as `inspect`; VU-M074 when tensors are missing or misshapen, VU-M078 for an absent device.
        """
        from vu_diffusers.loading import load_pipeline

        place = self._locate()
        if isinstance(place, Remote):
            place = open_folder(place.download(), self.config.variant)
        generation = {"steps": float(self.config.steps), "guidance": self.config.guidance}
        facts = place.facts(self.name, self.ref, generation)
        return load_pipeline(
            place, facts, device=device, precision=precision, gradient_checkpointing=self.config.gradient_checkpointing
        )

    def _locate(self) -> PipelineFolder | Remote:
        """Return the folder, or the repository when its files are not here."""
        if not self.ref:
            raise ModelError(
                "VU-M070",
                "The model 'diffusers' needs a folder or a hub id.",
                "Name it: --model diffusers=FOLDER, or --model owner/name.",
                where="model.ref",
            )
        path = Path(self.ref).expanduser()
        if path.is_dir():
            self._check_local_settings()
            return open_folder(path, self.config.variant)
        if path.is_file():
            raise ModelError(
                "VU-M071",
                f"{self.ref!r} is a single file; a pipeline is a folder.",
                "Convert it once in diffusers: StableDiffusionPipeline.from_single_file(file).save_pretrained(folder).",
                where="model.ref",
            )
        if not HUB_ID.fullmatch(self.ref) or path.parent.is_dir():  # a path, wherever its folder is here
            raise _not_found(self.ref, path)
        remote = Remote(self.ref, self.config.revision, self.config.variant)
        snapshot = remote.cached()
        if snapshot is None and self.config.local_files_only:
            raise unreachable(self.ref, "model.local_files_only forbids asking the hub")
        if snapshot is None:
            return remote
        try:
            return open_folder(snapshot, self.config.variant)
        except ModelError as error:  # part of the model is in the cache: the rest must be fetched
            if self.config.local_files_only:
                raise unreachable(self.ref, "model.local_files_only forbids asking the hub for the rest") from error
            return remote

    def _check_local_settings(self) -> None:
        if self.config.revision is not None or self.config.local_files_only:
            key = "revision" if self.config.revision is not None else "local_files_only"
            raise ModelError(
                "VU-M077",
                f"model.{key} is for hub ids, but {self.ref!r} is a folder.",
                f"Leave model.{key} out.",
                where=f"model.{key}",
            )


def _not_found(ref: str, path: Path) -> ModelError:
    siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    return ModelError(
        "VU-M070",
        f"There is no folder {ref!r}.{did_you_mean(path.name, siblings)}",
        f"Check the path. The hub is not asked for {ref!r}, because the folder {str(path.parent)!r} is here."
        if HUB_ID.fullmatch(ref)
        else "Check the path, or name a model on the hub as owner/name.",
        where="model.ref",
    )
