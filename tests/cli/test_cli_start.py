"""Help, lists and completion start fast because they import nothing heavy."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "diffusers", "transformers", "accelerate", "peft")
LINES = [
    ["--help"],
    ["--version"],
    ["list-plugins"],
    ["list-plugins", "--json"],
    ["unlearn", "--help"],
    ["measure", "--help"],
    ["generate", "--help"],
    ["tune-scale", "--help"],
    ["compose", "--help"],
    ["revoke", "--help"],
    ["export", "--help"],
    ["tune-scale", "nowhere", "--target", "ua=0.9"],
    ["compare", "--help"],
    ["cache", "list"],
    ["explain", "VU-C121"],
    ["unlearn", "--metod", "x"],
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_light_command_lines_import_nothing_heavy(line, environment_of):
    program = (
        "import sys\nfrom vu_cli.main import run\nrun(sys.argv[1:])\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *line], capture_output=True, text=True, check=True, env=environment_of()
    )
    assert done.stdout.splitlines()[-1] == "LOADED"


def complete(environment, words: str) -> list[str]:
    variables = {"_VU_COMPLETE": "zsh_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    program = (
        "import sys\nfrom vu_cli.main import run\n"
        "try:\n    run([])\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**environment, **variables}
    )
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "LOADED"
    return lines


CODE = """
from vu_core import hookimpl

@hookimpl
def vu_register_unlearners(register):
    register("zebra", "nowhere:Zebra", summary="a striped method", aliases=("quagga",))

@hookimpl
def vu_register_commands(register):
    register("zoo", "nowhere:zoo", summary="show the animals")
"""


def test_completion_offers_commands_flags_and_registered_names_without_importing_targets(distribution, environment_of):
    environment = environment_of(distribution("zebras", "zebras", CODE))
    assert "unlearn" in complete(environment, "vu unl")
    assert "zoo" in complete(environment, "vu zo")
    assert "--resume" in complete(environment, "vu unlearn --res")
    assert complete(environment, "vu unlearn --method ze")[1] == "zebra"
    assert "quagga" in complete(environment, "vu describe qua")


def test_completion_scripts_are_clicks_own(environment_of):
    done = subprocess.run(
        [sys.executable, "-c", "from vu_cli.main import run; run([])"],
        capture_output=True,
        text=True,
        check=True,
        env={**environment_of(), "_VU_COMPLETE": "bash_source"},
    )
    assert "_VU_COMPLETE=bash_complete" in done.stdout


def test_without_a_command_the_help_is_shown(vu):
    done = vu()
    assert done.status == 0
    assert done.out.startswith("Usage: vu ")
    assert all(name in done.out for name in ("unlearn", "list-plugins", "explain", "cache"))
    assert done.err == ""


def test_the_version_is_that_of_the_core(vu):
    import vu_core

    assert vu("--version").out == f"vu {vu_core.__version__}\n"
