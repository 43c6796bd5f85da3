"""Make the measured runs of results.toml and render docs/reference/results.md from their scores.

    python benchmarks/results.py              make what is missing, then render
    python benchmarks/results.py --render     only render what is there
    python benchmarks/results.py --only methods-canvas/uce --only elastic-canvas    make these, then render

The runs lie in .results/ (not committed); of each run the scores, the seconds and the size of the machine are kept in
docs/reference/results/<group>/<run>.json, and the page is rendered from these files alone. What is kept is not made
again; delete its file for that. How a group is made and rendered is in the module of its kind under measured/.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from typing import Any

from measured import composition, continual, digits, elastic, methods, runs
from measured.making import ROOT

PAGE = ROOT / "docs/reference/results.md"
KINDS: dict[str, Any] = {
    "runs": runs,
    "elastic": elastic,
    "composition": composition,
    "methods": methods,
    "continual": continual,
    "digits": digits,
}


def groups() -> list[dict[str, Any]]:
    """Return the groups of results.toml in order."""
    return list(tomllib.loads((ROOT / "benchmarks/results.toml").read_text())["group"])


def chosen(only: list[str]) -> list[tuple[dict[str, Any], str]]:
    """Return the runs to make, each as its group and its name: all, or those that are asked for.

    Args:
        only: ``GROUP``, ``GROUP/NAME``, or the beginning of such a name up to ``--``.
    """
    every = {
        f"{group['name']}/{name}": (group, name) for group in groups() for name in KINDS[group["kind"]].parts(group)
    }

    def means(asked: str, run: str) -> bool:
        return run == asked or run.startswith((f"{asked}/", f"{asked}--"))

    for asked in only:
        if not any(means(asked, run) for run in every):
            raise SystemExit(f"there is no {asked!r}; known: {', '.join(every)}")
    return [pair for run, pair in every.items() if not only or any(means(asked, run) for asked in only)]


def render() -> str:
    lines = [
        "# Results",
        "",
        "Rendered by `make results` from the files in `docs/reference/results/`; nothing is typed by hand. Intervals",
        "are 95 %: Wilson for UA, MOVER for IRA and CRA, Newcombe's paired method for their changes. UA and accuracies",
        "in %; seconds are wall time of the run with its quick measurement. Images of different prompts share their",
        "seeds, the first noise; the intervals do not count that.",
    ]
    for group in groups():
        lines += ["", f"## {group['title']}", "", *group["text"].strip().splitlines(), ""]
        lines += KINDS[group["kind"]].render(group) or ["Not measured yet."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="only render what is there")
    parser.add_argument("--check", action="store_true", help="fail when the page is not what the files say")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP[/NAME]", help="make these; repeatable")
    options = parser.parse_args()
    if not options.render and not options.check:
        for group, name in chosen(options.only):
            KINDS[group["kind"]].make(group, name)
    page = render()
    if options.check:
        sys.exit(0 if PAGE.read_text() == page else f"{PAGE.name} is not what the files say; run: make results")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
