"""Kind ``elastic``: one adapter that was trained for several ranks, and what is extracted from it."""

from __future__ import annotations

import json
import shutil
from typing import Any

from measured.making import KEPT, RUNS, keep, machine, measure, shown, unlearn, vu
from measured.page import kept, percent, score, score_cell, target, under


def parts(group: dict[str, Any]) -> dict[str, list[str]]:
    """Return how each sub-adapter is extracted, by its name."""
    return dict(group["extract"])


def make(group: dict[str, Any], name: str) -> None:
    """Train once for all; extract a sub-adapter and measure it in full."""
    folder, out = RUNS / group["name"] / "super", RUNS / group["name"] / name
    place = KEPT / group["name"] / f"{list(group['extract']).index(name)}-{name}.json"
    if place.exists():
        return
    extract = parts(group)[name]
    words = ["--method", "fade", "--parameters", "elastic-lora", "--forget", group["forget"]]
    words += ["--seed", str(group["seed"])]
    seconds = unlearn(folder, *words).seconds
    if not (out / "sub" / "README.md").exists():
        shutil.rmtree(out, ignore_errors=True)
        vu("extract", shown(folder), *extract, "--out", shown(out), "--quiet")
    search = out / "search.json"
    value = {
        "name": name,
        "trained": "vu unlearn " + " ".join(words),
        "command": f"vu extract RUN {' '.join(extract)}",
        "seconds": seconds,
        "edit_bytes": (out / "sub" / "edit.safetensors").stat().st_size,
        "machine": machine(folder),
        "full": measure(out / "sub", group["seeds"]),
        "search": json.loads(search.read_text()) if search.exists() else None,
    }
    keep(place, value)


def render(group: dict[str, Any]) -> list[str]:
    """Return the lines of the group below its text; none when nothing was measured."""
    values = kept(group)
    if not values:
        return []
    largest = next(value["edit_bytes"] for value in values if value["name"] == "maximal")
    lines = [f"Trained once, in {values[0]['seconds']:.0f} s: `{values[0]['trained']}`.", ""]
    lines += under(values[0]["full"], values[0]["machine"])
    lines += ["| sub-adapter | UA | IRA | CRA | edit, kB | share of the maximal |", "|---|---|---|---|---|---|"]
    for value in values:
        cells = [f"`{value['command']}`", *(score_cell(score(value["full"], name)) for name in ("ua", "ira", "cra"))]
        cells += [f"{value['edit_bytes'] / 1000:.0f}", f"{percent(value['edit_bytes'] / largest)} %"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *_searched(values)]
    return [*lines, *_verdict(group, values, largest)]


def _searched(values: list[dict[str, Any]]) -> list[str]:
    """Say what the search looked at and what it took."""
    for value in values:
        if value["search"]:
            search = value["search"]
            trials, chosen = search["trials"], next(each for each in search["trials"] if each["chosen"])
            front = sum(each["front"] for each in trials)
            scores = ", ".join(f"{name} {percent(after)} %" for name, after in chosen["scores"].items())
            return [
                f"The search tried {len(trials)} assignments of ranks on {search['split']} seeds, {front} of them on "
                f"the Pareto front, and took one of {chosen['bytes'] / 1000:.0f} kB ({scores} there).",
                "",
            ]
    return []


def _verdict(group: dict[str, Any], values: list[dict[str, Any]], largest: int) -> list[str]:
    judged = [value for value in values if value["name"] in group["judged"]]
    low = {value["name"]: score(value["full"], "ua")["after"] for value in judged}
    lines = [
        target(
            f"UA at least {percent(group['ua_at_least'])} % for {', '.join(low)}",
            [f"{name} {percent(ua)} %" for name, ua in low.items() if ua < group["ua_at_least"]],
        )
    ]
    for name in ("ira", "cra"):
        falls = {value["name"]: -score(value["full"], name)["change"] for value in judged}
        deep = [f"{n} {percent(fall)} points" for n, fall in falls.items() if fall > group["fall_at_most"] + 1e-9]
        limit = f"{name.upper()} falls by at most {percent(group['fall_at_most'])} points"
        lines.append(target(f"{limit} (deepest {percent(max(falls.values()))})", deep))
    share = next(value["edit_bytes"] for value in values if value["name"] == "minimal") / largest
    limit = group["smallest_at_most"]
    missed = [f"{percent(share)} %"] if share > limit else []
    return [*lines, target(f"The minimal file is at most {percent(limit)} % of the maximal one", missed)]
