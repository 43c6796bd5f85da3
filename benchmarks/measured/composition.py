"""Kind ``composition``: concepts that were forgotten one by one, in one edit; and one of them taken out again."""

from __future__ import annotations

import json
import shutil
from typing import Any

from measured.making import KEPT, RUNS, keep, machine, shown, unlearn, vu
from measured.page import kept, percent, score, score_cell, target, under


def parts(group: dict[str, Any]) -> dict[str, list[str]]:
    """Return what is composed: everything at once."""
    return {"composed": group["forget"]}


def make(group: dict[str, Any], name: str) -> None:
    """Forget each concept by itself, compose, revoke; everything is measured with the seeds of the group."""
    place = KEPT / group["name"] / f"{name}.json"
    if place.exists():
        return
    home = RUNS / group["name"]
    runs = []
    for concept in group["forget"]:
        runs.append(home / concept.replace(":", "-"))
        unlearn(runs[-1], "--method", group["method"], "--forget", concept, "--seed", str(group["seed"]))
    composed, rest = home / "composed", home / "revoked"
    if not (composed / "interference.json").exists():
        shutil.rmtree(composed, ignore_errors=True)
        seeds = ["--seeds", str(group["seeds"])]
        vu("compose", *map(shown, runs), *seeds, "--out", shown(composed), "--quiet")
    shutil.rmtree(rest, ignore_errors=True)
    revoked = vu("revoke", shown(composed), group["revoke"], "--out", shown(rest), "--quiet", "--json")
    value = {
        "trained": [
            f"vu unlearn --method {group['method']} --forget {c} --seed {group['seed']}" for c in group["forget"]
        ],
        "command": f"vu compose {' '.join('RUN' for _ in runs)} --seeds {group['seeds']}",
        "revoked": f"vu revoke RUN {group['revoke']}",
        "edit_bytes": (composed / "edit.safetensors").stat().st_size,
        "machine": machine(composed),
        "full": json.loads((composed / "scores.json").read_text()),
        "interference": json.loads((composed / "interference.json").read_text()),
        "after_revocation": json.loads((rest / "scores.json").read_text()),
        "back": json.loads(revoked)[1]["scores"],
    }
    keep(place, value)


def render(group: dict[str, Any]) -> list[str]:
    """Return the lines of the group below its text; none when nothing was measured."""
    values = kept(group)
    if not values:
        return []
    (value,) = values
    matrix = value["interference"]
    names = [each["name"] for each in matrix["scores"] if each["direction"] == "up" and each["name"] != "ua"]
    rows = [("untouched model", matrix["untouched"])]
    rows += [(f"`{edit['forget'][0]}` alone", edit["alone"]) for edit in matrix["edits"]]
    rows += [("**all three**", matrix["all_together"])]
    rows += [(f"all without `{edit['forget'][0]}`", edit["all_without_it"]) for edit in matrix["edits"]]
    lines = [f"`{value['command']}`, {value['edit_bytes'] / 1000:.0f} kB.", ""]
    lines += [*under(value["full"], value["machine"]), "| edit | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for title, scores in rows:
        lines.append(f"| {title} | " + " | ".join(percent(scores[name]) for name in names) + " |")
    lines += ["", "With intervals, all three together: "]
    lines[-1] += "; ".join(f"{name} {score_cell(score(value['full'], name))}" for name in names) + "."
    return [*lines, "", *_verdict(group, value)]


def _verdict(group: dict[str, Any], value: dict[str, Any]) -> list[str]:
    uas = {concept: score(value["full"], f"ua[{concept}]")["after"] for concept in group["forget"]}
    low = [f"{concept} {percent(ua)} %" for concept, ua in uas.items() if ua < group["ua_at_least"]]
    lines = [target(f"UA of each concept at least {percent(group['ua_at_least'])} %", low)]
    for name in ("ira", "cra"):
        fall = -score(value["full"], name)["change"]
        deep = [f"{percent(fall)} points"] if fall > group["fall_at_most"] + 1e-9 else []
        limit = f"{name.upper()} falls by at most {percent(group['fall_at_most'])} points ({percent(fall)})"
        lines.append(target(limit, deep))
    ua = next(entry for entry in value["back"] if entry["name"] == f"ua[{group['revoke']}]")
    distance = abs(ua["without"] - ua["untouched"])
    limit = group["back_within"]
    text = f"After `{value['revoked']}`, {group['revoke']} is back within {percent(limit)} points of the base"
    now, once = percent(1 - ua["without"]), percent(1 - ua["untouched"])
    found = f"recognised on {now} % of its images, before all edits on {once} %"
    lines.append(target(f"{text} ({found})", [f"{percent(distance)} points"] if distance > limit + 1e-9 else []))
    return lines
