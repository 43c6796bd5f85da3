"""Which examples a step sees, and in which portions."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

from vu_core.data import Batch, Draws, Examples, ForgetRetain, Side
from vu_core.errors import UnlearnError
from vu_core.run import Run


@attrs.frozen
class PhaseDraws:
    """The random numbers of a named phase, so that two phases of a run do not see the same noise."""

    run: Run
    phase: str

    def generator(self, name: str, *keys: object) -> torch.Generator:
        """Return the generator of the run for these keys and this phase."""
        return self.run.generator(name, *keys, self.phase)


@attrs.frozen
class Portion:
    """A micro-batch of every side and its share of the whole batch.

    Args:
        batches: one batch per side, all of the same length.
        share: length divided by the size of the global batch; the shares of a step add up to 1 over all processes.
    """

    batches: dict[str, Batch]
    share: float


@attrs.define
class Order:
    """Cycle through the examples of each side without replacement.

    Position p of the run belongs to pass ``p // N`` of a side with N examples; every pass has its own permutation,
    drawn from (seed, phase, side, pass). Nothing is remembered between steps, so a resumed run goes on where it
    stopped. Both sides are cut to the smaller one when a batch is larger than it.

    Args:
        sides: examples per side.
        run: source of the permutations and draws; phase: name of the `fit`.
        batch_size: examples per micro-batch and side; portions: micro-batches per step over all processes.
        device: where batches hand out tensors.
    """

    sides: dict[Side, Examples]
    run: Run
    phase: str
    batch_size: int
    portions: int
    device: torch.device
    _passes: dict[tuple[Side, int], list[int]] = attrs.field(factory=dict)

    @property
    def size(self) -> int:
        """Examples per side and step, over all processes."""
        return min(self.batch_size * self.portions, *(len(examples) for examples in self.sides.values()))

    def rows(self, side: Side, step: int) -> list[int]:
        """Return the rows of a side at a step, ``(size,)``."""
        n, first = len(self.sides[side]), step * self.size
        return [self._pass(side, p // n)[p % n] for p in range(first, first + self.size)]

    def _pass(self, side: Side, index: int) -> list[int]:
        if (side, index) not in self._passes:
            for old in [key for key in self._passes if key[0] == side and key[1] < index - 1]:
                del self._passes[old]
            generator = self.run.generator("order", self.phase, side, index)
            self._passes[side, index] = torch.randperm(len(self.sides[side]), generator=generator).tolist()
        return self._passes[side, index]

    def step(self, step: int, process: int = 0, processes: int = 1) -> Iterator[Portion]:
        """Yield the portions of one process at one step: ``process, process + processes, ...`` of all portions."""
        draws: Draws = self.run if self.phase == "main" else PhaseDraws(self.run, self.phase)
        rows = {side: self.rows(side, step) for side in self.sides}
        for portion in range(process, self.portions, processes):
            places = range(portion * self.batch_size, min((portion + 1) * self.batch_size, self.size))
            if not places:
                continue
            batches: dict[str, Batch] = {
                side: Batch(examples, tuple(rows[side][i] for i in places), step, tuple(places), draws, self.device)
                for side, examples in self.sides.items()
            }
            yield Portion(batches, len(places) / self.size)


def sides_of(data: ForgetRetain, needed: dict[Side, bool]) -> dict[Side, Examples]:
    """Return the examples of the sides that have some and are needed.

    Raises:
        UnlearnError: ``VU-U034`` when none is left.
    """
    tables: dict[Side, Examples] = {"forget": data.forget, "retain": data.retain}
    sides = {side: examples for side, examples in tables.items() if needed[side] and len(examples)}
    if not sides:
        raise UnlearnError(
            "VU-U034",
            "There is nothing to train on: the sides that the weighting uses have no training examples.",
            "Give forget examples, or another weighting.",
            where="data",
        )
    return sides
