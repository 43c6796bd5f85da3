"""A loaded image classifier: logits, features, and images in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from vu_classifiers.blocks import find_blocks
from vu_core import Batch, Examples, ModelError, ModelFacts, TransformerBlock, did_you_mean, digest

if TYPE_CHECKING:
    from vu_core import Run

COMPONENT = "classifier"
LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in the brightness of an image (ITU-R BT.601)."""


@attrs.frozen(eq=False)
class Normalisation:
    """What a network wants to see instead of pixels in [-1, 1].

    With p = (x + 1) / 2, the pixels in [0, 1], it is ``(p - mean) / std`` per channel, computed as
    ``x / (2 std) + (1/2 - mean) / std``: mean and std of 1/2 leave every bit of x as it was.

    Args:
        mean, std: one number, or one per channel.
        channels: 3, or 1 for a network that reads brightness alone, ``0.299 R + 0.587 G + 0.114 B``.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    channels: int = 3

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(B, channels, H, W)`` of images ``(B, 3, H, W)`` in [-1, 1]; differentiable."""
        x = images
        if self.channels == 1:
            x = (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)  # (B, 1, H, W)
        mean, std = (x.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        return x / (2 * std) + (0.5 - mean) / std


class ImageClassifier:
    """A `vu_core.contracts.Classifier` around any module that maps images to logits.

    The module is frozen and in evaluation mode: statistics of batch normalisation are those that were stored, whatever
    is trained. Names of its tensors begin with ``classifier.``.

    Args:
        module: maps ``(B, channels, H, W)`` to logits ``(B, K)``, or to an object with an attribute ``logits``.
        facts: what `inspect` told.
        classes: names of the K classes in the order of the logits.
        axis: which label of an example names its class; empty = the one whose values are all classes.
        head: name of the module whose input is the features; empty = the last `torch.nn.Linear`.
        normalisation: what the module wants to see.
        make: makes the module anew, with weights drawn from the global generator; ``None`` where nothing can.

    Raises:
        ModelError: the module answers an image with something else than K finite logits (``VU-M096``), or the head is
            none of its modules, or is not used (``VU-M097``).

    Example:
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
        >>> facts = ModelFacts("mine", "", "hash", frozenset(), parameters=98, bytes=392, resolution=4)
        >>> model = ImageClassifier(module, facts, classes=("cat", "dog"))
        >>> model.logits(torch.zeros(5, 3, 4, 4)).shape, model.features(torch.zeros(5, 3, 4, 4)).shape
        (torch.Size([5, 2]), torch.Size([5, 48]))
    """

    def __init__(
        self,
        module: nn.Module,
        facts: ModelFacts,
        *,
        classes: Sequence[str],
        axis: str = "",
        head: str = "",
        normalisation: Normalisation | None = None,
        make: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.network = nn.ModuleDict({COMPONENT: module}).requires_grad_(False).eval()
        self.facts = facts
        self.classes = tuple(classes)
        self.axis = axis
        self.head = f"{COMPONENT}.{_head_of(module, head)}"
        self.normalisation = normalisation or Normalisation()
        self._make = make
        # Looked up now: an adapter may rename tensors later.
        self._blocks = find_blocks((name, tuple(p.shape)) for name, p in self.network.named_parameters())
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.fingerprint = self._fingerprint()

    def prepare(self, examples: Examples, run: Run) -> Examples:
        """Return the table with the columns ``label`` ``(N,)`` int64 and ``pixels`` ``(N, 3, H, W)`` on the CPU.

        Images are read once; crop and flip draw once per image. Where every image is made of whole levels
        0 .. 255, the column is uint8, a quarter of the memory, and `images` gives back the same bits; else it is
        float32. Tables whose images change at every step (``reload``), which have none, or whose images lie in memory
        already, get labels only.

        Raises:
            ModelError: it is not clear which label is the class (``VU-M098``), or one is no class (``VU-M099``).
        """
        if "label" in examples.tensors or not len(examples):
            return examples
        labelled = examples.with_tensors(label=self._labels(examples))
        if examples.load is None or examples.reload or "pixels" in examples.tensors:
            return labelled
        rows = []
        for row in range(len(examples)):
            rows.append(_stored(examples.load(row, run.generator("pixels", examples.side, row))))
            run.progress("reading images", row + 1, len(examples))
        exact = all(row.dtype == torch.uint8 for row in rows)
        return labelled.with_tensors(pixels=torch.stack(rows if exact else [_pixels(row) for row in rows]))

    def images(self, batch: Batch) -> Tensor:
        """Return the images of the rows in [-1, 1], ``(B, 3, H, W)`` float32; read anew for a table that reloads.

        Raises:
            ModelError: the examples have no images (``VU-M099``).
        """
        if "pixels" in batch:
            return _pixels(batch["pixels"])
        load = batch.examples.load
        if load is None:
            raise ModelError("VU-M099", "These examples have no images.", "Use data with images.", where=batch.side)
        drawn = [load(row, draws) for row, draws in zip(batch.rows, batch.generators("pixels"), strict=True)]
        return torch.stack(drawn).to(batch.device)

    def labels(self, batch: Batch) -> Tensor:
        """Return the class of each row, int64 ``(B,)`` in 0 .. K - 1."""
        return batch["label"]

    def logits(self, images: Tensor) -> Tensor:
        """Return logits ``(B, K)`` in float32 of images in [-1, 1], ``(B, 3, H, W)``."""
        out: Tensor = _logits_of(self.network[COMPONENT](self.normalisation(images).to(self.dtype))).float()
        return out

    def features(self, images: Tensor) -> Tensor:
        """Return what goes into the head, ``(B, D)`` in float32; more dimensions are laid out in a row."""
        inputs: list[Tensor] = []
        # Looked up at every call: an adapter may have taken the place of the module.
        head = self.network.get_submodule(self.head)
        handle = head.register_forward_pre_hook(lambda _module, arguments: inputs.extend(arguments[:1]))
        try:
            self.logits(images)
        finally:
            handle.remove()
        if not inputs:
            name = self.head.removeprefix(f"{COMPONENT}.")
            raise _no_head(f"The module {name!r} is not used when the network answers an image.", "")
        return inputs[-1].flatten(1).float()

    def margin_logits(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the logits as a face transformer is trained on them, ``(B, K)`` in float32.

        The true class must win by the margin of the head. Where the head has none, these are the `logits`.

        Args:
            images: ``(B, 3, H, W)`` in [-1, 1].
            labels: int64 ``(B,)`` in 0 .. K - 1.
        """
        with_margin = getattr(self.network.get_submodule(self.head), "with_margin", None)
        if with_margin is None:
            return self.logits(images)
        logits: Tensor = with_margin(self.features(images).to(self.dtype), labels).float()
        return logits

    def blocks(self) -> tuple[TransformerBlock, ...]:
        """Return the transformer blocks from the input to the output; empty for a network without any."""
        return self._blocks

    def fresh(self, seed: int) -> dict[str, Tensor]:
        """Return newly initialised parameters and buffers by their names in ``network``; the model stays as it is.

        Args:
            seed: of torch's generator while the module is made.

        Returns:
            One tensor per stored tensor, of tied ones the first, on the device and in the precision of the model.

        Raises:
            ModelError: nothing makes the module anew, or it is the same whatever the seed, such as one that reads
                trained weights (``VU-M110``).
        """
        tensors, others = self._made(seed), self._made(seed + 1)
        if all(torch.equal(tensor, others[name]) for name, tensor in tensors.items()):
            raise _not_fresh("what makes the network gives the same tensors for every seed")
        return tensors

    def _made(self, seed: int) -> dict[str, Tensor]:
        """Return the tensors of a module that is made with this seed."""
        if self._make is None:
            raise _not_fresh("nothing makes its network anew")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._make()
        module = module.to(self.device, self.dtype)
        stored = module.state_dict().keys()
        named = [*module.named_parameters(), *module.named_buffers()]
        return {f"{COMPONENT}.{name}": tensor.detach() for name, tensor in named if name in stored}

    @torch.no_grad()
    def _fingerprint(self) -> str:
        """Return a hash of what the network answers to one image of noise, which its code decides with its tensors."""
        size = self.facts.resolution
        image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(self.device) * 2 - 1
        try:
            found = _logits_of(self.network[COMPONENT](self.normalisation(image).to(self.dtype)))
        except Exception as error:
            lines = str(error).splitlines() or [""]
            shape = (1, self.normalisation.channels, size, size)
            raise _wrong_logits(f"cannot read an image {shape}: {type(error).__name__}: {lines[0]}") from error
        if not isinstance(found, Tensor):
            raise _wrong_logits(f"answers an image with {type(found).__name__!r}, not with a tensor")
        if tuple(found.shape) != (1, len(self.classes)):
            raise _wrong_logits(
                f"answers one image with {tuple(found.shape)}, where {len(self.classes)} classes are named"
            )
        if not bool(found.isfinite().all()):
            raise _wrong_logits(f"answers an image with numbers that are not finite in {self.dtype}")
        answered: bytes = self.features(image).cpu().numpy().tobytes() + found.float().cpu().numpy().tobytes()
        return digest(self.head, answered)

    def _labels(self, examples: Examples) -> Tensor:
        """Return the column ``label``, int64 ``(N,)``."""
        axis = self._axis(examples)
        index = {name: place for place, name in enumerate(self.classes)}
        values = examples.labels[axis]
        unknown = [value for value in dict.fromkeys(values) if value not in index]
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            others = [name for name in examples.labels if name != axis]
            remedy = "Name every class in model.classes, in the order of the logits" + (
                f", or choose another axis with model.axis: {', '.join(others)}." if others else "."
            )
            raise ModelError(
                "VU-M099",
                f"The {axis} {unknown[0]!r}{more} of the {examples.side} examples is none of the {len(index)} classes."
                + did_you_mean(unknown[0], index),
                remedy,
                where="model.classes",
            )
        return torch.tensor([index[value] for value in values])

    def _axis(self, examples: Examples) -> str:
        """Return the label that names the class. Raises: ModelError (``VU-M098``)."""
        labels = examples.labels
        known = ", ".join(labels) or "none"
        if self.axis:
            if self.axis not in labels:
                problem = f"The examples have no label {self.axis!r}.{did_you_mean(self.axis, labels)}"
                raise _no_axis(problem, f"Their labels: {known}.")
            return self.axis
        if len(labels) == 1:
            return next(iter(labels))
        fitting = [axis for axis, values in labels.items() if set(values) <= set(self.classes)]
        if len({tuple(labels[axis]) for axis in fitting}) == 1:  # one, or several that say the same of every row
            return fitting[0]
        if not labels:
            raise _no_axis("The examples have no labels, so nothing says of which class they are.", "Use other data.")
        which = "more than one has values that are classes" if fitting else "of none all values are classes"
        raise _no_axis(
            f"It is not clear which label of the examples is the class: {which}.", f"Set model.axis to one of: {known}."
        )


def _logits_of(answer: Any) -> Any:
    """Return the logits in what a network answers, which may be an object that holds them."""
    return getattr(answer, "logits", answer)


def _stored(image: Tensor) -> Tensor:
    """Return an image as levels 0 .. 255 where these give back its very bits, else as it is."""
    levels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels if torch.equal(_pixels(levels), image) else image


def _pixels(stored: Tensor) -> Tensor:
    """Return stored images in [-1, 1], float32."""
    return stored.float() / 127.5 - 1 if stored.dtype == torch.uint8 else stored


def _head_of(module: nn.Module, head: str) -> str:
    """Return the name of the head. Raises: ModelError (``VU-M097``)."""
    names = [name for name, _ in module.named_modules() if name]
    if head:
        if head not in names:
            problem = f"The network has no module {head!r}.{did_you_mean(head, names)}"
            raise _no_head(problem, f" Its modules at the top: {', '.join(n for n, _ in module.named_children())}.")
        return head
    linear: list[str] = [name for name, child in module.named_modules() if name and isinstance(child, nn.Linear)]
    if not linear:
        raise _no_head("The network has no torch.nn.Linear inside, which would be its head.", "")
    return linear[-1]


def _no_head(problem: str, more: str) -> ModelError:
    remedy = f"Set model.head to the name of the module that the features go into, such as 'fc'.{more}"
    return ModelError("VU-M097", problem, remedy, where="model.head")


def _not_fresh(why: str) -> ModelError:
    problem = f"The model cannot be trained from scratch: {why}."
    remedy = "Let the factory make the network with weights that torch draws, without a seed of its own."
    return ModelError("VU-M110", problem, remedy, where="model.ref")


def _no_axis(problem: str, remedy: str) -> ModelError:
    return ModelError("VU-M098", problem, remedy, where="model.axis")


def _wrong_logits(what: str) -> ModelError:
    remedy = "The factory must return a module that maps (B, channels, size, size) to logits (B, classes)."
    remedy += " Look at model.classes, model.size and model.channels."
    return ModelError("VU-M096", f"The network {what}.", remedy, where="model.classes")
