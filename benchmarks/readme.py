"""Run what `make demo` runs and put its output and images into the README.

python benchmarks/readme.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ["unlearn", "--method", "fade-sparse", "--seed", "42"]
IMAGE = ROOT / "docs/images/first-run.png"
SIZE, GAP, MARGIN = 128, 6, 56


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        environment = {**os.environ, "VU_CACHE": str(Path(folder) / "cache"), "NO_COLOR": "1", "COLUMNS": "100"}
        command = [str(Path(sys.executable).with_name("vu")), *COMMAND, "--out", str(run), "--set", "measure.samples=8"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        shown = done.stdout[done.stdout.index("Run ") :].replace(str(run), "runs/<id>")
        shown = re.sub(r"\nRun \w+", "\nRun <id>", "\n" + shown).strip()
        draw_grid(sorted(run.glob("images/*-before.png")))
    block = f"```console\n$ vu {' '.join(COMMAND)}\n{shown}\n```\n\n![before and after](docs/images/first-run.png)\n"
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    start, end = "<!-- demo -->\n", "<!-- /demo -->"
    head, rest = text.split(start)
    readme.write_text(head + start + block + end + rest.split(end)[1], encoding="utf-8")


def draw_grid(befores: list[Path]) -> None:
    """Put images before the edit into an upper row and the same after it into a lower row."""
    grid = Image.new("RGB", (MARGIN + len(befores) * (SIZE + GAP), 2 * (SIZE + GAP)), "white")
    pen = ImageDraw.Draw(grid)
    for row, word in enumerate(("before", "after")):
        pen.text((4, row * (SIZE + GAP) + SIZE // 2), word, fill="black")
        for column, before in enumerate(befores):
            image = Image.open(before.with_name(before.name.replace("before", word)))
            place = (MARGIN + column * (SIZE + GAP), row * (SIZE + GAP))
            grid.paste(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS), place)
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    grid.save(IMAGE, optimize=True)


if __name__ == "__main__":
    main()
