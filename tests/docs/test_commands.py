"""Every command line on a page is one that `vu` accepts: the command, its options, and the plugins it names."""

import re
import shlex
from pathlib import Path

import click
import pytest

from vu_cli.group import cli
from vu_cli.session import Session
from vu_core import VuError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
BLOCK = re.compile(r"```(?:console|bash|sh)\n(.*?)```", re.S)
SESSION = Session()
KINDS = {"--method": "unlearner", "--parameters": "parameters", "--weighting": "weighting", "--to": "exporter"}

OF_THE_TUTORIAL = {
    name
    for plugin in ROOT.glob("docs/tutorial/*/src/*/plugin.py")
    for name in re.findall(r'register\(\s*"([\w-]+)"', plugin.read_text(encoding="utf-8"))
}
"""Names that its reader makes, which are not installed here."""


def commands(page: Path) -> list[str]:
    """Return the lines of a page that begin with ``vu``, in blocks of a shell; continued lines are joined."""
    blocks = (block.replace("\\\n", " ") for block in BLOCK.findall(page.read_text(encoding="utf-8")))
    lines = (line.removeprefix("$ ").strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line.startswith("vu ")]


FOUND = [(page, line) for page in PAGES for line in commands(page)]


def parse(line: str) -> None:
    """Parse a command line as `vu` does, without running anything."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index("|")] if "|" in words else words
    context = click.Context(cli, info_name="vu", obj=SESSION)
    if words[0].startswith("-"):
        return
    _, command, rest = cli.resolve_command(context, words)
    while isinstance(command, click.Group) and rest:
        _, command, rest = command.resolve_command(click.Context(command, parent=context), rest)
    command.make_context(words[0], rest, parent=context)
    for flag, kind in KINDS.items():
        for name in (words[place + 1] for place, word in enumerate(words) if word == flag):
            if name.islower() and name not in OF_THE_TUTORIAL:
                SESSION.plugins.registry.get(kind, name)


@pytest.mark.parametrize(("page", "line"), FOUND, ids=[f"{page.relative_to(ROOT)}-{line}" for page, line in FOUND])
def test_the_command_line_is_accepted(page: Path, line: str) -> None:
    parse(line)


def value_of(flag: str, words: list[str]) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def check_data(line: str) -> None:
    """A model that is not the default says nothing about the data: without ``--data`` the run would be refused."""
    words = shlex.split(line, comments=True)[1:]
    if words[0] != "unlearn" or {"-c", "--config", "--resume", "--recipe", "--data"} & set(words):
        return
    model = value_of("--model", words)
    usual = SESSION.plugins.registry.default("model")
    assert model is None or (usual is not None and model in usual.names), f"names no data: {line}"


@pytest.mark.parametrize(("page", "line"), FOUND, ids=[f"{page.relative_to(ROOT)}-{line}" for page, line in FOUND])
def test_a_run_on_another_model_names_its_data(page: Path, line: str) -> None:
    check_data(line)


def test_a_run_without_data_would_be_noticed() -> None:
    check_data("vu unlearn --model canvas-diffusion --forget style:neon")
    with pytest.raises(AssertionError, match="names no data"):
        check_data("vu unlearn --model canvas-vit --method scrub --forget object:star")


def test_there_are_command_lines_to_look_at() -> None:
    assert len(FOUND) > 15


@pytest.mark.parametrize(
    "line",
    [
        "vu unlern",
        "vu unlearn --methd fade",
        "vu measure",
        "vu unlearn --method fate",
        "vu generate RUN prompt --seed x",
    ],
)
def test_a_wrong_line_would_be_noticed(line: str) -> None:
    with pytest.raises((click.ClickException, VuError)):
        parse(line)
