"""The tables of sequences and of digits in docs/reference/results.md, made and rendered with a fake `vu`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("composition", "continual", "digits", "elastic", "making", "methods", "page", "runs")
MODULES = ("results", "measured", *(f"measured.{name}" for name in NAMES))
HEAD = f'#!/bin/sh\n"exec" "{sys.executable}" "$0" "$@"\n'
# H of a sequence falls with its seed; `gs-lora` is right, `weak` misses, `stopped` needs a second start.
FAKE = f"""{HEAD}import json, sys
from pathlib import Path

words = sys.argv[1:]
with open("asked", "a") as log:
    log.write(" ".join(words) + "\\n")

def score(name, before, after, reference=None):
    return {{"name": name, "before": before, "after": after, "ci_low": after - 0.01, "ci_high": after, "n": 10,
             "reference": reference}}

def end(out):
    (out / "README.md").write_text("whole")

if "--resume" in words:
    end(Path(words[words.index("--resume") + 1]))
elif "--sequence" in words:
    out, seed = Path(words[words.index("--out") + 1]), int(words[words.index("--seed") + 1])
    weak = "weak" in words
    def scores(number):
        h = (0.5 if weak else 0.9) - 0.01 * (seed - 42)
        found = [score("h_mean", 0.0, h), score("h_star", None, 0.96)]
        found += [score("acc_r", 0.97, h), score("acc_f", 0.95, 0.0)]
        found += [score("acc_o", 0.01, 0.1 if weak else 0.02)] if number else []
        found += [score("zero_group_ratio", 0.0, 0.0 if weak else 1 / 3)] if "plain" not in words else []
        return [*found, score("tunable_ratio", 0.0, 0.04)]
    tasks = [{{"runs": [{{"seconds": {{"unlearn": 30.0, "measure": 2.5}}, "measured": {{"scores": scores(n)}}}}]}}
             for n in range(2)]
    (out / "tasks/0").mkdir(parents=True)
    (out / "sequence.toml").write_text("")
    (out / "sequence.json").write_text(json.dumps({{"tasks": tasks}}))
    (out / "tasks/0/environment.json").write_text(json.dumps({{"cores": 2, "threads": 1, "node": "secret"}}))
    if "stopped" in words:
        sys.exit(3)
    end(out)
else:
    out = Path(words[words.index("--out") + 1])
    out.mkdir(parents=True)
    found = [score("ua", 0.0, 1.0), score("ra", 1.0, 0.9), score("ta", 0.97, 0.96), score("mia_efficacy", 0.0, 0.8)]
    if "--reference" in words:
        found.append(score("avg_gap", 0.5, 0.25 if "far" in words else 0.125))
    (out / "scores.json").write_text(json.dumps({{"split": "held-out", "scores": found}}))
    (out / "environment.json").write_text(json.dumps({{"cores": 2, "threads": 1}}))
    end(out)
"""
SEQUENCES = {
    "name": "g",
    "kind": "continual",
    "words": ["--sequence", "continual"],
    "seed": 42,
    "judged": "gs-lora",
    "h_at_least": 0.9,
    "acc_o_at_most": 0.02,
    "seconds": 300,
    "compare": [["gs-lora", "plain"]],
    "row": [
        {"name": "weak", "words": ["--method", "weak"]},
        {"name": "gs-lora", "words": ["--method", "gs-lora"], "seeds": 2},
        {"name": "plain", "words": ["--method", "plain"], "seeds": 2},
    ],
    "published": {"gs-lora": [70.0, 74.0], "weak": [75.0, 75.0], "plain": [60.0, 60.0]},
}
DIGITS = {
    "name": "d",
    "kind": "digits",
    "words": ["--data", "digits"],
    "seed": 7,
    "protocols": {"class": "class:3", "random": "random:0.1"},
    "row": [
        {"name": "far", "words": ["--method", "far"]},
        {"name": "near", "words": ["--method", "near"], "random": ["--set", "a.b=1"]},
        {"name": "retrain", "words": ["--method", "retrain"]},
    ],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The modules of the results, with a fake `vu` and every folder under the temporary one."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    making, continual, digits = (
        importlib.import_module(f"measured.{name}") for name in ("making", "continual", "digits")
    )
    fake = tmp_path / "vu"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    for module in (making, continual, digits):
        for name, value in {"ROOT": tmp_path, "RUNS": tmp_path / "runs", "KEPT": tmp_path / "kept"}.items():
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(making, "VU", fake)
    (tmp_path / "runs/d").mkdir(parents=True)
    (tmp_path / "runs/d/original.safetensors").write_bytes(b"")
    yield SimpleNamespace(continual=continual, digits=digits, folder=tmp_path)
    for name in MODULES:
        sys.modules.pop(name, None)


def asked(place) -> list[str]:
    log = place.folder / "asked"
    return log.read_text().splitlines() if log.exists() else []


def cells(lines: list[str], name: str) -> list[str]:
    (row,) = [line for line in lines if line.startswith(f"| `{name}`")]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def all_of(place, module, group) -> list[str]:
    for name in module.parts(group):
        module.make(group, name)
    return module.render(group)


def test_each_seed_of_a_row_is_a_sequence_of_its_own(place):
    assert list(place.continual.parts(SEQUENCES)) == [
        "weak--42",
        "gs-lora--42",
        "gs-lora--43",
        "plain--42",
        "plain--43",
    ]
    place.continual.make(SEQUENCES, "gs-lora--43")
    (line,) = asked(place)
    assert line == "unlearn --sequence continual --method gs-lora --seed 43 --out runs/g/gs-lora--43 --quiet"
    place.continual.make(SEQUENCES, "gs-lora--43")
    assert len(asked(place)) == 1, "what is kept is not made again"
    value = json.loads((place.folder / "kept/g/gs-lora--43.json").read_text())
    assert value["machine"] == {"cores": 2, "threads": 1}
    assert [task["seconds"] for task in value["tasks"]] == [32.5, 32.5]
    assert value["tasks"][1]["scores"]["acc_o"] == 0.02


def test_a_sequence_that_was_stopped_goes_on(place):
    group = {**SEQUENCES, "row": [{"name": "stopped", "words": ["--method", "stopped"]}]}
    with pytest.raises(SystemExit, match="ended with status 3"):
        place.continual.make(group, "stopped--42")
    assert not (place.folder / "kept").exists()
    spent = json.loads((place.folder / "runs/g/stopped--42.seconds.json").read_text())
    place.continual.make(group, "stopped--42")
    assert asked(place)[1] == "unlearn --resume runs/g/stopped--42 --quiet"
    value = json.loads((place.folder / "kept/g/stopped--42.json").read_text())
    assert value["seconds"] >= spent


def test_the_table_has_mean_and_deviation_and_is_ordered_by_h(place):
    assert place.continual.render(SEQUENCES) == []
    lines = all_of(place, place.continual, SEQUENCES)
    rows = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert rows == ["gs-lora", "plain", "weak"]
    row = cells(lines, "gs-lora")
    assert row[0] == "`gs-lora` (2)"
    assert row[1] == "89.5 ± 0.7 / 89.5 ± 0.7 / 0.0 ± 0.0 / –"
    assert row[2].endswith("/ 2.0 ± 0.0")
    assert row[3:7] == ["**89.5 ± 0.7**", "72.0", "33.3 %", "4.0 %"]
    assert cells(lines, "plain")[5] == ""
    assert "H* of the untouched model, the H of forgetting all and losing nothing, per task: 96.0 / 96.0." in lines
    assert any(line.startswith("The 5 sequences of this table took 0 minutes of 2 cores;") for line in lines)
    assert not any("Not measured yet" in line for line in lines)


def test_a_sequence_of_one_thread_leaves_the_other_core_free(place):
    values = [{"seconds": 600.0, "machine": {"cores": 2, "threads": threads}} for threads in (1, 2)]
    assert "took 15 minutes of 2 cores" in place.continual._time(values)


def test_remarks_stand_below_the_table(place):
    lines = all_of(place, place.continual, {**SEQUENCES, "remarks": "Said afterwards.\n"})
    assert lines[-1] == "Said afterwards."


def test_the_judged_method_is_judged_and_each_miss_named(place):
    lines = all_of(place, place.continual, SEQUENCES)
    judged = [line for line in lines if line.startswith("- ")]
    assert judged[0] == "- `gs-lora`: H at least 0.9 H* (lowest 0.927 H*): reached."
    assert judged[1] == "- Acc_o at most 2.0 % (highest 2.0): reached."
    assert judged[2] == "- Zero groups in every task (fewest 33.3 %): reached."
    assert judged[3].endswith("reached.")
    weak = [line for line in place.continual.render({**SEQUENCES, "judged": "weak"}) if line.startswith("- ")]
    assert weak[0].endswith("missed by task 1, seed 42: 0.521 H*, task 2, seed 42: 0.521 H*.")
    assert weak[1].endswith("missed by task 2, seed 42: 10.0 %.")
    assert weak[2].endswith("missed by task 1, seed 42, task 2, seed 42.")
    slow = place.continual.render({**SEQUENCES, "seconds": -1})
    assert any("missed by seed 42: 0 s, seed 43: 0 s" in line for line in slow)


def test_two_methods_are_compared_by_seed_with_an_interval(place):
    """Both fall alike with the seed, so the difference is 0 with certainty."""
    lines = all_of(place, place.continual, SEQUENCES)
    (line,) = [line for line in lines if "against" in line]
    assert line.startswith("- `gs-lora` against `plain`, mean H over 2 seeds: +0.00 points, 95 % interval [")


def test_the_order_is_compared_with_the_published_one(place):
    lines = all_of(place, place.continual, SEQUENCES)
    assert "- Order by mean H here: gs-lora, plain, weak." in lines
    assert "- Published order: weak, gs-lora, plain." in lines
    assert "- 1 of 3 pairs stand in the same order." in lines


def test_what_is_missing_is_named(place):
    place.continual.make(SEQUENCES, "weak--42")
    assert place.continual.render(SEQUENCES)[-1].startswith("Not measured yet: `gs-lora--42`, `gs-lora--43`")


def test_the_references_come_first_and_the_others_name_theirs(place):
    assert list(place.digits.parts(DIGITS))[:2] == ["retrain--class", "retrain--random"]
    place.digits.make(DIGITS, "near--random")
    reference, run = asked(place)
    assert (
        reference
        == "unlearn --data digits --method retrain --forget random:0.1 --seed 7 --out runs/d/retrain--random --quiet"
    )
    words = "--data digits --method near --forget random:0.1 --seed 7 --set a.b=1 --reference runs/d/retrain--random"
    assert run == f"unlearn {words} --out runs/d/near--random --quiet"
    place.digits.make(DIGITS, "near--random")
    assert len(asked(place)) == 2


def test_the_table_of_a_protocol_is_ordered_by_the_gap(place):
    assert place.digits.render(DIGITS) == []
    lines = all_of(place, place.digits, DIGITS)
    (half,) = [number for number, line in enumerate(lines) if line.startswith("**`--forget random:0.1`.**")]
    for table in (lines[:half], lines[half:]):
        assert [line.split("`")[1] for line in table if line.startswith("| `")] == ["retrain", "near", "far"]
        assert cells(table, "near")[1:6] == ["100.0", "90.0", "96.0", "80.0", "**12.5**"]
        assert cells(table, "retrain")[5] == "the reference"
        assert "| the original | 0.0 | 100.0 | 97.0 | 0.0 | | |" in table
    assert "Split: held-out. n: UA 10, RA 10, TA 10, MIA 10." in lines[0]
    (place.folder / "kept/d/far--random.json").unlink()
    assert place.digits.render(DIGITS)[-1] == "Not measured yet: `far--random`."


def test_the_network_of_digits_names_ten_digits():
    import torch

    sys.path.insert(0, str(BENCHMARKS))
    try:
        network = importlib.import_module("digits_net")
        images, labels = network.training_images()
        assert network.make()(images[:3]).shape == (3, 10)
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("digits_net", None)
    assert images.aminmax() == (-1, 1)
    assert torch.bincount(labels).min() > 100
