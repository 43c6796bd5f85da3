"""The table of methods in docs/reference/results.md, made and rendered with a fake `vu`."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = (
    "results",
    "measured",
    *(f"measured.{n}" for n in ("composition", "continual", "digits", "elastic", "making", "methods", "page", "runs")),
)
# Both a shell script and Python: a line "#!" cannot name an interpreter whose path has spaces.
HEAD = f'#!/bin/sh\n"exec" "{sys.executable}" "$0" "$@"\n'
FAKE = f"""{HEAD}import json, sys
from pathlib import Path

words = sys.argv[1:]
with open("asked", "a") as log:
    log.write(" ".join(words) + "\\n")
split = "validation" if "measure.split=validation" in words else "held-out"
def card(n, ua, ira, cra):
    def score(name, before, after):
        bounds = {{"ci_low": after - 0.01, "ci_high": after}}
        return {{"name": name, "before": before, "after": after, "change": after - before, "n": n, **bounds}}
    return {{"split": split, "scores": [score("ua", 0.0, ua), score("ira", 0.98, ira), score("cra", 0.97, cra)]}}

if words[0] == "measure":
    known = json.loads(Path(words[1], "true.json").read_text())
    print(json.dumps({{**card(100, *known["scores"]), "split": known["split"]}}))
elif "broken" in words:
    sys.exit(3)
else:
    out = Path(words[words.index("--out") + 1])
    out.mkdir(parents=True)
    scores = (0.5, 0.96, 0.80) if "weak" in words else (0.95, 0.90, 0.96) if "rough" in words else (1.0, 0.97, 0.96)
    (out / "true.json").write_text(json.dumps({{"scores": scores, "split": split}}))
    (out / "scores.json").write_text(json.dumps(card(20, *scores)))
    (out / "environment.json").write_text(json.dumps({{"cores": 2, "threads": 2, "node": "secret"}}))
    (out / "edit.safetensors").write_bytes(bytes(12000))
    if "munba" in words or "unlearner.training.gradient_conflict=true" in words:
        spread = {{"defined": 9, "undefined": 1, "negative": 0.34, "mean": -0.046, "median": 0.0, "low": -0.2,
                   "high": 0.1, "histogram": [0] * 50}}
        (out / "gradient-conflict.json").write_text(json.dumps({{"cosines": {{"cos_rf": spread}}}}))
    (out / "README.md").write_text("whole")
"""
CONFLICT, NEON = ["--set", "unlearner.training.gradient_conflict=true"], ["style:neon"]
GROUP = {
    "name": "g",
    "kind": "methods",
    "title": "T",
    "text": "x",
    "forget": ["style:neon", "object:star"],
    "seed": 42,
    "seeds": 10,
    "ua_at_least": 0.9,
    "fall_at_most": 0.06,
    "seconds_at_most": 150,
    "row": [
        {"name": "munba", "words": ["--method", "munba"]},
        {"name": "plain", "words": ["--method", "plain"], "conflict": CONFLICT},
        {"name": "rough", "words": ["--method", "rough"], "fall_at_most": 0.1},
        {"name": "half", "words": ["--method", "weak", "--set", "a.b=1"], "split": "validation", "forget": NEON},
    ],
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The modules of the results, with a fake `vu` and every folder under the temporary one."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    making, methods = (importlib.import_module(f"measured.{name}") for name in ("making", "methods"))
    fake = tmp_path / "vu"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    for module in (making, methods):
        for name, value in {"ROOT": tmp_path, "RUNS": tmp_path / "runs", "KEPT": tmp_path / "kept"}.items():
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(making, "VU", fake)
    clock = itertools.count(step=61.25)
    monkeypatch.setattr(making, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    yield SimpleNamespace(methods=methods, making=making, folder=tmp_path)
    for name in MODULES:
        sys.modules.pop(name, None)


def asked(place) -> list[str]:
    log = place.folder / "asked"
    return log.read_text().splitlines() if log.exists() else []


def kept(place, name: str) -> dict:
    return json.loads((place.folder / "kept/g" / f"{name}.json").read_text())


def cells(lines: list[str], start: str) -> list[str]:
    (row,) = [line for line in lines if line.startswith(f"| `{start}")]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def test_a_run_is_made_measured_and_kept(place):
    place.methods.make(GROUP, "munba--style-neon")
    unlearn, measure = asked(place)
    assert unlearn == "unlearn --method munba --forget style:neon --seed 42 --out runs/g/munba--style-neon --quiet"
    assert measure == "measure runs/g/munba--style-neon --set measure.seeds=10 --json"
    value = kept(place, "munba--style-neon")
    assert value["command"] == "vu unlearn --method munba --forget style:neon --seed 42"
    assert value["edit_bytes"] == 12000
    assert value["machine"] == {"cores": 2, "threads": 2}
    assert (value["conflict"]["mean"], value["conflict"]["further"]) == (-0.046, [])
    assert [value[part]["scores"][0]["n"] for part in ("quick", "full")] == [20, 100]
    assert value["seconds"] == 61.2
    assert value["peak_bytes"] > 2**20


def test_what_is_kept_is_not_made_again_and_a_whole_run_is_only_measured(place):
    place.methods.make(GROUP, "munba--style-neon")
    place.methods.make(GROUP, "munba--style-neon")
    assert len(asked(place)) == 2
    before = kept(place, "munba--style-neon")
    (place.folder / "kept/g/munba--style-neon.json").unlink()
    place.methods.make(GROUP, "munba--style-neon")
    assert [line.split()[0] for line in asked(place)] == ["unlearn", "measure", "measure"]
    assert kept(place, "munba--style-neon") == before, "the seconds and the memory are those of the run"
    (place.folder / "kept/g/munba--style-neon.json").unlink()
    (place.folder / "runs/g/munba--style-neon/README.md").unlink()
    place.methods.make(GROUP, "munba--style-neon")
    assert [line.split()[0] for line in asked(place)][3:] == ["unlearn", "measure"], "half a run is made anew"


def test_the_cosine_of_a_sum_comes_from_a_run_of_its_own(place):
    place.methods.make(GROUP, "plain--object-star")
    shipped, other, measure = asked(place)
    assert "gradient_conflict" not in shipped
    assert other.endswith("gradient_conflict=true --out runs/g/plain--object-star--conflict --quiet")
    assert "runs/g/plain--object-star " in measure
    lines = place.methods.render(GROUP)
    assert cells(lines, "--method plain")[4] == r"-0.05 (34 %) \*"
    assert any("run of its own" in line and "gradient_conflict=true" in line for line in lines)


def test_a_method_without_two_gradients_has_no_cosine(place):
    place.methods.make(GROUP, "rough--style-neon")
    lines = place.methods.render(GROUP)
    assert cells(lines, "--method rough")[4] == ""
    assert not any("run of its own" in line for line in lines)


def test_a_run_that_fails_keeps_nothing(place):
    group = {**GROUP, "row": [{"name": "bad", "words": ["--method", "broken"]}]}
    with pytest.raises(SystemExit, match=r"--method broken .* ended with status 3"):
        place.methods.make(group, "bad--style-neon")
    assert not (place.folder / "kept").exists()


def test_the_table_holds_the_numbers_and_names_what_is_missing(place):
    assert place.methods.render(GROUP) == []
    place.methods.make(GROUP, "munba--style-neon")
    value = kept(place, "munba--style-neon")
    lines = place.methods.render(GROUP)
    assert "Split: held-out. Machine: cores 2, threads 2." in lines
    row = cells(lines, "--method munba")
    assert row[1:3] == ["0.0 → **100.0** [99.0, 100.0], n 100", "98.0 → **97.0** [96.0, 97.0], n 100"]
    assert row[4] == "-0.05 (34 %)"
    assert row[5:] == [f"{value['seconds']:.0f}", f"{value['peak_bytes'] / 1e6:.0f}", "12"]
    assert lines[-1].startswith("Not measured yet: `munba--object-star`, `plain--style-neon`")


def test_each_miss_is_named_and_a_method_may_have_its_own_limit(place):
    for name in ("munba--style-neon", "rough--style-neon"):
        place.methods.make(GROUP, name)
    lines = [line for line in place.methods.render(GROUP) if line.startswith("- ")]
    assert lines[0] == "- UA at least 90.0 % in each run (lowest 95.0): reached."
    assert lines[1] == "- IRA falls by at most 6.0 points; rough: 10.0 (deepest 8.0): reached."
    assert lines[3].startswith("- Quick measurement included, at most 150 s (slowest 61 s)")
    assert lines[3].endswith("reached.")
    strict = {**GROUP, "ua_at_least": 0.99, "seconds_at_most": 0, "fall_at_most": 0.005}
    missed = [line for line in place.methods.render(strict) if line.startswith("- ")]
    rough = "`--method rough --forget style:neon --seed 42`"
    assert missed[0] == f"- UA at least 99.0 % in each run (lowest 95.0): missed by {rough} 95.0 %."
    assert missed[1].endswith("missed by `--method munba --forget style:neon --seed 42` 1.0 points.")
    assert missed[3].count(" s, `--method") == 1, "both are too slow"
    harsh = {**GROUP, "row": [{**row, "fall_at_most": 0.07} for row in GROUP["row"]]}
    (ira,) = [line for line in place.methods.render(harsh) if line.startswith("- IRA")]
    assert ira.endswith(f"missed by {rough} 8.0 points.")


def test_a_frontier_is_measured_on_validation_seeds_and_not_judged(place):
    place.methods.make(GROUP, "munba--style-neon")
    place.methods.make(GROUP, "half--style-neon")
    (unlearn,) = [line for line in asked(place) if "weak" in line and line.startswith("unlearn")]
    assert "--set measure.split=validation" in unlearn
    lines = place.methods.render(GROUP)
    start = lines.index("What other settings give, on seeds that are free for choosing:")
    assert "Split: validation. Machine: cores 2, threads 2." in lines[start:]
    assert cells(lines[start:], "--method weak --set a.b=1")[1].startswith("0.0 → **50.0**")
    assert not any("weak" in line for line in lines[:start])
    assert "- UA at least 90.0 % in each run (lowest 100.0): reached." in lines
    assert "half--object-star" not in lines[-1]


def test_runs_can_be_chosen_by_group_row_and_concept(place, monkeypatch):
    results = importlib.import_module("results")
    monkeypatch.setattr(results, "groups", lambda: [GROUP, {**GROUP, "name": "other"}])

    def names(*only):
        return [f"{group['name']}/{name}" for group, name in results.chosen(list(only))]

    assert len(names()) == 14
    assert names("g/munba") == ["g/munba--style-neon", "g/munba--object-star"]
    assert names("other/half", "g/munba--object-star") == ["g/munba--object-star", "other/half--style-neon"]
    assert len(names("other")) == 7
    with pytest.raises(SystemExit, match="no 'g/mun'; known: g/munba--style-neon"):
        names("g/mun")


def test_no_two_rows_of_the_page_share_a_name(place, monkeypatch):
    results = importlib.import_module("results")
    monkeypatch.setattr(results, "ROOT", BENCHMARKS.parent)
    groups = [group for group in results.groups() if group["kind"] == "methods"]
    assert groups
    for group in groups:
        assert len({row["name"] for row in group["row"]}) == len(group["row"])


def test_peak_memory_is_that_of_the_process(place):
    """Measured from a process of its own: this one has loaded PyTorch, and the system counts that, too."""
    (place.folder / "vu").write_text(f"{HEAD}import sys\nheld = b'x' * int(sys.argv[1])\n")
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from measured import making
making.VU = Path(sys.argv[2])
print(*(making.watched(size).peak_bytes for size in ("1", "150000000")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(BENCHMARKS), str(place.folder / "vu")],
        capture_output=True,
        text=True,
        check=True,
    )
    small, large = map(int, done.stdout.split())
    assert 100_000_000 < large - small < 200_000_000
