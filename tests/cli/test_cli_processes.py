"""Real processes: bad configurations, Ctrl-C once and twice, a reader that goes away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BAD = [
    ("unknown key", "[run]\nsede = 1\n", [], 2, ["VU-C001", "run.sede", "bad.toml:2", "seed"]),
    ("no TOML", "[run\n", [], 2, ["VU-C002", "bad.toml:1"]),
    (
        "wrong type, twice",
        '[run]\nseed = "x"\nthreads = 0\n',
        [],
        2,
        ["run.seed", "bad.toml:2", "run.threads", "bad.toml:3"],
    ),
    ("unknown method", "", ["--method", "fade-spars"], 3, ["fade-spars", "fade-sparse"]),
    ("unknown flag", "", ["--methd", "fade"], 2, ["VU-C122", "--method"]),
]


@pytest.mark.parametrize(("name", "text", "flags", "status", "fragments"), BAD, ids=[row[0] for row in BAD])
def test_bad_configurations_as_processes(process, tmp_path, name, text, flags, status, fragments):
    (tmp_path / "bad.toml").write_text(text)
    method = [] if "--method" in flags else ["--method", "toy"]
    done = process("unlearn", "-c", "bad.toml", *method, *flags, path=toys(tmp_path))
    assert done.returncode == status, done.stderr
    for fragment in fragments:
        assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.toml", "site"]


TOYS = """
import time
from pathlib import Path
import attrs, click
from vu_core import Source, Table, hookimpl, pipeline

@hookimpl
def vu_register_unlearners(register):
    register("toy", "toy_plugin:Toy", summary="does nothing")

@hookimpl
def vu_register_commands(register):
    register("sleep", "toy_plugin:sleep", summary="sleeps for a minute")
    register("long", "toy_plugin:long", summary="prints many lines")

@attrs.frozen
class Config: ...

class Toy:
    Config = Config
    source = Source("none", "", "own")
    defaults = {}
    def __init__(self, config): ...
    def unlearn(self, model, data, run): ...

@click.command()
@click.option("--cleanup", type=float, default=0.0)
def sleep(cleanup):
    folder = Path("runs/0123456789ab")
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text("")
    click.get_current_context().obj.interruption.folder = folder
    Path("ready").write_text("")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path("cleaning").write_text("")
        time.sleep(cleanup)
        raise

@click.command()
def long():
    return Table("", ("line",), tuple((f"line {number}",) for number in range(1_000)))
"""


def toys(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    info = site / "toy_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vu.plugins]\ntoy = toy_plugin\n")
    (site / "toy_plugin.py").write_text(TOYS)
    return site


def start(tmp_path, environment_of, *line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vu_cli", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment_of(toys(tmp_path)),
    )


def wait_for(path: Path, child: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
def test_ctrl_c_ends_with_one_line_and_130(tmp_path, environment_of):
    child = start(tmp_path, environment_of, "sleep")
    wait_for(tmp_path / "ready", child)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert err == "interrupted; continue with: vu unlearn --resume runs/0123456789ab\n"
    assert out == ""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process there")
def test_a_second_ctrl_c_ends_at_once_with_the_same_line(tmp_path, environment_of):
    child = start(tmp_path, environment_of, "sleep", "--cleanup", "60")
    wait_for(tmp_path / "ready", child)
    child.send_signal(signal.SIGINT)
    wait_for(tmp_path / "cleaning", child)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=50)
    assert child.returncode == 130
    assert err.strip() == "interrupted; continue with: vu unlearn --resume runs/0123456789ab"
    assert out == ""


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way there")
def test_a_reader_that_goes_away_is_no_error(tmp_path, environment_of):
    child = start(tmp_path, environment_of, "long")
    assert child.stdout is not None
    assert child.stderr is not None
    with child:
        child.stdout.close()  # long before there is anything to read
        assert child.stderr.read() == ""
    assert child.returncode == 141
