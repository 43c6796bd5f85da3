"""Measuring rank assignments, and proposing the next ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import torch

from vu_core import Edit, Run, Scorecard
from vu_elastic_lora.extraction import extracted, groups_of, tensor_bytes
from vu_elastic_lora.groups import VERSIONS, RankGroup, spread
from vu_elastic_lora.trials import Limits, Objective, Search, Trial, objectives_of, values_of

if TYPE_CHECKING:
    import optuna

REPEATS = 8
"""Proposals in a row that were measured before, after which an assignment is drawn at random."""

Assignment = tuple[int, ...]
"""One rank per group."""


def search(
    edit: Edit,
    measure: Callable[[Edit], Scorecard],
    run: Run,
    limits: Limits,
    *,
    on_trial: Callable[[Search], None] = lambda found: None,
    clock: Callable[[], float] = time.monotonic,
) -> Search:
    """Measure rank assignments of an adapter: as few bytes and as good scores as can be had together.

    Maximal, heuristic and minimal come first. Further ones are proposed by Optuna's tree-structured Parzen estimator,
    one integer per group, seeded by the run: under a budget of trials, the same search gives the same trials. No
    assignment is measured twice, and when all are, the search ends.

    Args:
        edit: the whole adapter.
        measure: scores an adapter; on validation data, since scores by which something was chosen cannot judge it.
        run: gives the draws.
        limits: when to stop, and what is tolerated. The whole adapter is measured in any case, since the others are
            compared with it.
        on_trial: sees everything measured so far, after every trial.
        clock: returns seconds.

    Raises:
        ConfigError: ``VU-C094`` the metrics give no score that says which way is better.
        EditError: ``VU-E090`` the edit has no low-rank part.

    Source:
        Optuna: Akiba et al. 2019, arXiv 1907.10902; its estimator for several objectives: Ozaki et al. 2020,
        https://doi.org/10.1145/3377930.3389817.
    """
    started, groups = clock(), groups_of(edit)
    whole = _version(groups, VERSIONS[0])
    size, card = _measured(edit, groups, whole, measure)
    objectives = objectives_of(card)
    distinct = math.prod(len(group.search_space) for group in groups)
    trial = Trial(whole, size, values_of(card, objectives))
    found = Search(groups, objectives, limits.tolerance, (trial,), distinct)
    on_trial(found)
    with _quiet_optuna():
        proposals = Proposals(groups, objectives, run)
        while not (stopped := _reason_to_stop(found, limits, clock() - started)):
            ranks = proposals.next(found.trials)
            size, card = _measured(edit, groups, ranks, measure)
            trial = Trial(ranks, size, values_of(card, objectives))
            found = attrs.evolve(found, trials=(*found.trials, trial))
            on_trial(found)
    return attrs.evolve(found, stopped=stopped)


def _measured(
    edit: Edit, groups: Sequence[RankGroup], ranks: Assignment, measure: Callable[[Edit], Scorecard]
) -> tuple[int, Scorecard]:
    candidate = extracted(edit, spread(groups, ranks))
    return tensor_bytes(candidate), measure(candidate)


def _reason_to_stop(found: Search, limits: Limits, seconds: float) -> str:
    if len(found.trials) == found.distinct:
        return "every assignment is measured"
    if len(found.trials) >= limits.trials:
        return "the number of trials is reached"
    return "the time is over" if seconds >= limits.seconds else ""


def _version(groups: Sequence[RankGroup], version: str) -> Assignment:
    return tuple(group.rank(version) for group in groups)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Let Optuna tell warnings only, and put back what it told before."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class Proposals:
    """Which assignment to measure next.

    Args:
        groups: of the adapter; objectives: what is wanted besides few bytes; run: gives the draws.
    """

    def __init__(self, groups: Sequence[RankGroup], objectives: Sequence[Objective], run: Run) -> None:
        import optuna

        self.groups = groups
        self.objectives = objectives
        self.run = run
        # A place in the search space, so that the estimator sees neighbouring ranks as neighbours.
        self._places: dict[str, optuna.distributions.BaseDistribution] = {
            str(number): optuna.distributions.IntDistribution(0, len(group.search_space) - 1)
            for number, group in enumerate(groups)
            if len(group.search_space) > 1
        }
        less, more = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
        directions = [more if each.direction == "up" else less for each in objectives]
        sampler = optuna.samplers.TPESampler(seed=run.draw_seed("rank-search") % 2**32)
        self._study = optuna.create_study(directions=[less, *directions], sampler=sampler)
        self._asked: dict[Assignment, optuna.Trial] = {}
        self._told = 0

    def next(self, trials: Sequence[Trial]) -> Assignment:
        """Return an assignment that is not among the trials, of which there must be one.

        Args:
            trials: everything measured so far, in order.
        """
        known = {trial.ranks: trial for trial in trials}
        for version in VERSIONS:
            if (ranks := _version(self.groups, version)) not in known:
                return ranks
        for trial in trials[self._told :]:
            self._learn(trial)
        self._told = len(trials)
        for _ in range(REPEATS):
            asked = self._study.ask(self._places)
            ranks = self._at(asked.params)
            if ranks not in known:
                self._asked[ranks] = asked
                return ranks
            self._study.tell(asked, self._values(known[ranks]))
        return self._unseen(known)

    def _learn(self, trial: Trial) -> None:
        """Tell the study what came of an assignment that it proposed, or of another one."""
        import optuna

        if trial.ranks in self._asked:
            self._study.tell(self._asked.pop(trial.ranks), self._values(trial))
            return
        places = {
            number: self.groups[int(number)].search_space.index(trial.ranks[int(number)]) for number in self._places
        }
        self._study.add_trial(
            optuna.trial.create_trial(params=places, distributions=self._places, values=self._values(trial))
        )

    def _values(self, trial: Trial) -> list[float]:
        return [float(trial.bytes), *(trial.scores[each.name] for each in self.objectives)]

    def _at(self, places: Mapping[str, int]) -> Assignment:
        return tuple(group.search_space[places.get(str(number), 0)] for number, group in enumerate(self.groups))

    def _unseen(self, known: Mapping[Assignment, Trial]) -> Assignment:
        """Draw uniformly among the assignments that were not measured."""
        generator = self.run.generator("rank-search", len(known))
        while True:
            places = [int(torch.randint(len(each.search_space), (), generator=generator)) for each in self.groups]
            ranks = tuple(group.search_space[place] for group, place in zip(self.groups, places, strict=True))
            if ranks not in known:
                return ranks
