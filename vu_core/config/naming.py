"""What ``--model X`` and ``--data X`` mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vu_core.errors import ConfigError, PluginError
from vu_core.registry import WORDS, Entry, Registry

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_name(registry: Registry, kind: str, text: str) -> tuple[Entry, str]:
    """Understand a model or data name: a registered name; else ``NAME=REF``; else a path; else a hub id (models).

    Returns:
        The entry, and the ref that the text itself carries (empty for a plain name).

    Raises:
        PluginError: no plugin has the name. ConfigError: no plugin, or more than one, takes the path or the hub id.
    """
    known = {name for entry in registry.entries(kind) for name in entry.names}
    if text in known:
        return registry.get(kind, text), ""
    name, equals, ref = text.partition("=")
    if equals and name in known:
        return registry.get(kind, name), ref
    path = Path(text).expanduser()
    if path.exists():
        return _claim(registry, kind, text, lambda plugin: bool(plugin.recognises(path)), "recognises this path"), str(
            path
        )
    if equals:
        return registry.get(kind, name), ref
    if kind == "model" and _HUB_ID.fullmatch(text):
        takes = "takes hub ids"
        return _claim(registry, kind, text, lambda plugin: bool(getattr(plugin, "takes_hub_ids", False)), takes), text
    if "/" in text or "\\" in text or text.startswith((".", "~")):
        problem = f"There is no file or folder '{text}'."
        raise ConfigError("VU-C006", problem, f"Check the path, or name the {WORDS.get(kind, kind)} plugin: NAME=REF.")
    return registry.get(kind, text), ""


def _claim(registry: Registry, kind: str, text: str, claims: Any, verb: str) -> Entry:
    """Return the one plugin that claims the text."""
    claiming: list[Entry] = []
    failed: list[str] = []
    for entry in registry.entries(kind):
        if not entry.usable:
            continue
        try:
            if claims(entry.load()):
                claiming.append(entry)
        except PluginError as error:
            failed.append(error.problem)
        except Exception as exc:  # noqa: BLE001  somebody else's plugin must not stop those that can read the path
            failed.append(f"'{entry.name}' failed to look at it: {type(exc).__name__}: {exc}.")
    if len(claiming) == 1:
        return claiming[0]
    word = WORDS.get(kind, kind)
    if claiming:
        names = [entry.name for entry in claiming]
        problem = f"More than one {word} plugin {verb}, '{text}': {', '.join(names)}."
        raise ConfigError("VU-C006", problem, f"Say which one: {' or '.join(f'{name}={text}' for name in names)}.")
    installed = ", ".join(registry.usable_names(kind)) or "none"
    problem = " ".join([f"No installed {word} plugin {verb}, '{text}'.", *failed])
    remedy = f"Installed {word} plugins: {installed}. Name one as NAME={text}, or install the one that reads it."
    published = sorted({owner for name, owner in registry.directory.get(kind, {}).items() if name not in installed})
    raise ConfigError("VU-C006", problem, remedy + (f" Published: {', '.join(published)}." if published else ""))
