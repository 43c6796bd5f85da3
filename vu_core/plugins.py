"""Discovery: who is installed, what they bring, and what is wrong with them."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import resources
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import attrs
import pluggy

from vu_core import ctrl_c
from vu_core.errors import PlanError, PluginError, VuError, did_you_mean
from vu_core.event import Event
from vu_core.hookspecs import HOOK_OF_KIND, VuHooks, hookimpl
from vu_core.plan import Capability, Plan
from vu_core.registry import Entry, Registry, State

GROUP = "vu.plugins"
HEAVY = ("torch", "numpy", "diffusers", "transformers", "accelerate", "peft")
AXES = ("parameters", "weighting", "attribution", "regularizer")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_RECIPE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[\w./-]+\.toml")
_log = logging.getLogger("vu")


@attrs.frozen
class Distribution:
    """One entry point of one installed distribution.

    Args:
        name, version: of the distribution; entry_point: its name in the group ``vu.plugins``.
        state: ``ready``, ``slow``, ``broken`` or ``blocked``; cause: why it is not ready.
    """

    name: str
    version: str
    entry_point: str
    state: State = "ready"
    cause: str = ""


@attrs.frozen
class _Candidate:
    """Something that may turn out to be a plugin; ``load`` imports its module."""

    distribution: str
    version: str
    entry_point: str
    load: Callable[[], Any]

    @property
    def key(self) -> str:
        return f"{self.distribution}:{self.entry_point}"


@attrs.frozen(eq=False)
class Plugins:
    """Everything that discovery found.

    Args:
        registry: names and their lazy targets.
        distributions: every entry point with its state.
        manager: the registered plugin modules; `tell` and `check_plan` call their hooks one by one.
    """

    registry: Registry
    distributions: tuple[Distribution, ...]
    manager: pluggy.PluginManager

    def tell(self, event: Event) -> None:
        """Hand an event to every listener; one that fails is logged, and the run goes on."""
        for impl in self.manager.hook.vu_on_event.get_hookimpls():
            try:
                impl.function(**dict.fromkeys(impl.argnames, event))
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001  whatever it is, the log tells it; SystemExit ends no run
                _log.warning("listener %s failed on event %r", impl.plugin_name, event.type, exc_info=True)

    def check_plan(self, plan: Plan) -> None:
        """Let every plugin object to a plan.

        Raises:
            VuError: the objection, if there is one; PlanError with all of them, if there are several.
            PluginError: a plugin fails for another reason, so that nobody knows whether it objects.
        """
        objections: list[VuError] = []
        for impl in self.manager.hook.vu_check_plan.get_hookimpls():
            try:
                impl.function(**dict.fromkeys(impl.argnames, plan))
            except VuError as objection:
                objections.append(objection)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:
                owner = str(impl.plugin_name).partition(":")[0]
                raise PluginError(
                    "VU-P007",
                    f"The plugin {owner} failed while it checked the plan: {type(exc).__name__}: {exc}",
                    f"Update {owner}, or switch it off with VU_DISABLE_PLUGINS={owner}.",
                ) from exc
        if len(objections) == 1:
            raise objections[0]
        if objections:
            problem = "Several plugins object to this run:" + "".join(f"\n  {each.problem}" for each in objections)
            raise PlanError("VU-L004", problem, "\n  ".join(each.remedy for each in objections))


def discover(*, extra: Iterable[Any] = (), installed: bool = True) -> Plugins:
    """Find the plugins: the core's built-ins, what is installed, and ``extra``.

    Every entry point is imported and asked on its own, so that a failing one is shown as ``broken`` and nothing else
    suffers. Distributions named in ``VU_DISABLE_PLUGINS`` (separated by commas) are not imported at all.

    Args:
        extra: plugin modules (or any object with hook implementations), or tuples ``(distribution, version, module)``.
        installed: look at the entry points of installed distributions.

    Example:
        >>> "lora" in discover(installed=False).registry.usable_names("parameters")
        True
    """
    blocked = {_normal(name) for name in os.environ.get("VU_DISABLE_PLUGINS", "").split(",") if name.strip()}
    candidates = [_builtins(), *(_installed() if installed else ()), *map(_given, extra)]
    manager = pluggy.PluginManager("vu")
    manager.add_hookspecs(VuHooks)
    entries: list[Entry] = []
    distributions: list[Distribution] = []
    with ctrl_c.noticing() as pressed:
        for candidate in candidates:
            found, distribution = _ask(candidate, blocked, manager, pressed)
            entries += found
            distributions.append(distribution)
    unknown = sorted(blocked - {each.distribution for each in candidates}) if installed else []
    unavailable = {each.name: _reason(each) for each in distributions if each.state in ("broken", "blocked")}
    absent = [
        Distribution(name, "", "", "blocked", "named in VU_DISABLE_PLUGINS, but not installed") for name in unknown
    ]
    registry = Registry(_mark_conflicts(entries), read_directory(), unavailable)
    return Plugins(registry, (*distributions, *absent), manager)


def read_directory() -> Mapping[str, Mapping[str, str]]:
    """Return which distribution brings which published name, ``{kind: {name: distribution}}``."""
    tables = tomllib.loads(resources.files("vu_core").joinpath("directory.toml").read_text(encoding="utf-8"))
    return {
        kind: {name: distribution for distribution, names in owners.items() for name in names}
        for kind, owners in tables.items()
    }


def _builtins() -> _Candidate:
    return _Candidate("vu-core", _version("vu-core"), "builtins", lambda: importlib.import_module("vu_core.builtins"))


def _installed() -> list[_Candidate]:
    def candidate(point: EntryPoint) -> _Candidate:
        name, number = (point.dist.name, point.dist.version) if point.dist else (point.value, "unknown")
        return _Candidate(_normal(name), number, point.name, point.load)

    found = {each.key: each for each in map(candidate, entry_points(group=GROUP))}
    return [found[key] for key in sorted(found)]


def _given(item: Any) -> _Candidate:
    if isinstance(item, tuple):
        distribution, number, plugin = item
        return _Candidate(_normal(distribution), number, "extra", lambda: plugin)
    name = getattr(item, "__name__", type(item).__name__)
    return _Candidate(_normal(name), "0", "extra", lambda: item)


def _normal(name: str) -> str:
    """Return the normalised form of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _reason(distribution: Distribution) -> str:
    return f"{distribution.state} ({distribution.cause})"


def _ask(
    candidate: _Candidate, blocked: set[str], manager: pluggy.PluginManager, ctrl_c_pressed: Callable[[], bool]
) -> tuple[list[Entry], Distribution]:
    """Import one plugin and collect its names; nothing it does wrong reaches the others."""
    result = Distribution(candidate.distribution, candidate.version, candidate.entry_point)
    if candidate.distribution in blocked:
        return [], attrs.evolve(result, state="blocked", cause="named in VU_DISABLE_PLUGINS")
    before = set(sys.modules)
    try:
        plugin = candidate.load()
        pulled = _pulled(set(sys.modules) - before)
        entries = _collect(plugin, candidate)
        manager.register(plugin, name=candidate.key)
    except BaseException as exc:  # a plugin may fail in any way; it is shown with its cause
        if ctrl_c_pressed():  # the user ends the command, the plugin may not
            raise
        return [], attrs.evolve(result, state="broken", cause=_first_line(exc))
    if pulled:
        cause = f"its entry-point module imports {', '.join(pulled)}"
        entries = [attrs.evolve(entry, state="slow", cause=cause) for entry in entries]
        result = attrs.evolve(result, state="slow", cause=cause)
    return entries, result


def _pulled(loaded: Collection[str]) -> tuple[str, ...]:
    """Return which heavy packages the modules that a plugin has loaded brought in or work with.

    What an earlier plugin has imported already is not loaded again; its names in the new modules give it away.
    """
    found = {name.partition(".")[0] for name in loaded}
    for name in loaded:
        if name.partition(".")[0] in HEAVY:
            continue
        for value in list(getattr(sys.modules.get(name), "__dict__", {}).values()):
            owner = type(value).__module__
            if isinstance(value, ModuleType):
                owner = value.__name__
            elif isinstance(value, type | FunctionType | BuiltinFunctionType):
                owner = value.__module__
            found.add(str(owner).partition(".")[0])
    return tuple(name for name in HEAVY if name in found)


def _first_line(exc: BaseException) -> str:
    text = " ".join((exc.problem if isinstance(exc, VuError) else str(exc)).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _collect(plugin: Any, candidate: _Candidate) -> list[Entry]:
    """Call the registration hooks of one plugin in a manager of its own, where no other plugin can interfere."""
    _check_hook_names(plugin)
    manager = pluggy.PluginManager("vu")
    manager.add_hookspecs(VuHooks)
    manager.register(plugin)
    entries: list[Entry] = []
    for kind, hook in HOOK_OF_KIND.items():
        getattr(manager.hook, hook)(register=_register(kind, candidate, entries))
    return entries


def _check_hook_names(plugin: Any) -> None:
    """Refuse what pluggy would silently pass over: misspelt hooks, and hooks that lack the marker."""
    known = [name for name in vars(VuHooks) if name.startswith("vu_")]
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        options: Any = getattr(function, "vu_impl", None)
        marked = isinstance(options, dict)
        if marked and (options["wrapper"] or options["hookwrapper"]):
            raise PluginError(
                "VU-P005", f"{name} is a wrapper of hooks, which vu does not call.", "Write a plain hook."
            )
        if marked and not options["optionalhook"] and (options["specname"] or name) not in known:
            raise PluginError("VU-P005", f"{name} is no hook of vu.{did_you_mean(name, known)}", "Rename the function.")
        if not marked and name in known and isinstance(function, FunctionType):
            raise PluginError(
                "VU-P005", f"{name} lacks the marker @hookimpl.", f"Mark it with @{hookimpl.__class__.__name__}."
            )


def _register(kind: str, candidate: _Candidate, entries: list[Entry]) -> Callable[..., None]:
    """Return the ``register`` that a hook of this kind is handed."""

    def register(
        name: str,
        target: str,
        *,
        summary: str,
        aliases: Sequence[str] = (),
        needs: Sequence[str] = (),
        axes: Sequence[str] = (),
        default: bool = False,
    ) -> None:
        lists = {"aliases": aliases, "needs": needs, "axes": axes}
        for what, value in lists.items():
            if isinstance(value, str) or not all(isinstance(each, str) for each in value):
                raise TypeError(f"{kind} {name!r}: {what} must be a list of texts, but is {value!r}")
        entry = Entry(
            kind,
            name,
            target,
            summary,
            candidate.distribution,
            candidate.version,
            aliases=tuple(aliases),
            needs=tuple(map(str, needs)),
            axes=tuple(axes),
            default=bool(default),
        )
        _check_entry(entry, [each for each in entries if each.kind == kind])
        entries.append(entry)

    return register


def _check_entry(entry: Entry, siblings: Sequence[Entry]) -> None:
    """Raise ValueError when a registration cannot be right."""
    title = f"{entry.kind} {entry.name!r}"
    for name in entry.names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{title}: the name {name!r} is not kebab-case (small letters, digits and single hyphens)")
    taken = [name for each in siblings for name in each.names]
    for name in entry.names:
        if name in taken or entry.names.count(name) > 1:
            raise ValueError(f"{title}: the name {name!r} is registered twice")
    shape, example = (_RECIPE, "package:file.toml") if entry.kind == "recipe" else (_TARGET, "module:attribute")
    if not isinstance(entry.target, str) or not shape.fullmatch(entry.target):
        raise ValueError(f"{title}: the target {entry.target!r} is not of the form '{example}'")
    if not isinstance(entry.summary, str) or not entry.summary.strip() or "\n" in entry.summary:
        raise ValueError(f"{title}: the summary must be one line of text")
    alternatives = [each for need in entry.needs for each in need.split("|")]
    _check_words(title, "need", alternatives, [str(each) for each in Capability])
    if entry.axes and entry.kind not in ("unlearner", "regularizer"):
        raise ValueError(f"{title}: only methods and regularizers have axes")
    _check_words(title, "axis", entry.axes, AXES if entry.kind == "unlearner" else ("attribution",))


def _check_words(title: str, what: str, words: Sequence[str], known: Sequence[str]) -> None:
    for word in words:
        if word not in known:
            raise ValueError(f"{title}: unknown {what} {word!r}.{did_you_mean(word, known)} Known: {', '.join(known)}")


def _mark_conflicts(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Mark every entry one of whose names somebody else claims too."""
    claims: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        for name in entry.names:
            claims.setdefault((entry.kind, name), []).append(entry)

    def marked(entry: Entry) -> Entry:
        contested = tuple(name for name in entry.names if len(claims[entry.kind, name]) > 1)
        if not contested:
            return entry
        others = sorted(
            f"{other.distribution} {other.version} claims '{name}' too"
            for name in contested
            for other in claims[entry.kind, name]
            if other is not entry
        )
        return attrs.evolve(entry, state="conflict", cause="; ".join(others), contested=contested)

    return tuple(sorted(map(marked, entries), key=lambda entry: (entry.kind, entry.name, entry.distribution)))
