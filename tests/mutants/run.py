"""Apply wrong formulas one at a time, in a copy of the tree; each must turn a test red: ``make mutants``.

A mutant is listed in ``mutants.toml`` beside this file: a file, a text that occurs in it exactly once, the wrong text,
and the tests that must notice. Survivors are printed at the end, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import tomllib
from pathlib import Path

import attrs
from red import is_red

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")


@attrs.frozen
class Mutant:
    """One wrong formula.

    Args:
        name: what is wrong, in words.
        file: path from the root of the repository.
        old: text of the file, exactly once in it.
        new: what stands there instead.
        tests: arguments for pytest: files, ``file::test`` or ``-k`` with an expression.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = attrs.field(converter=tuple)

    def apply(self, root: Path) -> str:
        """Write the wrong text into the tree at ``root`` and return the right one.

        Raises:
            ValueError: when the old text does not occur exactly once.
        """
        path = root / self.file
        right = path.read_text(encoding="utf-8")
        if right.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} contains the text to replace {right.count(self.old)} times")
        path.write_text(right.replace(self.old, self.new), encoding="utf-8")
        return right


def load() -> list[Mutant]:
    """Read the list beside this file."""
    path = Path(__file__).with_name("mutants.toml")
    return [Mutant(**row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]]


def survivors(mutants: list[Mutant], root: Path) -> list[Mutant]:
    """Apply each mutant to the tree at ``root``, run its tests, and put the file back."""
    alive = []
    for number, mutant in enumerate(mutants, 1):
        right = mutant.apply(root)
        try:
            red, _ = is_red(root, mutant.tests)
        finally:
            (root / mutant.file).write_text(right, encoding="utf-8")
        print(f"[{number}/{len(mutants)}] {'killed  ' if red else 'SURVIVED'}  {mutant.name}", flush=True)
        if not red:
            alive.append(mutant)
    return alive


def main() -> int:
    """Check that the tests are green without a mutant, then apply all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", help="only mutants whose name contains this text")
    options = parser.parse_args()
    mutants = [mutant for mutant in load() if options.k in mutant.name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        shutil.copytree(ROOT, root, ignore=NOT_COPIED)
        files = sorted({test for mutant in mutants for test in mutant.tests if "/" in test})
        print(f"without a mutant: {' '.join(files)}", flush=True)
        red, tail = is_red(root, tuple(files))
        if red:
            print(f"red already:\n{tail}")
            return 1
        alive = survivors(mutants, root)
    print(f"{len(mutants) - len(alive)} of {len(mutants)} mutants killed")
    for mutant in alive:
        print(f"survived: {mutant.name} ({mutant.file}: {mutant.old!r} -> {mutant.new!r})")
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
