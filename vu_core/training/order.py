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

    With ``exhausted = "retain_only"`` an epoch is a pass over the retain examples, ``ceil(N_retain / size)`` steps, of
    which only the first ``ceil(N_forget / size)`` have forget examples; without it every step has both.

    Args:
        sides: examples per side.
        run: source of the permutations and draws; phase: name of the `fit`.
        batch_size: examples per micro-batch and side; portions: micro-batches per step over all processes.
        device: where batches hand out tensors.
        exhausted: ``cycle`` or ``retain_only``.
    """

    sides: dict[Side, Examples]
    run: Run
    phase: str
    batch_size: int
    portions: int
    device: torch.device
    exhausted: str = "cycle"
    _passes: dict[tuple[Side, int], list[int]] = attrs.field(factory=dict)

    @property
    def size(self) -> int:
        """Examples per side and step, over all processes."""
        return min(self.batch_size * self.portions, *(len(examples) for examples in self.sides.values()))

    def rows(self, side: Side, step: int) -> list[int]:
        """Return the rows of a side at a step, ``(size,)``; none where the side is exhausted."""
        n = len(self.sides[side])
        return [self._pass(side, p // n)[p % n] for p in self._positions(side, step)]

    def passes(self, side: Side, step: int) -> list[int]:
        """Return the pass that each of `rows` belongs to."""
        return [p // len(self.sides[side]) for p in self._positions(side, step)]

    def _positions(self, side: Side, step: int) -> range:
        turn = self._turn(side, step)
        return range(0) if turn is None else range(turn * self.size, (turn + 1) * self.size)

    def _turn(self, side: Side, step: int) -> int | None:
        """Return which batch of a side a step has, from 0; ``None`` when it has none."""
        if self.exhausted == "cycle" or side == "retain" or "retain" not in self.sides:
            return step
        of_epoch = -(-len(self.sides["retain"]) // self.size)
        with_forget = min(of_epoch, -(-len(self.sides[side]) // self.size))
        epoch, inside = divmod(step, of_epoch)
        return epoch * with_forget + inside if inside < with_forget else None

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
        passes = {side: self.passes(side, step) for side in self.sides}
        for portion in range(process, self.portions, processes):
            places = range(portion * self.batch_size, min((portion + 1) * self.batch_size, self.size))
            if not places:
                continue
            batches: dict[str, Batch] = {
                side: Batch(
                    examples,
                    tuple(rows[side][i] for i in places),
                    step,
                    tuple(places),
                    draws,
                    self.device,
                    tuple(passes[side][i] for i in places),
                )
                for side, examples in self.sides.items()
                if rows[side]
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
