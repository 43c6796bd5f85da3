"""``vu explain CODE``: the page of an error code."""

from __future__ import annotations

import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from vu_cli.command import Command
from vu_cli.options import shared
from vu_cli.session import Page
from vu_core import ConfigError, did_you_mean

_BEGINS = re.compile(r"\s*(\||([-*]|#+|\d+\.)(\s|$))")
"""What begins a line of its own in a page: a row of a table, an item, a heading; not ``3.5 GB`` or ``**bold**``."""


def pages_folder() -> Path:
    """Return where the pages lie: beside this file in an installed wheel, under ``docs/`` in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "error_pages"
    return installed if installed.is_dir() else here.parent / "docs" / "errors"


def known_codes() -> tuple[str, ...]:
    """Return the codes that have a page."""
    return tuple(sorted(path.stem for path in pages_folder().glob("VU-*.md")))


def _complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(code) for code in known_codes() if code.startswith(incomplete.upper())]


EPILOG = """\b
Example:
  vu explain VU-C001
"""


@click.command(cls=Command, short_help="Explain an error code.", epilog=EPILOG)
@click.argument("code", shell_complete=_complete)
@shared()
def explain(code: str) -> Page:
    """Explain an error code: what happened, an example, and what to do."""
    wanted = code.strip().upper()
    wanted = wanted if wanted.startswith("VU-") else f"VU-{wanted}"
    if wanted not in known_codes():
        raise ConfigError(
            "VU-C124",
            f"There is no error code '{code}'.{_hint(wanted)}",
            "Codes look like VU-C001; the message of an error names its own. Plugins of others document theirs.",
            where="vu explain",
        )
    text = (pages_folder() / f"{wanted}.md").read_text(encoding="utf-8").strip()
    title = text.splitlines()[0].removeprefix("# ").removeprefix(f"{wanted}: ")
    return Page(_plain(text), {"code": wanted, "title": title, "text": text})


def _hint(wanted: str) -> str:
    begun = [code for code in known_codes() if code.startswith(wanted)]
    return f" Codes that begin so: {', '.join(begun)}." if begun else did_you_mean(wanted, known_codes())


def _plain(markdown: str) -> str:
    """Return a page without the marks that only a browser needs: code is set in, a paragraph is one line."""
    lines: list[str] = []
    code = goes_on = False
    for line in markdown.splitlines():
        if line.startswith("```"):
            code, goes_on = not code, False
        elif code:
            lines.append(f"    {line}".rstrip())
        elif goes_on and line.strip() and not _BEGINS.match(line):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.lstrip("# ") if line.startswith("#") else line)
            goes_on = bool(line.strip()) and not line.startswith(("#", "|"))
    return "\n".join(lines)
