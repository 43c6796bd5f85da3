"""Kind ``digits``: every method against a model that was truly trained without what is forgotten.

Each protocol, a whole class or a random share of the training images, has a reference: `retrain` with the schedule of
the original training. A row is a name, the words of its command, and further words per protocol; ``protocols`` names
those that a method is for, where it is not for all.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from typing import Any

from measured.making import KEPT, ROOT, RUNS, keep, machine, shown, vu
from measured.page import percent

REFERENCE = "retrain"
SCORES = ("ua", "ra", "ta", "mia_efficacy")
HEADS = ("UA", "RA", "TA", "MIA")


def parts(group: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """Return row and protocol of each run, by its name; the references come first."""
    rows = sorted(group["row"], key=lambda row: row["name"] != REFERENCE)
    pairs = [(row, protocol) for row in rows for protocol in row.get("protocols", group["protocols"])]
    return {f"{row['name']}--{protocol}": (row, protocol) for row, protocol in pairs}


def make(group: dict[str, Any], name: str) -> None:
    """Train the original if it is not there, run, and keep the numbers."""
    place, home = KEPT / group["name"] / f"{name}.json", RUNS / group["name"]
    if place.exists():
        return
    row, protocol = parts(group)[name]
    weights, folder = home / "original.safetensors", home / name
    if not weights.exists():
        program = str(ROOT / "benchmarks/digits_net.py")
        subprocess.run([sys.executable, program, str(weights), "--seed", str(group["seed"])], check=True, cwd=ROOT)
    words = [*group["words"], *row["words"], "--forget", group["protocols"][protocol], "--seed", str(group["seed"])]
    words += row.get(protocol, [])
    if row["name"] != REFERENCE:
        reference = home / f"{REFERENCE}--{protocol}"
        if not (reference / "README.md").exists():
            make(group, f"{REFERENCE}--{protocol}")
        words += ["--reference", shown(reference)]
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    vu("unlearn", *words, "--out", shown(folder), "--quiet")
    card = json.loads((folder / "scores.json").read_text())
    value = {
        "name": row["name"],
        "protocol": protocol,
        "command": "vu unlearn " + " ".join(words),
        "seed": group["seed"],
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine(folder),
        "scores": {score["name"]: [score["before"], score["after"], score["n"]] for score in card["scores"]},
        "split": card["split"],
    }
    keep(place, value)


def render(group: dict[str, Any]) -> list[str]:
    """Return a table per protocol below the text of the group; none when nothing was measured."""
    lines: list[str] = []
    for protocol, forget in group["protocols"].items():
        places = [KEPT / group["name"] / f"{row['name']}--{protocol}.json" for row in group["row"]]
        values = [json.loads(place.read_text()) for place in places if place.exists()]
        if not values:
            continue
        size = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values[0]["machine"].items())
        n = {name: values[0]["scores"][name][2] for name in SCORES}
        counts = ", ".join(f"{head} {n[name]}" for head, name in zip(HEADS, SCORES, strict=True))
        lines += [f"**`--forget {forget}`.** Split: {values[0]['split']}. n: {counts}. Machine: {size}.", ""]
        lines += [f"| method | {' | '.join(HEADS)} | Avg. Gap | seconds |", "|---" * 7 + "|"]
        before = " | ".join(percent(values[0]["scores"][name][0]) for name in SCORES)
        lines.append(f"| the original | {before} | | |")
        values.sort(key=lambda value: value["scores"].get("avg_gap", [0, 0.0])[1])
        lines += [*map(_row, values), ""]
    missing = [f"`{name}`" for name in parts(group) if not (KEPT / group["name"] / f"{name}.json").exists()]
    return [*lines, *([f"Not measured yet: {', '.join(missing)}."] if missing and lines else [])]


def _row(value: dict[str, Any]) -> str:
    scores = value["scores"]
    cells = [f"`{value['name']}`", *(percent(scores[name][1]) for name in SCORES)]
    cells.append(f"**{percent(scores['avg_gap'][1])}**" if "avg_gap" in scores else "the reference")
    return "| " + " | ".join([*cells, f"{value['seconds']:.0f}"]) + " |"
