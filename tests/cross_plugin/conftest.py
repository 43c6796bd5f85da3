from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

Ask = Callable[[dict[str, str]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def plain_diffusers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """One process for all cases of a file that knows nothing of vu."""
    from safetensors.torch import load_file

    results = tmp_path_factory.mktemp("results")
    program = Path(__file__).with_name("plain_diffusers.py")
    command = [sys.executable, str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, cwd=results, **pipes) as process:  # type: ignore[call-overload]

        def ask(asked: dict[str, str]) -> dict[str, torch.Tensor]:
            result = results / "result.safetensors"
            process.stdin.write(json.dumps({**asked, "result": str(result)}) + "\n")
            process.stdin.flush()
            assert process.stdout.readline().strip() == "done"
            return dict(load_file(str(result)))

        yield ask
        process.stdin.close()
