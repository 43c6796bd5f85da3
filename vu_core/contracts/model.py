"""What a model plugin provides: facts without weights, then a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import attrs

from vu_core.data import Batch, Examples
from vu_core.plan import ModelFacts
from vu_core.source import Source

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


class ModelPlugin(Protocol[ConfigT]):
    """The class behind a model name: finds a model, tells its facts, loads it.

    Everything but `load` is torch-free. Where a ref is neither a path nor a hub id, such as ``module:factory``, a
    classmethod ``settle(ref) -> str`` makes the path in it absolute, so that it holds in every folder.
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]

    def __init__(self, ref: str, config: ConfigT) -> None:
        """Take the folder, hub id or factory (empty for a model that ships with its plugin)."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is a model of this kind, from file names alone."""
        ...

    def inspect(self) -> ModelFacts:
        """Return what the files tell. Raises: ModelError when the model is missing or incomplete."""
        ...

    def load(self, *, device: str, precision: str) -> Model:
        """Read the weights. ``precision``: fp32, bf16 or fp16. Raises: ModelError."""
        ...


@runtime_checkable
class Model(Protocol):
    """A loaded model.

    ``network`` holds every component as a named child (``unet``, ``text_encoder``, ``classifier``). A model whose
    answers depend on more than its tensors and settings, such as code of the user's, has an attribute ``fingerprint:
    str`` that changes with it: what it answered is kept for no other one.
    """

    facts: ModelFacts
    network: nn.Module

    def prepare(self, examples: Examples, run: Run) -> Examples:
        """Return the table with everything encoded that need not be encoded at every step."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """Capability ``denoise``: what the objectives of diffusion models are written in."""

    facts: ModelFacts
    network: nn.Module
    denoiser: str
    """Name of the component that predicts, such as ``unet``; the default place of adapters."""
    timesteps: int
    """T, the number of training timesteps."""

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Return tau(c), the text embeddings ``(B, L, D)``; each caption once while the text encoder is frozen."""
        ...

    def latents(self, batch: Batch) -> Tensor:
        """Return z = s * sample(E(x)), ``(B, C, h, w)``; the posterior sample is drawn from the batch."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return z_t, ``(B, C, h, w)``."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        """Return the prediction of the denoiser, ``(B, C, h, w)``."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser was trained to predict: the noise, or the velocity, ``(B, C, h, w)``."""
        ...


@runtime_checkable
class TextToImage(Protocol):
    """Capability ``generate``."""

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
    ) -> np.ndarray[Any, Any]:
        """Return uint8 ``(N, H, W, 3)``; image i starts from CPU noise of ``seeds[i]``, whatever the batch."""
        ...


@runtime_checkable
class Tokens(Protocol):
    """Capability ``tokens``: which row of a text embedding belongs to which token."""

    def tokens(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the token ids of each caption as the text encoder reads them.

        Start and end token included, padding left out, cut to the L rows of `Denoiser.embed`: token ``i`` is row ``i``
        of the embedding, and the rows behind the last token are padding.
        """
        ...


@runtime_checkable
class Trajectory(Protocol):
    """Capability ``trajectory``: latents on the way from noise to an image."""

    latent_shape: tuple[int, int, int]
    """``(C, h, w)`` at the native resolution."""

    def sampling_timesteps(self, steps: int) -> tuple[int, ...]:
        """Return the training timesteps that ``steps`` sampling steps pass through, the noisiest first."""
        ...

    def denoise_partly(
        self, captions: Sequence[str], noise: Tensor, *, steps: int, done: Sequence[int], guidance: float
    ) -> Tensor:
        """Return latents after the first ``done[i]`` of ``steps`` sampling steps, ``(B, C, h, w)``, without gradient.

        Row i starts from ``noise[i]``, standard normal ``(B, C, h, w)``, and is guided towards ``captions[i]`` with
        scale w: ``u + w (c - u)``; what belongs to row i does not depend on the other rows. ``done[i] = 0`` is the
        noise itself; ``sampling_timesteps(steps)[done[i]]`` is the timestep it stands at. Latents are scaled as the
        denoiser reads them at that timestep, whatever the sampler computes in.
        """
        ...


@runtime_checkable
class Classifier(Protocol):
    """Capability ``classify``."""

    facts: ModelFacts
    network: nn.Module
    classes: tuple[str, ...]
    """Names of the K classes in the order of the logits."""

    def images(self, batch: Batch) -> Tensor:
        """Return the images of the rows, ``(B, 3, H, W)`` float32 in [-1, 1]."""
        ...

    def labels(self, batch: Batch) -> Tensor:
        """Return the class of each row, int64 ``(B,)`` in 0 .. K - 1."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Return logits ``(B, K)`` of such images, float32; what the network wants to see instead is computed here."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Return what goes into the head, ``(B, D)``."""
        ...


@attrs.frozen
class TransformerBlock:
    """One block of a transformer and the weights in it, by their names in ``model.network``.

    Args:
        name: of the module.
        ffn: the two weights of the feed-forward network, ``(m, d)`` then ``(d, m)``.
        attention: weights of the attention.
    """

    name: str
    ffn: tuple[str, str]
    attention: tuple[str, ...] = ()


@runtime_checkable
class Blocks(Protocol):
    """Capability ``blocks``."""

    def blocks(self) -> tuple[TransformerBlock, ...]:
        """Return the blocks from the input to the output."""
        ...


@runtime_checkable
class Fresh(Protocol):
    """Capability ``fresh``: what a network is before any training, for methods that train it anew."""

    def fresh(self, seed: int) -> Mapping[str, Tensor]:
        """Return newly initialised parameters and buffers by their names in ``network``, drawn from ``seed`` alone."""
        ...


@runtime_checkable
class Headed(Protocol):
    """A classifier that says where its head is."""

    head: str
    """Name of the module in ``network`` whose input are the features, such as ``classifier.fc``."""


def torch_dtype(precision: str) -> torch.dtype:
    """Return the torch dtype of ``fp32``, ``bf16`` or ``fp16``."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
