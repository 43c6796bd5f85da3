"""What the Tab key offers; imports no plugin target."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

from vu_cli import session

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names_of(kind: str | None = None, *, paths: bool = False) -> Complete:
    """Return a completion of registered names and aliases.

    Args:
        kind: the plugin kind, or ``None`` for all.
        paths: offer files and folders too, once the word looks like a path (models and data may be folders).
    """

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if paths and incomplete.startswith((".", "/", "~")):
            return [CompletionItem(incomplete, type="file")]
        offered = {
            name: entry.summary
            for entry in session.of(context).plugins.registry.entries(kind)
            if kind is not None or entry.kind != "recipe"
            for name in entry.names
            if name.startswith(incomplete)
        }
        return [CompletionItem(name, help=summary) for name, summary in sorted(offered.items())]

    return complete
