"""How fast what was forgotten comes back when the model is trained on a few images of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import numpy as np

from vu_core import (
    Batch,
    Classifier,
    Evaluation,
    Examples,
    Fresh,
    Model,
    ModelError,
    Observations,
    Run,
    Score,
    Source,
    Status,
    digest,
    setting,
)
from vu_metrics.answers import Questions, as_json, ask, classifier, neutral, outcomes
from vu_metrics.intervals import Outcomes
from vu_metrics.shares import share_score

if TYPE_CHECKING:
    from torch import Tensor, nn


def _ascending(value: Any) -> str | None:
    steps = tuple(value)
    if len(steps) > 1 and steps[0] == 0 and all(a < b for a, b in pairwise(steps)):
        return None
    return "must begin with 0 and rise"


@attrs.frozen
class RelearnTimeConfig:
    """Settings of `RelearnTime`."""

    images: int = setting(20, help="forget images that are trained on, drawn once; all where there are fewer", ge=1)
    steps: tuple[int, ...] = setting(
        (0, 10, 20, 50, 100, 200), help="optimiser steps after which unseen forget images are asked", check=_ascending
    )
    lr: float = setting(3e-4, help="learning rate of AdamW, constant, without weight decay", gt=0)
    control: bool = setting(True, help="relearn from new weights too, where the model knows how to begin anew")
    batch_size: int = setting(256, help="images classified at a time", ge=1, speed_only=True)


class RelearnTime:
    """Fine-tune the edited model on a few forget images: how many steps bring back what was forgotten?

    All parameters are trained, on the same ``images`` at every step. After each of the ``steps`` s the accuracy a(s) on
    unseen forget images is taken.

    ====================  ==========================================================================
    relearn_auc           area under a(s) by the trapezoid rule, over the last s: 0 = nothing comes
                          back, 1 = nothing was gone
    relearn_steps_to_50   the first of the steps with a(s) >= 50 %; the last one where there is none
    relearned_accuracy    a at the last step, and ``relearned_accuracy[step S]`` before
    relearn_auc_control   the same area from new weights that never learnt anything, for a model that
                          knows how to begin anew: what k images teach by themselves
    ====================  ==========================================================================

    *Before* is the untouched model, trained just so. The model is left as it was, bit by bit.

    Intervals, 95 %: Wilson and Newcombe's method 10 for accuracies; none for the area and the steps.

    Source: Golatkar et al. 2020, arXiv 1911.04933.
    """

    Config: ClassVar[type[RelearnTimeConfig]] = RelearnTimeConfig
    source: ClassVar[Source] = Source(
        "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks, Golatkar et al. 2020",
        "https://arxiv.org/abs/1911.04933",
        "own",
    )
    version: ClassVar[str] = "1"
    uses_train: ClassVar[bool] = True

    def __init__(self, config: RelearnTimeConfig) -> None:
        self.config = config
        self._questions = Questions("relearn-time", "forget", "unseen_forget")

    def fingerprint(self, evaluation: Evaluation) -> str:
        """Return a hash of the version, the settings, and the images and labels of both tables."""
        chosen = self.config
        settings = f"{chosen.images} {chosen.steps} {chosen.lr}"
        return digest("relearn-time", self.version, settings, self._questions.content(evaluation))

    def observe(self, model: Model, evaluation: Evaluation, run: Run) -> Observations:
        """Return after each number of steps whether each unseen forget image is classified right.

        Raises:
            MeasureError: the model is no classifier, a table is missing or a logit is not finite.
        """
        asked = classifier(model, "relearn-time")
        self._questions.require(evaluation, "forget", "unseen_forget")
        tables = self._questions.prepared(model, evaluation, neutral(run))
        found: dict[str, Any] = {"curve": self._curve(asked, tables, run, {})}
        if self.config.control and run.edit is None and isinstance(model, Fresh):
            try:
                start = model.fresh(0)
            except ModelError as error:  # models of its kind can begin anew, this one cannot
                run.emit("note", text=f"Nothing is relearned from new weights. {error.problem}")
            else:
                found["control"] = self._curve(asked, tables, run, start)
        return found

    def scores(self, before: Observations, after: Observations, evaluation: Evaluation) -> tuple[Score, ...]:
        """Return the scores of the table above. Raises: MeasureError on observations of other images."""
        tables = self._questions.require(evaluation, "forget", "unseen_forget")
        table, steps, fingerprint = tables["unseen_forget"], self.config.steps, self.fingerprint(evaluation)

        def read(observed: Observations, curve: str) -> list[Outcomes]:
            return [outcomes(observed[curve], str(step), table, "relearn-time") for step in steps]

        was, now = read(before, "curve"), read(after, "curve")

        def number(name: str, old: float | None, new: float, unit: str, way: Any, help: str) -> Score:
            return Score(
                name=name,
                before=old,
                after=new,
                unit=unit,
                direction=way,
                n=len(table),
                fingerprint=fingerprint,
                help=help,
            )

        old, new = area(steps, was), area(steps, now)
        found = [
            number("relearn_auc", old, new, "fraction", "down", "how much comes back, averaged over the steps"),
            number(
                "relearn_steps_to_50",
                float(steps_to_half(steps, was)),
                float(steps_to_half(steps, now)),
                "steps",
                "up",
                f"steps until half of it is back; {steps[-1]} also where it never is",
            ),
        ]
        for step, one, other in zip(steps, was, now, strict=True):
            name = "relearned_accuracy" if step == steps[-1] else f"relearned_accuracy[step {step}]"
            words = f"accuracy on unseen forget images after {step} steps"
            found.append(share_score(name, one, other, fingerprint, words, "down"))
        if "control" in before:
            words = "the same area from new weights: what the images teach by themselves"
            control = area(steps, read(before, "control"))
            found.append(number("relearn_auc_control", control, control, "fraction", "none", words))
        return tuple(found)

    def doubts(self, scores: Sequence[Score]) -> Sequence[tuple[Status, str]]:
        """Return nothing: a class that was never seen can be learnt too."""
        return ()

    def _curve(
        self, model: Classifier, tables: Mapping[str, Examples], run: Run, start: Mapping[str, Tensor]
    ) -> dict[str, list[int]]:
        """Train on a few forget images; return whether unseen ones are classified right, by number of steps."""
        import torch

        rows = chosen_rows(len(tables["forget"]), self.config.images)
        batch = Batch(tables["forget"], rows, 0, rows, neutral(run), torch.device(run.device))
        with torch.no_grad():
            images, labels = model.images(batch), model.labels(batch)
        found: dict[str, list[int]] = {}
        with borrowed(model.network, start) as parameters:
            optimizer = torch.optim.AdamW(parameters, lr=self.config.lr, weight_decay=0.0)
            for step in range(self.config.steps[-1] + 1):
                if step in self.config.steps:
                    size = self.config.batch_size
                    answers = ask(model, tables["unseen_forget"], run, batch_size=size, metric="relearn-time")
                    found[str(step)] = as_json(answers.right)
                if step == self.config.steps[-1]:
                    break
                with torch.enable_grad():
                    optimizer.zero_grad()
                    loss = torch.nn.functional.cross_entropy(model.logits(images), labels)
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                run.progress("relearn-time: steps", step + 1, self.config.steps[-1])
        return found


@contextmanager
def borrowed(network: nn.Module, start: Mapping[str, Tensor]) -> Iterator[list[Tensor]]:
    """Let all parameters of a network be trained while entered; afterwards it is bit-identical to before.

    Args:
        network: of the model.
        start: values to begin with by tensor name, parameters or buffers; the others begin as they are.

    Yields:
        The parameters.
    """
    import torch

    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    kept = {name: (tensor.data, tensor.requires_grad) for name, tensor in tensors.items()}
    parameters: list[Tensor] = [each for each in network.parameters() if each.is_floating_point()]
    try:
        for name, tensor in tensors.items():
            tensor.data = start[name].to(tensor, copy=True) if name in start else tensor.data.clone()
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.data, wanted = kept[name]
                tensor.requires_grad_(wanted)
                tensor.grad = None


def chosen_rows(available: int, wanted: int) -> tuple[int, ...]:
    """Return the rows of the images that are trained on: drawn once, the same in every run.

    Example:
        >>> chosen_rows(2, 20)
        (0, 1)
    """
    drawn = np.random.default_rng(0).choice(available, min(available, wanted), replace=False)
    return tuple(sorted(int(row) for row in drawn))


def area(steps: Sequence[int], curve: Sequence[Outcomes]) -> float:
    """Return the area under the accuracy by the trapezoid rule, over the last step.

    Args:
        steps: ascending, from 0.
        curve: outcomes after each of them.

    Example:
        >>> shares = [[0, 0], [0, 1], [1, 1]]
        >>> area((0, 10, 20), [np.array(share, dtype=bool) for share in shares])
        0.5
    """
    return normalised_area(steps, [float(outcome.mean()) for outcome in curve])


def normalised_area(steps: Sequence[int], values: Sequence[float]) -> float:
    """Return the area under values by the trapezoid rule, over the last step.

    Example:
        >>> round(normalised_area((0, 10, 20, 50), (0, 0.5, 0.9, 1)), 4)
        0.76
    """
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def steps_to_half(steps: Sequence[int], curve: Sequence[Outcomes]) -> int:
    """Return the first number of steps with an accuracy of at least 50 %, the last one where there is none.

    Example:
        >>> steps_to_half((0, 10), [np.array([False, False]), np.array([True, False])])
        10
    """
    return next((step for step, outcome in zip(steps, curve, strict=True) if outcome.mean() >= 0.5), steps[-1])
