"""Streams that cannot be written, and widths that are none."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vu_cli import output
from vu_cli.render import FILE_WIDTH, console
from vu_core import RecordError

FULL = Path("/dev/full")
only_posix = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def shell(line: str, tmp_path: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = line.replace("vu", f"{shlex.quote(sys.executable)} -m vu_cli", 1)
    return subprocess.run(
        ["sh", "-c", words], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )


@only_posix
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("vu list-plugins > /dev/full", "No space left on device"),
        ("vu list-plugins --json > /dev/full", "No space left on device"),
        ("vu --help > /dev/full", "No space left on device"),
        ("vu nonsense --json > /dev/full", "There is no command"),
        ("vu list-plugins >&-", "it is closed"),
        ("vu --version >&-", "it is closed"),
    ],
)
def test_results_that_cannot_be_printed_are_an_error_in_plain_words(line, why, tmp_path, environment_of):
    done = shell(line, tmp_path, environment_of())
    assert done.returncode == (2 if "nonsense" in line else 7), done.stderr
    assert why in done.stderr
    assert "VU-R122" in done.stderr
    for word in ("Traceback", "Exception ignored", "bug"):
        assert word not in done.stderr
    assert not (tmp_path / "cache").exists()


@only_posix
@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-"])
def test_who_cannot_read_errors_still_gets_results_and_status(redirection, tmp_path, environment_of):
    done = shell(f"vu explain c120 {redirection}", tmp_path, environment_of())
    assert done.returncode == 0
    assert done.stdout.startswith("VU-C120: ")
    assert shell(f"vu nonsense {redirection}", tmp_path, environment_of()).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way there")
def test_a_reader_that_goes_away_while_help_is_printed_is_no_error(tmp_path, environment_of):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        done = subprocess.run(
            [sys.executable, "-m", "vu_cli", "--help"],
            stdout=broken,
            stderr=subprocess.PIPE,
            check=False,
            env=environment_of(),
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_nothing_is_begun_whose_result_could_not_be_printed(vu, monkeypatch):
    from vu_core import pipeline

    monkeypatch.setattr(pipeline, "execute", lambda *_args, **_settings: pytest.fail("too late"))
    monkeypatch.setattr(sys, "stdout", None)
    done = vu("unlearn")
    assert done.status == 7
    assert "VU-R122" in done.err


def test_characters_that_a_stream_does_not_know_are_spelt_out(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with output.guarded():
        print("naïve", flush=True)
    assert raw.getvalue() == b"na\\xefve\n"


def test_a_closed_stream_is_told_once_and_remembered(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with output.guarded():
        for _ in range(2):
            with pytest.raises(RecordError, match="closed file"):
                print("text")


@pytest.mark.parametrize("columns", ["0", "-5", "wide", ""])
def test_a_width_that_is_none_is_ignored(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert console(io.StringIO()).width == FILE_WIDTH


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_terminal_with_a_useless_columns_shows_everything(environment_of, tmp_path):
    import pty

    main, side = pty.openpty()
    environment = {**environment_of(), "COLUMNS": "0", "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen([sys.executable, "-m", "vu_cli", "explain", "c120"], stdout=side, env=environment) as child:
        os.close(side)
        shown = b""
        while chunk := _read(main):
            shown += chunk
    os.close(main)
    assert child.returncode == 0
    assert b"The command line cannot be understood" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how a terminal says that everyone else has left
        return b""
