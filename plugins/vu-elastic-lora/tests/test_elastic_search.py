"""The search for ranks: what it measures, in which order, when it stops and what it chooses."""

from __future__ import annotations

import json
import random
from itertools import product

import attrs
import optuna
import pytest
import torch

from vu_core import ConfigError, Edit, LowRank, Score, Scorecard
from vu_core.testing.watching import nothing_global_changes
from vu_elastic_lora.extraction import tensor_bytes
from vu_elastic_lora.front import front_section, front_table
from vu_elastic_lora.groups import RankGroup
from vu_elastic_lora.search import search
from vu_elastic_lora.trials import Limits, Objective, Search, Trial, objectives_of, values_of

BLOCKS = ("a", "b")
UA = (Objective("ua", "up", "fraction"),)
FACTS = {"elastic": {"search_space": [16, 8, 4], "groups": "layer", "scale": "alpha / r_max"}}


def adapter(blocks=BLOCKS) -> Edit:
    parts = {f"u.{block}.q.weight": LowRank(torch.ones(16, 6), torch.ones(5, 16), 16.0) for block in blocks}
    return Edit(parts, facts=FACTS)


def card(**values) -> Scorecard:
    """Return scores that should be high, as fractions; a tuple says (value, unit, direction)."""
    told = {name: value if isinstance(value, tuple) else (value, "fraction", "up") for name, value in values.items()}
    return Scorecard("validation", "ok", tuple(Score(name, v, unit, way, 1) for name, (v, unit, way) in told.items()))


class Measure:
    """Scores an adapter by its ranks, and keeps what it was asked."""

    def __init__(self, rule) -> None:
        self.rule = rule
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, edit: Edit) -> Scorecard:
        ranks = tuple(part.rank for _, part in edit)
        self.asked.append(ranks)
        return card(**self.rule(ranks))


def rule(ranks):
    """Only the first group needs a high rank for UA, only the second one some rank for IRA."""
    return {"ua": 0.99 if ranks[0] >= 8 else 0.9, "ira": 0.97 if ranks[1] >= 8 else 0.93}


@pytest.fixture
def find(make_run):
    def run(rule=rule, *, blocks=BLOCKS, seed=7, clock=None, seen=None, **limits):
        measure = Measure(rule)
        more = {} if clock is None else {"clock": clock}
        if seen is not None:
            more["on_trial"] = seen.append
        limits = attrs.evolve(Limits(trials=9), **limits)
        return measure, search(adapter(blocks), measure, make_run(seed), limits, **more)

    return run


def test_maximal_heuristic_and_minimal_come_first(find):
    measure, _ = find(trials=5)
    assert measure.asked[:3] == [(16, 16), (8, 8), (4, 4)]
    assert len(measure.asked) == 5


def test_it_picks_the_smallest_adapter_that_is_as_good_as_the_whole_one(find):
    measure, found = find()
    assert set(measure.asked) == set(product((16, 8, 4), repeat=2))
    assert found.chosen().ranks == (8, 8)
    assert found.ranks() == {"u.a.q.weight": 8, "u.b.q.weight": 8}
    assert found.stopped == "every assignment is measured"
    assert {trial.ranks for trial in found.front()} == {(8, 8), (8, 4), (4, 8), (4, 4)}


@pytest.mark.parametrize(("tolerance", "chosen"), [(0.0, (8, 8)), (0.04, (8, 4)), (0.09, (4, 4))])
def test_the_tolerance_decides_what_is_as_good(find, tolerance, chosen):
    _, found = find(tolerance=tolerance)
    assert found.chosen().ranks == chosen


def test_bytes_are_those_of_the_extracted_adapter(find):
    _, found = find(trials=4)
    sizes = {trial.ranks: trial.bytes for trial in found.trials}
    assert sizes[16, 16] == tensor_bytes(adapter())
    assert sizes[4, 4] == sizes[16, 16] / 4


@pytest.mark.parametrize("trials", [1, 2, 7])
def test_it_stops_after_the_number_of_trials(find, trials):
    measure, found = find(trials=trials)
    assert len(measure.asked) == len(found.trials) == trials
    assert found.stopped == "the number of trials is reached"


def test_it_stops_when_the_time_is_over(find):
    times = iter(range(0, 1000, 10))
    measure, found = find(seconds=35.0, clock=lambda: next(times))
    assert found.stopped == "the time is over"
    assert len(measure.asked) == 4  # asked for the time at 0, then after each trial at 10, 20, 30, 40
    measure, found = find(seconds=1e-9)
    assert measure.asked == [(16, 16)]
    assert found.chosen().ranks == (16, 16)


def test_no_assignment_is_measured_twice(find):
    for seed in range(3):
        measure, found = find(lambda ranks: {"ua": 0.5}, seed=seed)
        assert len(measure.asked) == len(set(measure.asked)) == found.distinct == 9


def test_the_same_search_repeats_and_another_seed_differs(find):
    (one, first), (two, second), (other, _) = (find(trials=8, blocks="abcd", seed=seed) for seed in (7, 7, 8))
    assert one.asked == two.asked
    assert first == second
    assert one.asked[:3] == other.asked[:3]
    assert one.asked != other.asked


def test_one_rank_is_one_trial(find, make_run):
    measure = Measure(lambda ranks: {"ua": 0.5})
    plain = Edit({"u.a.q.weight": LowRank(torch.ones(4, 6), torch.ones(5, 4), 4.0)})
    found = search(plain, measure, make_run(), Limits())
    assert measure.asked == [(4,)]
    assert found.chosen().ranks == (4,)


def test_two_ranks_have_one_version_less(find, make_run):
    facts = {"elastic": {**FACTS["elastic"], "search_space": [16, 4]}}
    measure = Measure(lambda ranks: {"ua": 0.5})
    search(attrs.evolve(adapter(), facts=facts), measure, make_run(), Limits(trials=8))
    assert measure.asked[:2] == [(16, 16), (4, 4)]
    assert len(set(measure.asked)) == len(measure.asked) == 4


def test_proposals_learn_from_everything_measured(find, monkeypatch):
    made = []
    create = optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **keys: made.append(create(**keys)) or made[-1])

    def both(ranks):
        return {"overwrite_share": (ranks[0] / 16, "fraction", "up"), "loss": (1 / ranks[1], "mse", "down")}

    _, found = find(both, trials=13, blocks="abc")
    (study,) = made
    less, more = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
    assert study.directions == [less, more, less]
    told = [tuple(trial.values) for trial in study.trials if trial.values is not None]
    wanted = [(t.bytes, t.scores["overwrite_share"], t.scores["loss"]) for t in found.trials]
    assert set(told) == set(wanted[:-1]), "the last trial is told to nobody"
    for trial in study.trials:
        if trial.values is not None:
            first = (16, 8, 4)[trial.params["0"]]
            assert trial.values[1] == first / 16


def test_many_groups_are_searched_within_the_budget(make_run):
    blocks = [f"b{number:02d}" for number in range(16)]
    measure = Measure(lambda ranks: {"ua": sum(ranks) / (16 * 16)})
    found = search(adapter(blocks), measure, make_run(), Limits(trials=6))
    assert len(set(measure.asked)) == 6
    assert found.distinct == 3**16


def test_everything_so_far_is_told_after_every_trial(find):
    seen = []
    _, found = find(trials=5, seen=seen)
    assert [len(each.trials) for each in seen] == [1, 2, 3, 4, 5]
    assert seen[-1].trials == found.trials
    assert {each.stopped for each in seen} == {""}


def test_nothing_global_changes(find):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    with nothing_global_changes():
        find(trials=6)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


# What follows from what was measured


def test_ua_ira_and_cra_go_before_all_other_scores():
    scores = card(ira=0.5, ua=0.5, forget_accuracy=(0.5, "fraction", "down"), edit_bytes=(9.0, "bytes", "down"))
    assert [each.name for each in objectives_of(scores)] == ["ira", "ua"]


def test_other_scores_count_when_they_say_which_way_is_better():
    scores = card(
        loss=(0.5, "mse", "down"),
        share=0.5,
        light=(0.5, "fraction", "none"),
        edit_bytes=(9.0, "bytes", "down"),
        changed=(9.0, "parameters", "down"),
    )
    assert objectives_of(scores) == (Objective("loss", "down", "mse"), Objective("share", "up", "fraction"))


def test_scores_without_a_direction_are_no_goal():
    with pytest.raises(ConfigError, match="brightness") as caught:
        objectives_of(card(brightness=(0.5, "fraction", "none"), edit_bytes=(9.0, "bytes", "down")))
    assert caught.value.code == "VU-C094"


def test_a_score_that_is_missing_later_is_an_error():
    with pytest.raises(ConfigError, match="'ua'") as caught:
        values_of(card(ira=0.5), (Objective("ua", "up", "fraction"),))
    assert caught.value.code == "VU-C094"


def made(*trials, objectives=UA, tolerance=0.02) -> Search:
    """Return a search over one group whose trials are (rank, bytes, values...)."""
    space = tuple(sorted({rank for rank, *_ in trials}, reverse=True))
    rows = tuple(
        Trial((rank,), size, dict(zip([each.name for each in objectives], values, strict=True)))
        for rank, size, *values in trials
    )
    return Search((RankGroup(("u.a.q.weight",), space),), objectives, tolerance, rows, len(space), "time")


def test_two_points_are_within_a_tolerance_of_two_points():
    assert made((8, 80, 0.97), (4, 40, 0.95)).chosen().ranks == (4,)
    assert made((8, 80, 0.97), (4, 40, 0.9499)).chosen().ranks == (8,)


def test_better_than_the_whole_adapter_is_good_whatever_the_direction():
    down = (Objective("loss", "down", "mse"),)
    assert made((8, 80, 0.5), (4, 40, 0.1), objectives=down).chosen().ranks == (4,)
    assert made((8, 80, 0.5), (4, 40, 0.9), objectives=down).chosen().ranks == (8,)
    assert made((8, 80, 0.5), (4, 40, 0.9)).chosen().ranks == (4,)


def test_the_tolerance_of_other_units_is_a_share():
    down = (Objective("loss", "down", "mse"),)
    assert made((8, 80, 100.0), (4, 40, 102.0), objectives=down).chosen().ranks == (4,)
    assert made((8, 80, 100.0), (4, 40, 102.1), objectives=down).chosen().ranks == (8,)
    assert made((8, 80, 1e-4), (4, 40, 1.1e-4), objectives=down).chosen().ranks == (8,)


def test_every_score_must_be_tolerable():
    both = (Objective("ua", "up", "fraction"), Objective("ira", "up", "fraction"))
    found = made((8, 80, 0.9, 0.9), (4, 40, 0.99, 0.8), (2, 20, 0.8, 0.99), objectives=both)
    assert found.chosen().ranks == (8,)


def test_of_equally_small_ones_the_better_one_is_chosen():
    assert made((8, 80, 0.9), (4, 40, 0.90), (2, 40, 0.91)).chosen().ranks == (2,)
    assert made((8, 80, 0.9), (4, 40, 0.91), (2, 40, 0.90)).chosen().ranks == (4,)


def test_the_front_holds_what_nothing_beats():
    found = made((8, 80, 0.9), (4, 40, 0.9), (2, 20, 0.7), (1, 20, 0.7), (3, 30, 0.6))
    assert [trial.ranks[0] for trial in found.front()] == [2, 1, 4]


def test_the_front_is_that_of_plain_comparison_and_holds_the_choice():
    both, draw = (Objective("ua", "up", "fraction"), Objective("loss", "down", "mse")), random.Random(0)
    for _ in range(40):
        rows = [(n, draw.randrange(4), draw.randrange(3), draw.randrange(3)) for n in range(10, 0, -1)]
        beaten = {b[0] for a in rows for b in rows if a[1] <= b[1] and a[2] >= b[2] and a[3] <= b[3] and a[1:] != b[1:]}
        found = made(*rows, objectives=both, tolerance=1.0)
        assert {trial.ranks[0] for trial in found.front()} == {row[0] for row in rows} - beaten
        assert found.chosen() in found.front()


def test_the_record_holds_every_trial_and_the_choice():
    found = made((8, 80, 0.97), (4, 40, 0.96), (2, 20, 0.5))
    told = json.loads(found.to_json({"split": "validation"}))
    assert (told["format"], told["state"], told["split"], told["tolerance"]) == (1, "finished", "validation", 0.02)
    assert [(t["ranks"], t["bytes"], t["scores"]["ua"]) for t in told["trials"]] == [
        ([8], 80, 0.97),
        ([4], 40, 0.96),
        ([2], 20, 0.5),
    ]
    assert [t["chosen"] for t in told["trials"]] == [False, True, False]
    assert [t["tolerable"] for t in told["trials"]] == [True, True, False]
    assert told["groups"] == [{"target": ["u.a.q.lora_A"], "search_space": [8, 4, 2]}]
    assert json.loads(attrs.evolve(found, stopped="").to_json({}))["state"] == "unfinished"


def test_the_table_shows_the_front_and_the_whole_adapter():
    table = front_table(made((8, 80, 0.95), (4, 40, 0.96), (2, 20, 0.5)), "validation", 2)
    assert table.columns == ("", "ranks", "bytes", "share", "ua")
    assert table.rows == (
        ("", "minimal", 20, "25 %", "50.0 %"),
        ("chosen", "heuristic", 40, "50 %", "96.0 %"),
        ("", "maximal", 80, "100 %", "95.0 %"),
    )
    assert "3 of 3 assignments measured on validation, 2 seeds" in table.notes[0]


def test_the_drawing_has_a_dot_per_trial_and_no_script():
    both = (Objective("ua", "up", "fraction"), Objective("loss<x>", "down", "mse"))
    found = made((8, 80, 0.9, 0.5), (4, 40, 0.9, 0.5), (2, 20, 0.7, 0.5), objectives=both)
    section = front_section(found, "validation", 1)
    assert section.html.count("r='4'") == 6
    assert section.html.count("r='8'") == 2
    assert "loss&lt;x&gt;" in section.html
    assert "<script" not in section.html
    assert "nan" not in section.html
