"""What is forgotten, what is kept, and how a method is handed both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from vu_core.score import Scorecard

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

Side = Literal["forget", "retain"]
Split = Literal["train", "validation", "held-out"]


@attrs.frozen
class Concept:
    """One thing to forget, as the data plugin understood it.

    Args:
        text: what the user wrote, such as ``style:neon``.
        labels: value per axis, such as ``{"style": "neon"}``; a pair has two entries.
        overwrite: the concept that takes its place, as text, such as ``style:flat``.
        overwrite_labels: the same per axis.
    """

    text: str
    labels: Mapping[str, str]
    overwrite: str | None = None
    overwrite_labels: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Selection:
    """What ``parse(forget, overwrite)`` of a data plugin made of the two flags.

    Args:
        concepts: everything to forget, in the order given; one edit removes all of them.
        notes: sentences for the user, such as which overwrite was supplied when none was named.
    """

    concepts: tuple[Concept, ...]
    notes: tuple[str, ...] = ()


@attrs.frozen
class Manifest:
    """What data a run used, without holding it.

    Args:
        name: the data plugin; ref: the folder, file or version it reads (empty for generated data).
        digest: hash of the content that the run can see (names, captions, bytes or generator version).
        counts: number of examples per split and side, such as ``{"train/forget": 10}``.
        split: how train, validation and held-out were separated, in words.
        axes: what may be named after ``axis:`` and the values of each axis.
    """

    name: str
    ref: str
    digest: str
    counts: Mapping[str, int]
    split: str
    axes: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)


class Draws(Protocol):
    """Random numbers of one example at one step; see `Batch.normal`."""

    def generator(self, name: str, *keys: object) -> torch.Generator:
        """Return a generator seeded by the name and the keys."""
        ...


@attrs.frozen(eq=False)
class Examples:
    """The examples of one side and one split: an immutable table with one row per example.

    Args:
        side: ``forget`` or ``retain``.
        captions: one caption per row (empty strings where the data has none).
        overwrites: caption of the concept that takes the place, per row; ``None`` for retain.
        labels: per axis one value per row.
        load: returns the pixels of a row as float32 ``(3, H, W)`` in [-1, 1]; crop and flip draw from the generator.
        tensors: columns with one row per example, such as encoded latents or class indices.
        reload: the pixels change at every step (``crop = random_per_step``), so nothing may be encoded beforehand.
    """

    side: Side
    captions: tuple[str, ...]
    overwrites: tuple[str, ...] | None = None
    labels: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    load: Callable[[int, torch.Generator], Tensor] | None = None
    tensors: Mapping[str, Tensor] = attrs.field(factory=dict)
    reload: bool = False

    def __len__(self) -> int:
        return len(self.captions)

    def with_tensors(self, **tensors: Tensor) -> Examples:
        """Return the same rows with further columns; each needs one row per example."""
        for name, column in tensors.items():
            if len(column) != len(self):
                raise ValueError(f"column {name!r} has {len(column)} rows, but there are {len(self)} examples")
        return attrs.evolve(self, tensors={**self.tensors, **tensors})

    def take(self, rows: Sequence[int]) -> Examples:
        """Return the table of these rows, in this order; pixels are drawn as for the row of the new table.

        Args:
            rows: indices into the table.
        """
        chosen, load = tuple(rows), self.load

        def loaded(row: int, generator: torch.Generator) -> Tensor:
            if load is None:
                raise TypeError("a table without pixels has none to load")
            return load(chosen[row], generator)

        return attrs.evolve(
            self,
            captions=tuple(self.captions[row] for row in chosen),
            overwrites=None if self.overwrites is None else tuple(self.overwrites[row] for row in chosen),
            labels={axis: tuple(values[row] for row in chosen) for axis, values in self.labels.items()},
            load=None if load is None else loaded,
            tensors={name: column[list(chosen)] for name, column in self.tensors.items()},
        )


@attrs.frozen(eq=False)
class ForgetRetain:
    """What a method is handed: train and validation examples of both sides, never held-out ones.

    ``retain`` may be empty for methods that only forget.
    """

    forget: Examples
    retain: Examples
    validation_forget: Examples
    validation_retain: Examples

    def map(self, change: Callable[[Examples], Examples]) -> ForgetRetain:
        """Return the same data with ``change`` applied to every table."""
        return ForgetRetain(
            change(self.forget), change(self.retain), change(self.validation_forget), change(self.validation_retain)
        )


@attrs.frozen(eq=False)
class Batch:
    """Rows of one side at one optimiser step, with their own random numbers.

    Every draw belongs to one example: it is seeded by (run seed, name, side, step, position in the global batch), so
    that neither accumulation, nor the number of processes, nor a resume changes it.

    Args:
        examples: the table the rows come from.
        rows: indices into it, ``(B,)``.
        step: optimiser step, from 0.
        positions: place of each row in the global batch, ``(B,)``.
        draws: source of generators (the run).
        device: where tensors are handed out.
        passes: per row, how often the table had been gone through before; empty outside of training.
    """

    examples: Examples
    rows: tuple[int, ...]
    step: int
    positions: tuple[int, ...]
    draws: Draws
    device: torch.device
    passes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def side(self) -> Side:
        """``forget`` or ``retain``."""
        return self.examples.side

    @property
    def captions(self) -> tuple[str, ...]:
        """Captions of the rows."""
        return tuple(self.examples.captions[row] for row in self.rows)

    @property
    def overwrites(self) -> tuple[str, ...]:
        """Captions of the concept that takes the place; the rows' own captions where there is none."""
        source = self.examples.captions if self.examples.overwrites is None else self.examples.overwrites
        return tuple(source[row] for row in self.rows)

    def __getitem__(self, column: str) -> Tensor:
        """Return a column of the rows, ``(B, ...)``, on the device of the run."""
        return self.examples.tensors[column][list(self.rows)].to(self.device)

    def __contains__(self, column: str) -> bool:
        return column in self.examples.tensors

    def generators(self, name: str) -> Iterator[torch.Generator]:
        """Yield one CPU generator per row for the draws called ``name``."""
        for position in self.positions:
            yield self.draws.generator(name, self.side, self.step, position)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Draw standard normal numbers, one independent block of ``shape`` per row; returns ``(B, *shape)``."""
        import torch

        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators(name)]).to(self.device)

    def integers(self, name: str, low: int, high: int) -> Tensor:
        """Draw one integer per row from ``low .. high - 1``, uniformly; returns ``(B,)`` int64."""
        import torch

        return torch.cat([torch.randint(low, high, (1,), generator=g) for g in self.generators(name)]).to(self.device)


@attrs.frozen
class EvaluationItem:
    """One thing to generate or classify and what is right about it.

    Args:
        prompt: what the model is asked (text-to-image), or the name of the example.
        seed: seed of the starting noise; 0 where nothing is drawn.
        labels: right value per axis, such as ``{"object": "star", "style": "neon"}``.
        forget: the item shows a concept to forget.
    """

    prompt: str
    seed: int
    labels: Mapping[str, str]
    forget: bool


class Judge(Protocol):
    """Names what is on an image; comes with the data, was never trained on generated images."""

    fingerprint: str

    def classify(self, images: np.ndarray[Any, Any]) -> Mapping[str, Sequence[str]]:
        """Return per axis one value per image; ``images`` is uint8 ``(N, H, W, 3)``."""
        ...


@attrs.frozen(eq=False)
class Evaluation:
    """The part of the data that only ``measure`` may see.

    Args:
        split: ``validation`` or ``held-out``.
        items: what is generated or classified, forget and retain, in a fixed order.
        axes: values per axis; the axis of a concept decides what is "the same domain" (IRA) and "the other" (CRA).
        judge: names what is on an image; ``None`` when the data has no judge.
        examples: unseen images of both sides, for scores that need real images.
        samples: items whose images go into the report, forget first.
        concepts: what was forgotten; a metric that needs no more than "forget" or "retain" reads
            `EvaluationItem.forget`.
        generation: ``steps`` and ``guidance`` of every image; filled in by the stage, from ``[measure]`` or the
            model.
        train: what the run trained on, forget and retain, without augmentation; for metrics that say
            ``uses_train = True``, filled in by the stage.
        groups: further unseen examples by name, none of them in ``examples``: ``old``, what earlier tasks of a
            sequence forgot. Those called ``missing`` are also among the retain ones: retained without training data.
        reference: scores of the run that ``measure.reference`` names; filled in by the stage.
    """

    split: Split
    items: tuple[EvaluationItem, ...]
    axes: Mapping[str, tuple[str, ...]]
    judge: Judge | None = None
    examples: tuple[Examples, Examples] | None = None
    samples: tuple[EvaluationItem, ...] = ()
    concepts: tuple[Concept, ...] = ()
    generation: Mapping[str, float] = attrs.field(factory=dict)
    train: tuple[Examples, Examples] | None = None
    groups: Mapping[str, Examples] = attrs.field(factory=dict)
    reference: Scorecard | None = None


def digest(*parts: str | bytes) -> str:
    """Return the hex SHA-256 of the parts, each preceded by its length, so that no two lists collide.

    Example:
        >>> digest("ab", "c") != digest("a", "bc")
        True
    """
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little") + raw)
    return state.hexdigest()
