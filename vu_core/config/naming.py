"""What ``--model X`` and ``--data X`` mean."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from vu_core.blame import asked
from vu_core.errors import ConfigError, PluginError, near_misses
from vu_core.registry import WORDS, Entry, Registry

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_name(registry: Registry, kind: str, text: str) -> tuple[Entry, str]:
    """Understand a model or data name: a registered name; else ``NAME=REF``; else a path; else a hub id (models).

    Returns:
        The entry, and the ref that the text itself carries (empty for a plain name).

    Raises:
        PluginError: no plugin has the name. ConfigError: no plugin, or more than one, takes the path or the hub id, or
            the path does not exist (``VU-C006``).
    """
    known = {name for entry in registry.entries(kind) for name in entry.names}
    if text in known:
        return registry.get(kind, text), ""
    name, equals, ref = text.partition("=")
    if equals and name in known:
        return registry.get(kind, name), ref
    path = existing(text)
    if path is not None:
        return _claim(registry, kind, text, lambda plugin: bool(plugin.recognises(path)), "recognises this path"), text
    if equals:
        return registry.get(kind, name), ref
    if kind == "model" and _HUB_ID.fullmatch(text) and not _is_beside(text):
        takes = "takes hub ids"
        return _claim(registry, kind, text, lambda plugin: bool(getattr(plugin, "takes_hub_ids", False)), takes), text
    if "/" in text or "\\" in text or text.startswith((".", "~")):
        raise _no_such_path(kind, text)
    try:
        return registry.get(kind, text), ""
    except PluginError as error:
        if error.code != "VU-P001" or text in registry.directory.get(kind, {}):
            raise
        problem = f"{error.problem} There is no file or folder '{text}' either.{_near_paths(text)}"
        raise PluginError(error.code, problem, error.remedy) from None


def settle_ref(entry: Entry, ref: str) -> str:
    """Return the place of a model or of data: what exists on this machine as an absolute path, all else as it is.

    A run that is repeated from another folder then finds it. A plugin whose refs hold a path among other words settles
    them itself, by its classmethod ``settle(ref)``.

    Raises:
        ConfigError: ``ref`` would be asked for on the hub, but looks like a path beside others here (``VU-C006``).
    """
    settle = getattr(entry.load(), "settle", None)
    if settle is not None:
        with asked(entry):
            return str(settle(ref))
    path = absolute(ref)
    if path == ref and _HUB_ID.fullmatch(ref) and _is_beside(ref) and getattr(entry.load(), "takes_hub_ids", False):
        raise _no_such_path(entry.kind, ref)
    return path


def absolute(text: str) -> str:
    """Return the name of an existing file or folder as an absolute path, any other text as it is.

    A link keeps its own name: plugins look at the ending of a file and at what lies beside it.
    """
    path = existing(text)
    if path is None:
        return text
    named = Path(os.path.abspath(path))  # noqa: PTH100  `resolve` would follow the link
    # Behind a link to a folder, ".." is not the folder that the text names before it.
    return str(named if existing(str(named)) and named.samefile(path) else path.resolve())


def existing(text: str) -> Path | None:
    """Return the file or folder that a text names, if there is one."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, RuntimeError):  # a name too long for the system, or the home of an unknown user: there is none
        return None


def _is_beside(text: str) -> bool:
    """Tell whether the folder is here that a relative path with one slash would lie in."""
    return existing(str(Path(text).parent)) is not None


def _no_such_path(kind: str, text: str) -> ConfigError:
    problem = f"There is no file or folder '{text}'.{_near_paths(text)}"
    remedy = f"Check the path, or name the {WORDS.get(kind, kind)} plugin: NAME=REF."
    if kind == "model" and _HUB_ID.fullmatch(text):
        folder = Path(text).parent
        remedy = f"Check the path. The hub is not asked for '{text}' where there is a folder '{folder}'."
    return ConfigError("VU-C006", problem, remedy)


def _near_paths(text: str) -> str:
    """Return ``" Did you mean 'x'?"`` for what lies beside the first part of a path that does not exist."""
    missing = Path(text)
    while missing.parent != missing and existing(str(missing.parent)) is None:
        missing = missing.parent
    try:
        near = near_misses(missing.name, [entry.name for entry in missing.parent.expanduser().iterdir()])
    except (OSError, RuntimeError):  # a folder that may not be listed, or nobody's home: there is nothing to offer
        return ""
    offers = " or ".join(repr(str(missing.with_name(name))) for name in near)
    return f" Did you mean {offers}?" if offers else ""


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
