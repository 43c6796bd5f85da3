"""What a classifier answers to the tables of a measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
from numpy.typing import NDArray

from vu_core import Batch, Classifier, Evaluation, Examples, MeasureError, Model, Observations, Run, digest
from vu_metrics.denoising_gap import content
from vu_metrics.intervals import Outcomes

if TYPE_CHECKING:
    from torch import Tensor

Labels = NDArray[np.int64]
Logits = NDArray[np.float64]


@attrs.frozen(eq=False)
class Answers:
    """Logits ``(N, K)`` and the right classes ``(N,)`` of a table."""

    logits: Logits
    labels: Labels

    @property
    def right(self) -> Outcomes:
        """Whether the largest logit is that of the class, per image."""
        return np.asarray(self.logits.argmax(axis=1) == self.labels)


def tables_of(evaluation: Evaluation) -> dict[str, Examples]:
    """Return every table of a measurement by name; without those that are empty.

    ``forget`` and ``retain`` are what the run trained on, ``unseen_forget`` and ``unseen_retain`` what no method has
    seen; then the groups, such as ``old`` and ``missing``.
    """
    train = dict(zip(("forget", "retain"), evaluation.train or (), strict=False))
    unseen = dict(zip(("unseen_forget", "unseen_retain"), evaluation.examples or (), strict=False))
    return {name: table for name, table in {**train, **unseen, **evaluation.groups}.items() if len(table)}


class Questions:
    """The tables of one measurement, prepared and hashed once, however often a run asks.

    Args:
        metric: its name, for messages.
        *names: of the tables that it asks about, those of `tables_of`.
    """

    def __init__(self, metric: str, *names: str) -> None:
        self.metric = metric
        self.names = names
        self._hashed: tuple[Mapping[str, Examples], str] | None = None
        self._prepared: tuple[Mapping[str, Examples], Model, Mapping[str, Examples]] | None = None

    def asked(self, evaluation: Evaluation) -> dict[str, Examples]:
        """Return the tables that are there, by name."""
        known = tables_of(evaluation)
        return {name: known[name] for name in self.names if name in known}

    def content(self, evaluation: Evaluation) -> str:
        """Return a hash of the images and labels of every table."""
        tables = self.asked(evaluation)
        if self._hashed is None or not same(self._hashed[0], tables):
            parts: list[str | bytes] = []
            for name, table in tables.items():
                parts += [name, json.dumps(dict(table.labels), sort_keys=True), *pixels_of(table)]
            self._hashed = (tables, digest(*parts))
        return self._hashed[1]

    def prepared(self, model: Model, evaluation: Evaluation, draws: Run) -> Mapping[str, Examples]:
        """Return the tables after ``model.prepare``."""
        tables, known = self.asked(evaluation), self._prepared
        if known is None or known[1] is not model or not same(known[0], tables):
            ready = {name: model.prepare(table, draws) for name, table in tables.items()}
            self._prepared = known = (tables, model, ready)
        return known[2]

    def require(self, evaluation: Evaluation, *names: str) -> dict[str, Examples]:
        """Return the tables if those named are there.

        Raises:
            MeasureError: training images are missing (``VU-S111``), or unseen ones (``VU-S091``).
        """
        tables = self.asked(evaluation)
        for name in names:
            if name in tables:
                continue
            if name in ("forget", "retain"):
                raise MeasureError(
                    "VU-S111",
                    f"The metric {self.metric!r} looks at the {name} images that the run trained on, and there are "
                    "none.",
                    f"Use data with {name} images, or leave {self.metric!r} out of measure.metrics.",
                    where="measure.metrics",
                )
            raise MeasureError(
                "VU-S091",
                f"The metric {self.metric!r} needs {name.replace('_', ' ')} images, and this data has none in its "
                f"{evaluation.split} part.",
                f"Give the data more images, so that some can be held out, or leave {self.metric!r} out of "
                "measure.metrics.",
                where="measure.metrics",
            )
        return tables


def same(one: Mapping[str, Examples], other: Mapping[str, Examples]) -> bool:
    """Tell whether these are the very same tables."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def pixels_of(table: Examples) -> list[bytes]:
    """Return the bytes of the images: of the column ``pixels`` where they are in memory, else of each image."""
    if "pixels" in table.tensors:
        return [table.tensors["pixels"].cpu().contiguous().numpy().tobytes()]
    return [content(table, row) for row in range(len(table))]


def classifier(model: Any, metric: str) -> Classifier:
    """Return the model if it is a classifier. Raises: MeasureError (``VU-S090``)."""
    if isinstance(model, Classifier):
        return model
    raise MeasureError(
        "VU-S090",
        f"The metric {metric!r} needs a classifier; {model.facts.name!r} is none.",
        "Choose another metric or another model.",
        where="measure.metrics",
    )


def neutral(run: Run) -> Run:
    """Return the run with draws that do not depend on its seed, so that runs can be compared."""
    return attrs.evolve(run, seed=0)


def ask(model: Classifier, examples: Examples, run: Run, *, batch_size: int, metric: str) -> Answers:
    """Classify every image of a table once.

    Args:
        model: the classifier.
        examples: a prepared table of N images.
        run: where it computes.
        batch_size: images at a time; changes speed only.
        metric: its name, for messages.

    Raises:
        MeasureError: a logit is not finite (``VU-S096``).
    """
    import torch

    logits, labels = [], []
    draws, device, total = neutral(run), torch.device(run.device), len(examples)
    for first in range(0, total, batch_size):
        rows = tuple(range(first, min(first + batch_size, total)))
        batch = Batch(examples, rows, 0, rows, draws, device)
        with torch.no_grad():
            logits.append(finite(model.logits(model.images(batch)), examples, metric).cpu())  # (B, K)
        labels.append(model.labels(batch).cpu())
        run.progress(f"{metric}: {examples.side} images", rows[-1] + 1, total)
    return Answers(torch.cat(logits).double().numpy(), torch.cat(labels).numpy())


def ask_all(
    model: Classifier, tables: Mapping[str, Examples], run: Run, *, batch_size: int, metric: str
) -> dict[str, Answers]:
    """Return what `ask` returns, per table."""
    return {name: ask(model, table, run, batch_size=batch_size, metric=metric) for name, table in tables.items()}


def embed(model: Classifier, examples: Examples, run: Run, *, batch_size: int, metric: str) -> tuple[Tensor, Tensor]:
    """Return what goes into the head for every image of a table, ``(N, D)``, and the right classes, ``(N,)``.

    Raises:
        MeasureError: a feature is not finite (``VU-S096``).
    """
    import torch

    found, labels = [], []
    draws, device, total = neutral(run), torch.device(run.device), len(examples)
    for first in range(0, total, batch_size):
        rows = tuple(range(first, min(first + batch_size, total)))
        batch = Batch(examples, rows, 0, rows, draws, device)
        with torch.no_grad():
            found.append(finite(model.features(model.images(batch)), examples, metric))  # (B, D)
        labels.append(model.labels(batch))
        run.progress(f"{metric}: {examples.side} images", rows[-1] + 1, total)
    return torch.cat(found), torch.cat(labels)


def finite(numbers: Tensor, examples: Examples, metric: str) -> Tensor:
    """Return the numbers if all are finite. Raises: MeasureError (``VU-S096``)."""
    if bool(numbers.isfinite().all()):
        return numbers
    raise MeasureError(
        "VU-S096",
        f"The classifier gives numbers that are not finite for {examples.side} images.",
        "The edit has destroyed the model: unlearn again with a lower learning rate.",
        where=metric,
    )


def outcomes(observed: Observations, name: str, table: Examples, metric: str) -> Outcomes:
    """Return what was observed of each image of a table, as booleans. Raises: MeasureError on another number."""
    found = observed[name]
    if len(found) != len(table):
        raise MeasureError(
            "VU-S093",
            f"{len(found)} {table.side} images were classified, but there are {len(table)}.",
            "Clear the cache (`vu cache clear`) and measure again; no image may be left out.",
            where=metric,
        )
    return np.asarray(found, dtype=bool)


def as_json(outcomes: Outcomes) -> list[int]:
    """Return booleans as 0 and 1."""
    return cast("list[int]", outcomes.astype(int).tolist())


def shows(labels: Mapping[str, Any], row: int, wanted: Mapping[str, str]) -> bool:
    """Tell whether an example has all these labels."""
    return all(axis in labels and labels[axis][row] == value for axis, value in wanted.items())
