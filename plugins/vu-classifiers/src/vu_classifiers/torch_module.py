"""The model plugin ``torch-module``: any module of the user's that maps images to logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_classifiers import factory
from vu_classifiers.blocks import find_blocks
from vu_core import (
    Capability,
    ModelError,
    ModelFacts,
    Source,
    StoredTensor,
    base_hash,
    did_you_mean,
    setting,
    stored_tensors,
    torch_dtype,
)

if TYPE_CHECKING:
    from torch import nn

    from vu_classifiers.image_classifier import ImageClassifier

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last words of the names of tensors that batch normalisation keeps and nobody trains."""


def distinct(classes: tuple[str, ...]) -> str | None:
    """Object to names of classes that are not two or more distinct ones."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        return f"names {twice[0]!r} more than once"
    return None if len(classes) > 1 else "must name at least two classes"


@attrs.frozen
class TorchModuleConfig:
    """Settings of `TorchModule`, the table ``[model]``."""

    weights: str = setting(help="safetensors file with the state of the module", path=True)
    classes: tuple[str, ...] = setting(help="names of the classes in the order of the logits", check=distinct)
    size: int = setting(224, help="height and width of the images in pixels", ge=1)
    axis: str = setting("", help="label of the data that names the class; empty = the one whose values are classes")
    head: str = setting("", help="name of the module whose input are the features; empty = the last torch.nn.Linear")
    channels: int = setting(3, help="3 for colour, 1 for a network that reads brightness alone", choices=(1, 3))
    mean: tuple[float, ...] = setting((0.5,), help="subtracted from pixels in [0, 1]: one number, or one per channel")
    std: tuple[float, ...] = setting((0.5,), help="then divided by: one number, or one per channel", gt=0)

    def __attrs_post_init__(self) -> None:
        """Raise ValueError unless ``mean`` and ``std`` fit the channels."""
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                numbers = "1 number" if self.channels == 1 else f"1 or {self.channels} numbers"
                raise ValueError(f"{name} must have {numbers}, but has {len(getattr(self, name))}")


class TorchModule:
    """Load any `torch.nn.Module` that maps images to logits: made by a factory, filled from a safetensors file.

    The ref is ``module:factory``, where the module is installed or lies in the current folder, or
    ``path/to/file.py:factory``; the factory, a function or the class itself, takes no arguments. A file of the current
    folder is kept as an absolute path, so that a run can be repeated from another one. **Its code is executed.**

    The weights are those of the file and nothing else: a tensor that is missing, surplus or of another shape is an
    error. They are hashed as they lie on disk, so an edit knows the weights it was made for. Float tensors count
    as parameters, besides the statistics of batch normalisation; the cost of a forward pass is a rough figure,
    because shapes alone do not tell strides: every weight of a network with convolutions is used at ``(size / 8)^2``
    places.

    Args:
        ref: ``module:factory`` or ``path/to/file.py:factory``.
        config: see `TorchModuleConfig`.
    """

    Config: ClassVar[type[TorchModuleConfig]] = TorchModuleConfig
    source: ClassVar[Source] = Source("Image classifiers, part of vu", "https://pytorch.org", "own")
    name: ClassVar[str] = "torch-module"

    def __init__(self, ref: str, config: TorchModuleConfig) -> None:
        self.ref = factory.settled(ref)
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return False: a network is named by its factory, which no file name tells."""
        return False

    @classmethod
    def settle(cls, ref: str) -> str:
        """Return the ref with the absolute path of a file of the current folder, all else as it is."""
        return factory.settled(ref)

    def inspect(self) -> ModelFacts:
        """Return what the weights file tells, without torch; the factory is looked for, and not imported.

        Raises:
            ModelError: nothing of the name is there (``VU-M092``), no weights file is (``VU-M094``), or it is damaged
                (``VU-M074``).
        """
        factory.check(self.ref)
        file = self._file()
        tensors = stored_tensors(file)
        parameters = sum(math.prod(tensor.shape) for tensor in tensors if is_parameter(tensor))
        return ModelFacts(
            name=self.name,
            ref=self.ref,
            base_hash=base_hash({"classifier": [file]}),
            capabilities=capabilities(tensors),
            parameters=parameters,
            bytes=4 * parameters,
            resolution=self.config.size,
            forward_gflops=forward_gflops(tensors, self.config.size),
        )

    def load(self, *, device: str, precision: str) -> ImageClassifier:
        """Make the module, fill it, freeze it; in evaluation mode.

        Raises:
            ModelError: as `inspect`; the factory fails or returns no module (``VU-M093``), the weights are those of
                another network (``VU-M095``), it does not give a logit per class (``VU-M096``), or the head is not
                there (``VU-M097``).
        """
        import torch
        from safetensors.torch import load_file

        from vu_classifiers.image_classifier import ImageClassifier, Normalisation
        from vu_classifiers.state import fill

        facts, config, file = self.inspect(), self.config, self._file()
        with torch.random.fork_rng(devices=[]):  # a factory draws weights that are replaced
            module = self._module()
        fill(module, load_file(file), file)
        return ImageClassifier(
            module.to(torch.device(device), torch_dtype(precision)),
            facts,
            classes=config.classes,
            axis=config.axis,
            head=config.head,
            normalisation=Normalisation(config.mean, config.std, config.channels),
            make=self._module,
        )

    def _module(self) -> nn.Module:
        """Return what the factory makes. Raises: ModelError (``VU-M093``)."""
        from torch import nn

        made: Any = factory.make(self.ref)
        if isinstance(made, nn.Module) and next(made.parameters(), None) is not None:
            return made
        what = "a module without parameters" if isinstance(made, nn.Module) else repr(type(made).__name__)
        raise ModelError(
            "VU-M093",
            f"{self.ref!r} returned {what}, not a network.",
            "Name a function that returns a torch.nn.Module, or the class of one.",
            where="model.ref",
        )

    def _file(self) -> Path:
        """Return the weights file. Raises: ModelError (``VU-M094``)."""
        path = Path(self.config.weights).expanduser()
        if path.is_file() and path.suffix not in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
            return path
        problem = f"There is no weights file {self.config.weights!r}."
        remedy = "Write it once: safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')."
        if path.is_file():
            problem = f"{path.name!r} is a pickle, which could run any program when it is read."
        elif path.parent.is_dir():
            problem += did_you_mean(path.name, [other.name for other in path.parent.glob("*.safetensors")])
        raise ModelError("VU-M094", problem, remedy, where="model.weights")


def capabilities(tensors: Sequence[StoredTensor]) -> frozenset[Capability]:
    """Return what a network that can be made anew can do, by its stored tensors."""
    can = {Capability.CLASSIFY, Capability.FRESH}
    blocks = find_blocks((tensor.name, tensor.shape) for tensor in tensors)
    return frozenset(can | {Capability.BLOCKS} if blocks else can)


def is_parameter(tensor: StoredTensor) -> bool:
    """Tell whether a stored tensor counts as a parameter.

    Example:
        >>> [is_parameter(StoredTensor(name, "F32", (3,))) for name in ("norm.weight", "norm.running_var")]
        [True, False]
    """
    return "F" in tensor.dtype and tensor.name.rpartition(".")[2] not in BUFFERS


def forward_gflops(tensors: Sequence[StoredTensor], size: int) -> float:
    """Return a rough cost of one image, 10^9 multiply-adds: every matrix is used once or at ``(size / 8)^2`` places."""
    shapes = [tensor.shape for tensor in tensors if is_parameter(tensor) and len(tensor.shape) > 1]
    spatial = any(len(shape) == 4 for shape in shapes)  # a convolution, be it the patches of a transformer
    places = max(1.0, (size / 8) ** 2) if spatial else 1.0
    return max(1, sum(map(math.prod, shapes))) * places / 1e9
