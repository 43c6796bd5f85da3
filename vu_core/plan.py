"""What a run will do and cost, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from vu_core.data import Concept, Manifest, Selection, digest


class Capability(StrEnum):
    """What a model can do; a method or metric registers what it ``needs``."""

    DENOISE = "denoise"
    """Latents, noise schedule, text embeddings and a denoiser: see `vu_core.contracts.Denoiser`."""
    GENERATE = "generate"
    """Images from prompts: see `vu_core.contracts.TextToImage`."""
    CLASSIFY = "classify"
    """Logits and features of images: see `vu_core.contracts.Classifier`."""
    TOKENS = "tokens"
    """Which token of a caption is which row of its embedding: see `vu_core.contracts.Tokens`."""
    TRAJECTORY = "trajectory"
    """Latents on the way from noise to an image: see `vu_core.contracts.Trajectory`."""
    BLOCKS = "blocks"
    """Which weights belong to which transformer block: see `vu_core.contracts.Blocks`."""
    FRESH = "fresh"
    """Tensors as they are before any training: see `vu_core.contracts.Fresh`."""
    JUDGE = "judge"
    """The *data* names what is on an image."""
    UNSEEN = "unseen"
    """The *data* keeps examples of both sides out of training, in the part that ``measure.split`` names."""
    UNSEEN_RETAIN = "unseen-retain"
    """The *data* keeps retain examples out of training there; of a random part that is forgotten none can be."""


@attrs.frozen
class ModelFacts:
    """What is known about a model from its files alone.

    Args:
        name: the model plugin; ref: folder, hub id or factory.
        base_hash: hash over the stored tensors as on disk.
        capabilities: what it can do.
        parameters: number of parameters of the whole model; bytes: size of the tensors as loaded.
        resolution: native image size in pixels.
        prediction: ``epsilon``, ``v_prediction`` or empty.
        forward_gflops: cost of one forward pass of the denoiser or classifier for one image, 10^9 multiply-adds.
        downloads: bytes that must be fetched before the model can be loaded.
        licence: licence of the base model, if its files say so.
        generation: default ``steps`` and ``guidance`` of the model for measuring.
    """

    name: str
    ref: str
    base_hash: str
    capabilities: frozenset[Capability]
    parameters: int
    bytes: int
    resolution: int
    prediction: str = ""
    forward_gflops: float = 1.0
    downloads: int = 0
    licence: str = ""
    generation: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen
class Cost:
    """Estimated cost of a run.

    Args:
        seconds: wall time; memory: peak bytes; disk: bytes written; images: images generated; downloads: bytes
            fetched.
    """

    seconds: float
    memory: int
    disk: int
    images: int
    downloads: int


@attrs.frozen
class Plan:
    """Everything decided before anything heavy starts.

    Args:
        config: the resolved configuration (`vu_core.config.RunConfig`).
        model: facts of the model; manifest: facts of the data; selection: what is forgotten.
        cost: estimate; run_id: 12 hex digits; versions: of all distributions that take part.
        notes: sentences for the user (supplied overwrite, drawn seed, dropped candidates).
        left_out, missing: what the table ``[subset]`` keeps out of training, as the data plugin understood it.
    """

    config: Any
    model: ModelFacts
    manifest: Manifest
    selection: Selection
    cost: Cost
    run_id: str
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    left_out: tuple[Concept, ...] = ()
    missing: tuple[Concept, ...] = ()

    @property
    def model_hash(self) -> str:
        """Hash of the model that the run begins with: of its weights as on disk, and of the edits that it carries."""
        edits = [edit.digest for edit in self.config.edits]
        return digest(self.model.base_hash, *edits) if edits else self.model.base_hash

    @property
    def data_digest(self) -> str:
        """Hash of the examples that the run trains on: of the data, and of the subset that is drawn from it."""
        subset = self.config.subset
        if subset.whole:
            return self.manifest.digest
        return digest(self.manifest.digest, repr(subset), str(self.config.run.seed))
