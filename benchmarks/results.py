"""Make the measured runs of results.toml and render docs/reference/results.md from their scores.

    python benchmarks/results.py              make what is missing, then render
    python benchmarks/results.py --render     only render what is there

The runs lie in .results/ (not committed); of each run the scores, the seconds and the size of the machine are kept in
docs/reference/results/<group>/<run>.json, and the page is rendered from these files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / ".results"
KEPT = ROOT / "docs/reference/results"
PAGE = ROOT / "docs/reference/results.md"
VU = Path(sys.executable).with_name("vu")


def vu(*words: str, cache: Path) -> str:
    environment = {**os.environ, "VU_CACHE": str(cache)}
    done = subprocess.run([str(VU), *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"vu {' '.join(words)} ended with status {done.returncode}")
    return done.stdout


def make(group: dict[str, Any], method: str, concept: str) -> None:
    """Run, measure with few seeds (timed, empty cache), measure with many seeds, keep the numbers."""
    name = f"{method}--{concept.replace(':', '-')}"
    kept, folder = KEPT / group["name"] / f"{name}.json", RUNS / group["name"] / name
    if kept.exists():
        return
    command = ["unlearn", "--method", method, "--forget", concept, "--seed", str(group["seed"])]
    if not (folder / "scores.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        cold = RUNS / "cold-cache"
        shutil.rmtree(cold, ignore_errors=True)
        started = time.monotonic()
        vu(*command, "--out", str(folder.relative_to(ROOT)), "--quiet", cache=cold)
        (folder.parent / f"{name}.seconds").write_text(f"{time.monotonic() - started:.1f}")
    full_command = ["measure", str(folder.relative_to(ROOT)), "--set", f"measure.seeds={group['seeds']}", "--json"]
    full = json.loads(vu(*full_command, cache=RUNS / "cache"))
    environment = json.loads((folder / "environment.json").read_text())
    kept.parent.mkdir(parents=True, exist_ok=True)
    value = {
        "command": "vu " + " ".join(command),
        "measured": f"vu measure RUN --set measure.seeds={group['seeds']}",
        "seed": group["seed"],
        "seconds": float((folder.parent / f"{name}.seconds").read_text()),
        "edit_bytes": (folder / "edit.safetensors").stat().st_size,
        "machine": {key: environment[key] for key in ("cores", "memory_gib", "threads") if key in environment},
        "quick": json.loads((folder / "scores.json").read_text()),
        "full": full,
    }
    kept.write_text(json.dumps(value, indent=1) + "\n")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def score(card: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in card["scores"] if entry["name"] == name)


def row(value: dict[str, Any]) -> str:
    cells = [f"`{value['command'].removeprefix('vu unlearn ')}`"]
    for name in ("ua", "ira", "cra"):
        entry = score(value["full"], name)
        interval = "" if entry["ci_low"] is None else f" [{percent(entry['ci_low'])}, {percent(entry['ci_high'])}]"
        cells.append(f"{percent(entry['before'])} → **{percent(entry['after'])}**{interval}, n {entry['n']}")
    cells += [f"{value['seconds']:.0f}", f"{value['edit_bytes'] / 1000:.0f}"]
    return "| " + " | ".join(cells) + " |"


def verdict(group: dict[str, Any], values: list[dict[str, Any]]) -> list[str]:
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


def render() -> str:
    lines = [
        "# Results",
        "",
        "Rendered by `make results` from the files in `docs/reference/results/`; nothing is typed by hand. Intervals",
        "are 95 %: Wilson for UA, MOVER for IRA and CRA, Newcombe's paired method for their changes. UA and accuracies",
        "in %; seconds are wall time of the run with its quick measurement. Images of different prompts share their",
        "seeds, the first noise; the intervals do not count that.",
    ]
    for group in tomllib.loads((ROOT / "benchmarks/results.toml").read_text())["group"]:
        files = sorted((KEPT / group["name"]).glob("*.json"))
        lines += ["", f"## {group['title']}", "", *group["text"].strip().splitlines()]
        if not files:
            lines += ["", "Not measured yet."]
            continue
        values = [json.loads(file.read_text()) for file in files]
        machine = ", ".join(f"{key.replace('_', ' ')} {v}" for key, v in values[0]["machine"].items())
        lines += ["", f"Split: {values[0]['full']['split']}. Machine: {machine}.", ""]
        lines += ["| `vu unlearn` | UA | IRA | CRA | seconds | edit, kB |", "|---|---|---|---|---|---|"]
        lines += [*map(row, values), "", *verdict(group, values)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="only render what is there")
    parser.add_argument("--check", action="store_true", help="fail when the page is not what the files say")
    options = parser.parse_args()
    if not options.render and not options.check:
        for group in tomllib.loads((ROOT / "benchmarks/results.toml").read_text())["group"]:
            for method in group["methods"]:
                for concept in group["forget"]:
                    make(group, method, concept)
    page = render()
    if options.check:
        sys.exit(0 if PAGE.read_text() == page else f"{PAGE.name} is not what the files say; run: make results")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
