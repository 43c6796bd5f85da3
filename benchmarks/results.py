"""Make the measured runs of results.toml and render docs/reference/results.md from their scores.

    python benchmarks/results.py              make what is missing, then render
    python benchmarks/results.py --render     only render what is there

The runs lie in .results/ (not committed); of each run the scores, the seconds and the size of the machine are kept in
docs/reference/results/<group>/<run>.json, and the page is rendered from these files alone. How a group is made and
rendered is in the module of its kind under measured/.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from typing import Any

from measured import composition, elastic, runs
from measured.making import ROOT

PAGE = ROOT / "docs/reference/results.md"
KINDS: dict[str, Any] = {"runs": runs, "elastic": elastic, "composition": composition}


def groups() -> list[dict[str, Any]]:
    """Return the groups of results.toml in order."""
    return list(tomllib.loads((ROOT / "benchmarks/results.toml").read_text())["group"])


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
    options = parser.parse_args()
    if not options.render and not options.check:
        for group in groups():
            KINDS[group["kind"]].make(group)
    page = render()
    if options.check:
        sys.exit(0 if PAGE.read_text() == page else f"{PAGE.name} is not what the files say; run: make results")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
