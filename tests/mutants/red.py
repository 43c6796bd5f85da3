"""Run tests in another tree and tell whether one failed."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

SECONDS = 1800
"""After this long a test counts as hanging, which is red."""


def is_red(root: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Run the tests in the tree at ``root``; return whether one failed, and the end of the output.

    Each call is a process of its own, forked from a server that has imported torch and nothing of the project.

    Raises:
        RuntimeError: when pytest ran no test at all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["attrs", "numpy", "pytest", "torch"])
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        process = context.Process(target=run_pytest, args=(str(root), tests, str(output)))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return True, f"{tests} did not end within {SECONDS} s"
        tail = "\n".join(output.read_text(errors="replace").splitlines()[-15:])
    if process.exitcode in (0, 1, 2):  # 2: the tests could not even be imported
        return process.exitcode > 0, tail
    raise RuntimeError(f"pytest ended with status {process.exitcode} for {tests}:\n{tail}")


def run_pytest(root: str, tests: tuple[str, ...], output: str) -> None:
    """Become a process that imports the project from ``root`` and runs the tests there."""
    folders = [root, *map(str, sorted(Path(root).glob("plugins/*/src")))]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path[:0] = folders
    os.chdir(root)
    with Path(output).open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
