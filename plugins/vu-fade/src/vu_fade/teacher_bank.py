"""The teacher's answers, computed once and reused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import attrs
import torch
from torch import Tensor

from vu_core import Batch, Examples, ForgetRetain, Run, torch_dtype
from vu_core.training import total_steps

if TYPE_CHECKING:
    from vu_fade.fade import Question


ANSWER = "vu-fade/teacher-bank/answer"
"""Column that marks the table of a bank; no dataset names one so."""


class Teacher(Protocol):
    """What the bank needs of an objective."""

    def ask(self, batch: Batch) -> Question:
        """Draw noise and timesteps for the rows of one side."""
        ...

    def teach(self, questions: Mapping[str, Question]) -> Mapping[str, Tensor]:
        """Answer them with the untouched model, without gradient."""
        ...


def with_teacher_bank(teacher: Teacher, data: ForgetRetain, run: Run, draws: int) -> tuple[ForgetRetain, Run]:
    """Replace both train tables by ``draws`` rows that hold noisy latents, timestep and the teacher's answer.

    The teacher is frozen, so its answers never go stale; only the variety of noise and timesteps is limited to
    ``draws`` per side. A fresh teacher answers ``2 * steps * batch`` questions, a bank ``2 * draws``. Rows of the
    original table are used in turn, each pass in another order. The number of steps stays what the original tables
    would give.

    Args:
        teacher: the objective.
        data: as handed to the method.
        run: as handed to the method.
        draws: rows of the new tables, at least 1.

    Returns:
        The data with both train tables replaced, and the run with the number of steps spelled out.
    """
    training = run.training
    if training is None:
        raise RuntimeError("a method with a teacher bank needs run.training")
    tables: dict[str, Examples] = {table.side: table for table in (data.forget, data.retain) if len(table)}
    rows = {side: _rows(table, run, draws) for side, table in tables.items()}
    chunks: dict[str, list[Question]] = {side: [] for side in tables}
    # Portions as large as those of the training steps, computed as `fit` computes: then an untouched student gives the
    # stored answers bit for bit.
    size = min(training.batch_size, draws)
    for first in range(0, draws, size):
        places = tuple(range(first, min(first + size, draws)))
        with _as_in_training(run):
            questions = {side: teacher.ask(_batch(table, rows[side], places, run)) for side, table in tables.items()}
            answers = teacher.teach(questions)
        for side, question in questions.items():
            chunks[side].append(attrs.evolve(question, answer=answers[side]))
        run.progress("teacher bank", places[-1] + 1, draws)
    steps = total_steps(data, run)
    return (
        attrs.evolve(data, **{side: _bank(table, chunks[side]) for side, table in tables.items()}),
        attrs.evolve(run, training=attrs.evolve(training, steps=steps, epochs=None)),
    )


def _rows(examples: Examples, run: Run, draws: int) -> list[int]:
    """Return the original row of each draw."""
    n = len(examples)
    order: list[int] = []
    for cycle in range(-(-draws // n)):
        order += torch.randperm(n, generator=run.generator("teacher-bank/order", examples.side, cycle)).tolist()
    return order[:draws]


def _batch(examples: Examples, rows: list[int], places: tuple[int, ...], run: Run) -> Batch:
    return Batch(examples, tuple(rows[place] for place in places), 0, places, run, torch.device(run.device))


def _as_in_training(run: Run) -> torch.autocast:
    half = run.precision != "fp32"
    device = torch.device(run.device).type
    return torch.autocast(device, torch_dtype(run.precision), enabled=half, cache_enabled=False)


def _bank(examples: Examples, chunks: list[Question]) -> Examples:
    """Return the answered questions as a table."""
    overwrites = tuple(caption for chunk in chunks for caption in chunk.overwrites)
    return Examples(
        side=examples.side,
        captions=tuple(caption for chunk in chunks for caption in chunk.captions),
        overwrites=None if examples.overwrites is None else overwrites,
        tensors={
            "noisy": torch.cat([chunk.noisy.cpu() for chunk in chunks]),
            "timestep": torch.cat([chunk.timesteps.cpu() for chunk in chunks]),
            ANSWER: torch.cat([chunk.answer.float().cpu() for chunk in chunks if chunk.answer is not None]),
        },
    )
