"""The teacher's answers, computed once and reused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import attrs
import torch
from torch import Tensor

from vu_core import Batch, Examples, ForgetRetain, Run, torch_dtype
from vu_core.training import calls_per_step, process_group, total_steps

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


@attrs.frozen
class TeacherBank:
    """Answers of the frozen teacher that never go stale; only the variety of noise and timesteps is limited.

    A fresh teacher answers ``steps * batch`` questions per side, a bank ``draws`` (and up to a batch more, see below),
    for the sides that the weighting uses.

    The student of an untouched adapter must give the stored answers, so that the first retain gradient is zero: a
    weighting that normalises gradients would blow the rounding noise of another kernel up to full size. So the teacher
    is asked as the student will be: the same sides in one pass, in the same order, in portions of the same size (the
    last one is filled up with the first draws, and what is too many is dropped), in the same precision. Within a
    portion training draws the rows in another order, and the last portion of a step is smaller where ``batch_size``
    times ``accumulation`` exceeds ``draws`` and ``batch_size`` does not divide it: there, and under another number of
    threads, equality rests on the kernels, which may round a row differently.

    Args:
        teacher: the objective.
        draws: rows per side, at least 1.
        apart: the objective asks one side at a time even when it is handed both.
    """

    teacher: Teacher
    draws: int
    apart: bool = False

    def fill(self, data: ForgetRetain, run: Run) -> tuple[ForgetRetain, Run]:
        """Replace the train tables of the sides in use by ``draws`` rows: noisy latents, timestep and answer.

        Rows of the original table are used in turn, each pass in another order. The number of steps stays what the
        original tables would give.

        Args:
            data: as handed to the method.
            run: as handed to the method.

        Returns:
            The data with the tables replaced, and the run with the number of steps spelled out.
        """
        training = run.training
        if training is None:
            raise RuntimeError("a method with a teacher bank needs run.training")
        steps = total_steps(data, run)
        calls = calls_per_step(data, run)
        groups = [(side,) for call in calls for side in call] if self.apart else calls
        tables: dict[str, Examples] = {"forget": data.forget, "retain": data.retain}
        rows = {side: _rows(tables[side], run, self.draws) for group in groups for side in group}
        chunks: dict[str, list[Question]] = {side: [] for side in rows}
        size = min(training.batch_size, self.draws)
        for first in range(0, self.draws, size):
            places = tuple(place % self.draws for place in range(first, first + size))
            wanted = min(size, self.draws - first)
            for group in groups:
                batches = {side: _batch(tables[side], rows[side], places, run) for side in group}
                for side, answered in self._answered(batches, run, wanted).items():
                    chunks[side].append(answered)
            if process_group(torch.device(run.device)).first:
                run.progress("teacher bank", first + wanted, self.draws)
        banks = {side: _bank(tables[side], answered) for side, answered in chunks.items()}
        spelled = attrs.evolve(training, steps=steps, epochs=None)
        return attrs.evolve(data, **banks), attrs.evolve(run, training=spelled)

    def _answered(self, batches: Mapping[str, Batch], run: Run, wanted: int) -> dict[str, Question]:
        """Ask and answer as `fit` computes, and keep the first ``wanted`` rows."""
        with _as_in_training(run):
            questions = {side: self.teacher.ask(batch) for side, batch in batches.items()}
            answers = self.teacher.teach(questions)
        return {side: _first(question, answers[side], wanted) for side, question in questions.items()}


def _first(question: Question, answer: Tensor, wanted: int) -> Question:
    return attrs.evolve(
        question,
        noisy=question.noisy[:wanted],
        timesteps=question.timesteps[:wanted],
        captions=question.captions[:wanted],
        overwrites=question.overwrites[:wanted],
        answer=answer[:wanted],
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


def _bank(examples: Examples, chunks: Sequence[Question]) -> Examples:
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
