"""Kind ``methods``: commands beside each other, and frontiers over the strength of a method.

A row is a name and the words of its command. Rows with ``split = "validation"`` are a frontier: they show what other
settings would give, and see no held-out seed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from measured.making import KEPT, RUNS, Cost, keep, machine, measure, shown, unlearn, vu
from measured.page import percent, score, score_cell, target, under

HEADS = ("`vu unlearn`", "UA", "IRA", "CRA", "cosine (below 0)", "seconds", "peak memory, MB", "edit, kB")


def parts(group: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """Return row and concept of each run, by its name."""
    pairs = [(row, concept) for row in group["row"] for concept in row.get("forget", group["forget"])]
    return {f"{row['name']}--{concept.replace(':', '-')}": (row, concept) for row, concept in pairs}


def make(group: dict[str, Any], name: str) -> None:
    """Run, measure with few seeds (timed, empty cache), measure with many seeds, keep the numbers."""
    place, folder = _place(group, name), RUNS / group["name"] / name
    if place.exists():
        return
    row, concept = parts(group)[name]
    words = [*row["words"], "--forget", concept, "--seed", str(group["seed"])]
    if (split := _split(row)) != "held-out":
        words += ["--set", f"measure.split={split}"]
    cost: Cost = unlearn(folder, *words)
    value = {
        "name": row["name"],
        "command": "vu unlearn " + " ".join(words),
        "measured": f"vu measure RUN --set measure.seeds={group['seeds']}",
        "seed": group["seed"],
        **cost._asdict(),
        "edit_bytes": (folder / "edit.safetensors").stat().st_size,
        "machine": machine(folder),
        "conflict": _conflict(folder, words, row.get("conflict", [])),
        "quick": json.loads((folder / "scores.json").read_text()),
        "full": measure(folder, group["seeds"]),
    }
    keep(place, value)


def _conflict(folder: Path, words: list[str], further: list[str]) -> dict[str, Any] | None:
    """Return how retain and forget gradient agreed in a run, or in another one with further words; none: not known."""
    if further:
        folder = folder.with_name(f"{folder.name}--conflict")
        if not (folder / "README.md").exists():
            shutil.rmtree(folder, ignore_errors=True)
            vu("unlearn", *words, *further, "--out", shown(folder), "--quiet")
    found = folder / "gradient-conflict.json"
    if not found.exists():
        return None
    spread = json.loads(found.read_text())["cosines"]["cos_rf"]
    del spread["histogram"]
    return {"further": further, **spread}


def render(group: dict[str, Any]) -> list[str]:
    """Return the lines of the group below its text; none when nothing was measured."""
    pairs = [(row, _place(group, name)) for name, (row, _) in parts(group).items()]
    measured = [(row, json.loads(place.read_text())) for row, place in pairs if place.exists()]
    if not measured:
        return []
    lines: list[str] = []
    judged = [(row, value) for row, value in measured if _split(row) == "held-out"]
    if judged:
        lines += [*_table([value for _, value in judged]), "", *_verdict(group, judged)]
    frontier = [value for row, value in measured if _split(row) != "held-out"]
    if frontier:
        lines += ["", "What other settings give, on seeds that are free for choosing:", "", *_table(frontier)]
    missing = [f"`{place.stem}`" for _, place in pairs if not place.exists()]
    return [*lines, *(["", f"Not measured yet: {', '.join(missing)}."] if missing else [])]


def _place(group: dict[str, Any], name: str) -> Path:
    return KEPT / group["name"] / f"{name}.json"


def _split(row: dict[str, Any]) -> str:
    return str(row.get("split", "held-out"))


def _table(values: list[dict[str, Any]]) -> list[str]:
    lines = under(values[0]["full"], values[0]["machine"])
    lines += ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    lines += ["| " + " | ".join(_cells(value)) + " |" for value in values]
    further = {" ".join(v["conflict"]["further"]) for v in values if v["conflict"] and v["conflict"]["further"]}
    return [*lines, *(f"\n\\* from a run of its own, the same command with `{words}`." for words in sorted(further))]


def _cells(value: dict[str, Any]) -> list[str]:
    return [
        f"`{value['command'].removeprefix('vu unlearn ')}`",
        *(score_cell(score(value["full"], name)) for name in ("ua", "ira", "cra")),
        _cosine(value["conflict"]),
        f"{value['seconds']:.0f}",
        f"{value['peak_bytes'] / 1e6:.0f}",
        f"{value['edit_bytes'] / 1000:.0f}",
    ]


def _cosine(conflict: dict[str, Any] | None) -> str:
    if conflict is None or conflict["mean"] is None:
        return ""
    mark = r" \*" if conflict["further"] else ""
    return f"{round(conflict['mean'], 2) + 0.0:.2f} ({100 * conflict['negative']:.0f} %){mark}"


def _verdict(group: dict[str, Any], judged: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Say in words which targets are reached, and name each miss."""

    def words(value: dict[str, Any]) -> str:
        return f"`{value['command'].removeprefix('vu unlearn ')}`"

    limit = group["ua_at_least"]
    uas = [(words(value), score(value["full"], "ua")["after"]) for _, value in judged]
    low = [f"{command} {percent(ua)} %" for command, ua in uas if ua < limit]
    lines = [target(f"UA at least {percent(limit)} % in each run (lowest {percent(min(ua for _, ua in uas))})", low)]
    own = {row["name"]: row["fall_at_most"] for row, _ in judged if "fall_at_most" in row}
    others = "".join(f"; {name}: {percent(fall)}" for name, fall in own.items())
    for name in ("ira", "cra"):
        falls = [(row, words(value), -score(value["full"], name)["change"]) for row, value in judged]
        deep = [
            f"{command} {percent(fall)} points"
            for row, command, fall in falls
            if fall > row.get("fall_at_most", group["fall_at_most"]) + 1e-9
        ]
        text = f"{name.upper()} falls by at most {percent(group['fall_at_most'])} points{others}"
        lines.append(target(f"{text} (deepest {percent(max(fall for *_, fall in falls))})", deep))
    seconds = [(words(value), value["seconds"]) for _, value in judged]
    slow = [f"{command} {taken:.0f} s" for command, taken in seconds if taken > group["seconds_at_most"]]
    text = f"Quick measurement included, at most {group['seconds_at_most']} s"
    return [*lines, target(f"{text} (slowest {max(taken for _, taken in seconds):.0f} s)", slow)]
