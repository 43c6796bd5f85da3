"""The model plugin ``transformers``: image classifiers in the layout of that library, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_classifiers.hub import HUB_ID, Remote, unreachable
from vu_classifiers.pretrained_folder import (
    PretrainedFolder,
    class_names,
    damaged,
    image_size,
    is_classifier,
    open_folder,
)
from vu_classifiers.torch_module import distinct
from vu_core import ModelError, ModelFacts, Source, did_you_mean, setting, torch_dtype

if TYPE_CHECKING:
    from torch import nn

    from vu_classifiers.image_classifier import ImageClassifier

DAMAGE = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError)
"""What the library raises on values in a configuration that it did not expect."""


def _named(classes: tuple[str, ...]) -> str | None:
    return distinct(classes) if classes else None


def _channels(numbers: tuple[float, ...]) -> str | None:
    return None if len(numbers) in (0, 1, 3) else f"must have 1 or 3 numbers, but has {len(numbers)}"


@attrs.frozen
class TransformersConfig:
    """Settings of `Transformers`, the table ``[model]``."""

    revision: str | None = setting(None, help="branch, tag or commit of a hub id")
    local_files_only: bool = setting(False, help="never ask the hub; use what its local cache holds")
    classes: tuple[str, ...] = setting(
        (), help="names of the classes in the order of the logits; empty = those of the model's config", check=_named
    )
    size: int | None = setting(None, help="height and width of the images; default: what the files say", ge=1)
    axis: str = setting("", help="label of the data that names the class; empty = the one whose values are classes")
    head: str = setting("", help="name of the module whose input are the features; empty = the last torch.nn.Linear")
    mean: tuple[float, ...] = setting(
        (), help="subtracted from pixels in [0, 1], one number or three; empty = what the files say", check=_channels
    )
    std: tuple[float, ...] = setting(
        (), help="then divided by, one number or three; empty = what the files say", gt=0, check=_channels
    )


class Transformers:
    """Load an image classifier that transformers reads: a vision transformer, a convolutional network, any of them.

    Read are ``config.json`` (architecture, names of the classes), safetensors weights, and ``preprocessor_config.json``
    (size, mean and deviation; without it pixels are in [-1, 1] and the size is that of the configuration). How an
    image is brought to its size is up to the data, so a ``resample`` of the preprocessing is not looked at. Pickles
    are refused, and no code of a repository is executed. Weights that are missing are an error; those that the network
    has no place for, such as an unused pooler, are left out by the library.

    The names of the tensors are those of the installed version of transformers, which may differ from those on disk.

    Args:
        ref: a folder that ``save_pretrained`` wrote, or ``owner/name`` on the hub: ``transformers=owner/name``, since
            a hub id alone means a diffusion model. A folder wins.
        config: see `TransformersConfig`.
    """

    Config: ClassVar[type[TransformersConfig]] = TransformersConfig
    source: ClassVar[Source] = Source(
        "Transformers: State-of-the-Art Natural Language Processing, Wolf et al. 2020",
        "https://arxiv.org/abs/1910.03771",
        "code",
    )
    name: ClassVar[str] = "transformers"

    def __init__(self, ref: str, config: TransformersConfig) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is a folder whose ``config.json`` names an image classifier."""
        return is_classifier(path)

    def inspect(self) -> ModelFacts:
        """Return what the files tell, without torch.

        Raises:
            ModelError: nothing of the name is there (``VU-M070``), the hub does not give it (``VU-M075``,
                ``VU-M076``), a setting is for hub ids (``VU-M077``), or it is none that is understood (``VU-M111`` to
                ``VU-M114``).
        """
        place = self._locate()
        if isinstance(place, Remote):
            return place.facts(self.name, self.config.size)
        return place.facts(self.name, self.ref, self._size(place))

    def load(self, *, device: str, precision: str) -> ImageClassifier:
        """Read the weights, after fetching them if need be; frozen, in evaluation mode.

        Raises:
            ModelError: as `inspect`; the weights do not fit the configuration (``VU-M112``), or the network does not
                answer with a logit per class (``VU-M096``).
        """
        import torch

        from vu_classifiers.image_classifier import ImageClassifier, Normalisation

        place = self._locate()
        if isinstance(place, Remote):
            place = open_folder(place.download())
        facts = place.facts(self.name, self.ref, self._size(place))
        module = _read(place, torch_dtype(precision)).to(torch.device(device))
        mean, std = self.config.mean or place.seen.mean, self.config.std or place.seen.std
        channels = 1 if place.config.get("num_channels") == 1 else 3
        return ImageClassifier(
            module,
            facts,
            classes=self.config.classes or class_names(place.config, str(place.root)),
            axis=self.config.axis,
            head=self.config.head,
            normalisation=Normalisation(mean, std, channels),
            make=lambda: _untrained(module),
        )

    def _size(self, place: PretrainedFolder) -> int:
        return self.config.size or image_size(place.config, place.seen, str(place.root))

    def _locate(self) -> PretrainedFolder | Remote:
        """Return the folder, or the repository when its files are not here."""
        path = Path(self.ref).expanduser()
        if self.ref and path.is_dir():
            self._check_local_settings()
            return open_folder(path)
        # A path, wherever its folder is here.
        if not HUB_ID.fullmatch(self.ref) or path.is_file() or path.parent.is_dir():
            raise _not_found(self.ref, path)
        remote = Remote(self.ref, self.config.revision)
        snapshot = remote.cached()
        try:
            if snapshot is not None:
                return open_folder(snapshot)
        except ModelError as error:  # part of the model is in the cache: the rest must be fetched
            if self.config.local_files_only:
                raise unreachable(self.ref, "model.local_files_only forbids asking the hub for the rest") from error
        if self.config.local_files_only:
            raise unreachable(self.ref, "model.local_files_only forbids asking the hub")
        return remote

    def _check_local_settings(self) -> None:
        """Refuse settings for hub ids beside a folder. Raises: ModelError (``VU-M077``)."""
        if self.config.revision is None and not self.config.local_files_only:
            return
        key = "revision" if self.config.revision is not None else "local_files_only"
        problem = f"model.{key} is for hub ids, but {self.ref!r} is a folder."
        raise ModelError("VU-M077", problem, f"Leave model.{key} out.", where=f"model.{key}")


def _read(place: PretrainedFolder, dtype: Any) -> nn.Module:
    """Return the network with its weights. Raises: ModelError (``VU-M112``)."""
    from huggingface_hub.errors import StrictDataclassError

    from vu_classifiers.quiet import quiet

    with quiet():
        from transformers import AutoModelForImageClassification

        try:
            module, report = AutoModelForImageClassification.from_pretrained(
                str(place.root),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=dtype,
            )
        except (StrictDataclassError, *DAMAGE) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise damaged(str(place.root), lines[0].removesuffix(".")) from error
    missing = sorted(report["missing_keys"])
    if missing:  # the library would go on with random numbers there
        raise damaged(str(place.root), f"{len(missing)} tensors are missing, such as {missing[0]!r}")
    return module  # type: ignore[no-any-return]


def _untrained(module: Any) -> nn.Module:
    """Return a network of the same configuration, newly initialised."""
    from vu_classifiers.quiet import quiet

    with quiet():
        from transformers import AutoModelForImageClassification

        made: nn.Module = AutoModelForImageClassification.from_config(module.config, trust_remote_code=False)
    return made


def _not_found(ref: str, path: Path) -> ModelError:
    if not ref:
        problem, remedy = "Nothing says which classifier is meant.", "Write --model transformers=FOLDER."
    elif path.is_file():
        problem, remedy = f"{ref!r} is a single file; a classifier of transformers is a folder.", "Name its folder."
    else:
        here = path.parent.is_dir()
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if here else []
        problem = f"There is no folder {ref!r}.{did_you_mean(path.name, siblings)}"
        remedy = "Check the path, or name a model on the hub: transformers=owner/name."
        if HUB_ID.fullmatch(ref):
            remedy = (
                f"Check the path. The hub is not asked for {ref!r}, because the folder {str(path.parent)!r} is here."
            )
    return ModelError("VU-M070", problem, remedy, where="model.ref")
