"""Kind ``runs``: methods times concepts, each measured quickly and in full."""

from __future__ import annotations

import json
from typing import Any

from measured.making import KEPT, RUNS, keep, machine, measure, unlearn
from measured.page import kept, percent, score, score_cell, under


def parts(group: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return method and concept of each run, by its name."""
    pairs = [(method, concept) for method in group["methods"] for concept in group["forget"]]
    return {f"{method}--{concept.replace(':', '-')}": (method, concept) for method, concept in pairs}


def make(group: dict[str, Any], name: str) -> None:
    """Run, measure with few seeds (timed, empty cache), measure with many seeds, keep the numbers."""
    place, folder = KEPT / group["name"] / f"{name}.json", RUNS / group["name"] / name
    if place.exists():
        return
    method, concept = parts(group)[name]
    words = ["--method", method, "--forget", concept, "--seed", str(group["seed"])]
    seconds = unlearn(folder, *words).seconds
    full = measure(folder, group["seeds"])
    value = {
        "command": "vu unlearn " + " ".join(words),
        "measured": f"vu measure RUN --set measure.seeds={group['seeds']}",
        "seed": group["seed"],
        "seconds": seconds,
        "edit_bytes": (folder / "edit.safetensors").stat().st_size,
        "machine": machine(folder),
        "quick": json.loads((folder / "scores.json").read_text()),
        "full": full,
    }
    keep(place, value)


def render(group: dict[str, Any]) -> list[str]:
    """Return the lines of the group below its text; none when nothing was measured."""
    values = kept(group)
    if not values:
        return []
    lines = under(values[0]["full"], values[0]["machine"])
    lines += ["| `vu unlearn` | UA | IRA | CRA | seconds | edit, kB |", "|---|---|---|---|---|---|"]
    return [*lines, *map(_row, values), "", *_verdict(group, values)]


def _row(value: dict[str, Any]) -> str:
    cells = [f"`{value['command'].removeprefix('vu unlearn ')}`"]
    cells += [score_cell(score(value["full"], name)) for name in ("ua", "ira", "cra")]
    cells += [f"{value['seconds']:.0f}", f"{value['edit_bytes'] / 1000:.0f}"]
    return "| " + " | ".join(cells) + " |"


def _verdict(group: dict[str, Any], values: list[dict[str, Any]]) -> list[str]:
    """Say in words which targets are reached, and name each miss."""
    limit = group["ua_at_least"]
    uas = {v["command"]: score(v["full"], "ua")["after"] for v in values}
    low = [f"`{command}` {percent(ua)} %" for command, ua in uas.items() if ua < limit]
    lines = [f"- UA at least {percent(limit)} % in each run: {'missed by ' + ', '.join(low) if low else 'reached'}."]
    for name in ("ira", "cra"):
        falls = {v["command"]: -score(v["full"], name)["change"] for v in values}
        mean = sum(falls.values()) / len(falls)
        deep = [f"`{c}` {percent(fall)} points" for c, fall in falls.items() if fall > group["fall_at_most"] + 1e-9]
        state = "reached" if mean <= group["mean_fall_at_most"] and not deep else "missed"
        lines.append(
            f"- {name.upper()} falls by at most {percent(group['mean_fall_at_most'])} points in the mean and "
            f"{percent(group['fall_at_most'])} in each: {state}{' by ' + ', '.join(deep) if deep else ''}; "
            f"mean fall {percent(mean)} points, deepest {percent(max(falls.values()))}."
        )
    slow = max(v["seconds"] for v in values)
    state = "reached" if slow <= group["seconds_at_most"] else "missed"
    lines.append(f"- Quick measurement included, at most {group['seconds_at_most']} s: {state}; slowest {slow:.0f} s.")
    return lines
