"""Kind ``continual``: sequences of tasks beside each other, each method with one seed or several.

A row is a name, the words of its command and a number of seeds; one seed is one part, so that several can be made one
by one and a stopped one goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from statistics import fmean, stdev
from typing import Any

from measured.making import KEPT, RUNS, keep, machine, shown, vu
from measured.page import percent, target

SCORES = ("h_mean", "acc_r", "acc_f", "acc_o")


def parts(group: dict[str, Any]) -> dict[str, tuple[dict[str, Any], int]]:
    """Return row and seed of each sequence, by its name."""
    pairs = [(row, group["seed"] + n) for row in group["row"] for n in range(row.get("seeds", 1))]
    return {f"{row['name']}--{seed}": (row, seed) for row, seed in pairs}


def make(group: dict[str, Any], name: str) -> None:
    """Run the sequence, or what is left of it, and keep its numbers."""
    place, folder = KEPT / group["name"] / f"{name}.json", RUNS / group["name"] / name
    if place.exists():
        return
    row, seed = parts(group)[name]
    words = [*group["words"], *row["words"], "--seed", str(seed)]
    told = folder.with_name(f"{folder.name}.seconds.json")
    spent = json.loads(told.read_text()) if told.exists() and folder.exists() else 0.0
    started = time.monotonic()
    try:
        if not (folder / "sequence.toml").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            vu("unlearn", *words, "--out", shown(folder), "--quiet")
        elif not (folder / "README.md").exists():
            vu("unlearn", "--resume", shown(folder), "--quiet")
    finally:
        told.write_text(json.dumps(round(spent + time.monotonic() - started, 1)))
    value = {
        "name": row["name"],
        "command": "vu unlearn " + " ".join(words),
        "seed": seed,
        "seconds": json.loads(told.read_text()),
        "machine": machine(folder / "tasks/0"),
        "tasks": [_task(task) for task in json.loads((folder / "sequence.json").read_text())["tasks"]],
    }
    keep(place, value)


def _task(task: dict[str, Any]) -> dict[str, Any]:
    """Return what the page tells of one task."""
    (run,) = task["runs"]
    scores = {score["name"]: score for score in run["measured"]["scores"]}
    told = {name: score["after"] for name, score in scores.items()}
    intervals = {name: (scores[name]["ci_low"], scores[name]["ci_high"]) for name in SCORES if name in scores}
    return {
        "scores": told,
        "intervals": intervals,
        "n": {name: scores[name]["n"] for name in SCORES if name in scores},
        "before": {name: scores[name]["before"] for name in ("acc_r", "acc_f")},
        "seconds": round(sum(run["seconds"].values()), 1),
        "unlearn_seconds": round(run["seconds"]["unlearn"], 1),
    }


def render(group: dict[str, Any]) -> list[str]:
    """Return the lines of the group below its text; none when nothing was measured."""
    every = {name: KEPT / group["name"] / f"{name}.json" for name in parts(group)}
    values = [json.loads(place.read_text()) for place in every.values() if place.exists()]
    if not values:
        return []
    by_row: dict[str, list[dict[str, Any]]] = {}
    for value in values:
        by_row.setdefault(value["name"], []).append(value)
    ordered = sorted(by_row.items(), key=lambda pair: -_mean_h(pair[1]))
    size = ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in values[0]["machine"].items() if key != "threads")
    tasks = len(values[0]["tasks"])
    lines = [f"Split: held-out. Machine: {size}. Words of every command: `{' '.join(group['words'])}`.", ""]
    heads = [f"task {number + 1}: H / Acc_r / Acc_f / Acc_o" for number in range(tasks)]
    published = group.get("published", {})
    heads += ["mean H", *(["published mean H"] if published else []), "zero groups", "tunable", "seconds (threads)"]
    lines += ["| method (seeds) | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += ["| " + " | ".join(_row(name, row, tasks, published)) + " |" for name, row in ordered]
    reference = values[0]["tasks"]
    best = " / ".join(percent(task["scores"]["h_star"]) for task in reference if "h_star" in task["scores"])
    lines += ["", f"H* of the untouched model, the H of forgetting all and losing nothing, per task: {best}.", ""]
    lines += [line for name, row in ordered if name == group.get("judged") for line in _verdict(group, row)]
    lines += [_time(values), ""]
    lines += _compared(group, by_row)
    lines += _order(dict(ordered), published)
    lines += ["", *group["remarks"].strip().splitlines()] if "remarks" in group else []
    missing = [f"`{name}`" for name, place in every.items() if not place.exists()]
    return [*lines, *(["", f"Not measured yet: {', '.join(missing)}."] if missing else [])]


def _time(values: list[dict[str, Any]]) -> str:
    """Say how long a machine with as many cores needs for all sequences, those of fewer threads side by side."""
    cores = values[0]["machine"]["cores"]
    minutes = sum(value["seconds"] * min(value["machine"]["threads"], cores) / cores for value in values) / 60
    return (
        f"The {len(values)} sequences of this table took {minutes:.0f} minutes of {cores} cores; those of fewer "
        "threads count by their share of them."
    )


def _mean_h(row: list[dict[str, Any]]) -> float:
    return fmean(task["scores"]["h_mean"] for value in row for task in value["tasks"])


def _row(name: str, row: list[dict[str, Any]], tasks: int, published: dict[str, Any]) -> list[str]:
    cells = [f"`{name}` ({len(row)})"]
    for number in range(tasks):
        scores = [value["tasks"][number]["scores"] for value in row]
        found = [[each[score] for each in scores if score in each] for score in SCORES]
        cells.append(" / ".join(_spread(numbers) if numbers else "–" for numbers in found))
    cells.append(f"**{_spread([_mean_h([value]) for value in row])}**")
    if published:
        cells.append(f"{fmean(published[name]):.1f}" if name in published else "")
    last = [value["tasks"][number]["scores"] for value in row for number in range(tasks)]
    zero = [each["zero_group_ratio"] for each in last if "zero_group_ratio" in each]
    cells.append(f"{percent(fmean(zero))} %" if zero else "")
    cells.append(f"{percent(fmean(each['tunable_ratio'] for each in last))} %")
    threads = "/".join(sorted({str(value["machine"]["threads"]) for value in row}))
    cells.append(f"{fmean(value['seconds'] for value in row):.0f} ({threads})")
    return cells


def _spread(numbers: list[float]) -> str:
    """Return the mean in percent, with the standard deviation where there are several."""
    deviation = f" ± {percent(stdev(numbers))}" if len(numbers) > 1 else ""
    return percent(fmean(numbers)) + deviation


def _verdict(group: dict[str, Any], row: list[dict[str, Any]]) -> list[str]:
    """Say in words which targets the judged method reaches, and name each miss."""
    every = [
        (f"task {number + 1}, seed {value['seed']}", task)
        for value in row
        for number, task in enumerate(value["tasks"])
    ]
    share = group["h_at_least"]
    ratios = [(name, task["scores"]["h_mean"] / task["scores"]["h_star"]) for name, task in every]
    low = [f"{name}: {ratio:.3f} H*" for name, ratio in ratios if ratio < share]
    lines = [target(f"`{group['judged']}`: H at least {share} H* (lowest {min(r for _, r in ratios):.3f} H*)", low)]
    olds = [(name, task["scores"]["acc_o"]) for name, task in every if "acc_o" in task["scores"]]
    high = [f"{name}: {percent(old)} %" for name, old in olds if old > group["acc_o_at_most"]]
    text = f"Acc_o at most {percent(group['acc_o_at_most'])} % (highest {percent(max(old for _, old in olds))})"
    lines.append(target(text, high))
    zeros = [(name, task["scores"]["zero_group_ratio"]) for name, task in every]
    none = [name for name, ratio in zeros if ratio == 0]
    lines.append(target(f"Zero groups in every task (fewest {percent(min(z for _, z in zeros))} %)", none))
    slow = [f"seed {value['seed']}: {value['seconds']:.0f} s" for value in row if value["seconds"] > group["seconds"]]
    most = max(value["seconds"] for value in row)
    lines.append(target(f"All tasks in at most {group['seconds']} s (slowest {most:.0f} s)", slow))
    return [*lines, ""]


def _compared(group: dict[str, Any], by_row: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Set two methods against each other on the same seeds: the mean difference of mean H, with its interval."""
    lines = []
    for one, other in group.get("compare", []):
        seeds = {name: {value["seed"]: _mean_h([value]) for value in by_row.get(name, [])} for name in (one, other)}
        common = sorted(seeds[one].keys() & seeds[other].keys())
        if len(common) < 2:
            continue
        gaps = [seeds[one][seed] - seeds[other][seed] for seed in common]
        mean, error = fmean(gaps), stdev(gaps) / len(gaps) ** 0.5
        reach = T_QUANTILE[len(gaps) - 1] * error
        lines.append(
            f"- `{one}` against `{other}`, mean H over {len(common)} seeds: {100 * mean:+.2f} points, 95 % interval "
            f"[{100 * (mean - reach):+.2f}, {100 * (mean + reach):+.2f}] (Student's t, paired by seed)."
        )
    return [*lines, ""] if lines else []


T_QUANTILE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""97.5 % quantile of Student's t by degrees of freedom."""


def _order(by_row: dict[str, list[dict[str, Any]]], published: dict[str, Any]) -> list[str]:
    """Compare the order of methods by mean H with the published one."""
    here = [name for name in by_row if name in published]
    there = sorted(here, key=lambda name: -fmean(published[name]))
    if len(here) < 3:
        return []
    pairs = [(a, b) for i, a in enumerate(here) for b in here[i + 1 :]]
    agreed = sum(there.index(a) < there.index(b) for a, b in pairs)
    return [
        f"- Order by mean H here: {', '.join(here)}.",
        f"- Published order: {', '.join(there)}.",
        f"- {agreed} of {len(pairs)} pairs stand in the same order.",
    ]
