"""What the model of before answers to fixed images, computed once and looked up by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import attrs
import torch
from torch import Tensor

from vu_core import Batch, Classifier, Examples, Run, Theta

TEACHERS = (
    "who taught the retain examples. pretrained: the model of the files; task-start: with the edits that it carries "
    "before the run"
)
"""Help of the field ``teacher``."""

CHUNK = 256
"""Images that a teacher sees at once."""

Question = Callable[[Batch], Tensor]
"""Returns what is asked of the network about the rows, ``(B, ...)``."""


@attrs.frozen(eq=False)
class Teacher:
    """The answers of the untouched network, one row per example.

    For a table whose images change at every step (``reload``) nothing can be kept, and the network is asked each time.

    Args:
        name: of the column.
        ask: the question.
        run: the run.
        who: ``pretrained``: the model of the files; ``task-start``: with the edits that it carries before the run.
    """

    name: str
    ask: Question
    run: Run
    who: str

    @classmethod
    def of_logits(cls, model: Classifier, run: Run, who: str) -> Teacher:
        """Return one that is asked for logits, ``(B, K)``."""
        return cls("teacher_logits", lambda batch: model.logits(model.images(batch)).float(), run, who)

    def taught(self, examples: Examples) -> Examples:
        """Return the table with the column of answers; call it while nothing is attached."""
        if examples.reload or not len(examples):
            return examples
        with torch.no_grad(), self._model():
            answers = [self.ask(batch) for batch in portions(examples, self.run)]
        return examples.with_tensors(**{self.name: torch.cat(answers).cpu()})

    def __call__(self, batch: Batch, theta: Theta) -> Tensor:
        """Return the answers about the rows, without gradient, ``(B, ...)``."""
        if self.name in batch:
            return batch[self.name]
        with theta.base(), torch.no_grad(), self._model():
            return self.ask(batch)

    def _model(self) -> AbstractContextManager[None]:
        return self.run.pretrained() if self.who == "pretrained" else nullcontext()


def portions(examples: Examples, run: Run, size: int = CHUNK) -> Iterator[Batch]:
    """Yield all rows of a table in order, ``size`` at a time."""
    for first in range(0, len(examples), size):
        rows = tuple(range(first, min(first + size, len(examples))))
        yield Batch(examples, rows, 0, rows, run, torch.device(run.device))
