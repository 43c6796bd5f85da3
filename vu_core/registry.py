"""Names of plugins and the lazy targets behind them."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from importlib import resources
from typing import Any, Literal

import attrs

from vu_core import ctrl_c
from vu_core.errors import PluginError, did_you_mean, near_misses

State = Literal["ready", "broken", "conflict", "blocked", "slow"]

WORDS = {"unlearner": "method", "dataset": "data"}
"""What users call a kind, where it is not the kind's own name."""

FLAGS = {
    "unlearner": "--method",
    "model": "--model",
    "dataset": "--data",
    "parameters": "--parameters",
    "weighting": "--weighting",
    "regularizer": "--regularizer",
    "sequence": "--sequence",
}


@attrs.frozen
class Entry:
    """One registered name. `load` imports the target; everything else is plain strings.

    Args:
        kind, name, target, summary, aliases, needs, axes, default: as in `vu_core.hookspecs.Register`.
        distribution, version: who brings it.
        state: ``ready``, ``broken``, ``conflict``, ``blocked`` or ``slow``; cause: why it is not ready.
        contested: those of its names that another distribution claims too; using one of them is an error.
    """

    kind: str
    name: str
    target: str
    summary: str
    distribution: str
    version: str
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    default: bool = False
    state: State = "ready"
    cause: str = ""
    contested: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical name and aliases."""
        return (self.name, *self.aliases)

    def lacks(self, can: Collection[str]) -> list[str]:
        """Return those of its needs that nothing in ``can`` serves; of ``a|b`` one is enough.

        Example:
            >>> toy = Entry("metric", "toy", "toy:Toy", "Counts.", "toys", "1.0", needs=("denoise|classify", "judge"))
            >>> toy.lacks(["classify"])
            ['judge']
        """
        return [need for need in self.needs if not any(each in can for each in need.split("|"))]

    @property
    def usable(self) -> bool:
        """The canonical name leads to this entry and nothing is known to be wrong with it."""
        return self.state in ("ready", "slow") or (self.state == "conflict" and self.name not in self.contested)

    def load(self) -> Any:
        """Import the target and return it; for a recipe, its tables.

        Raises:
            PluginError: the name is in conflict or blocked, or the target cannot be imported; the cause is chained.
        """
        if not self.usable:
            code = {"conflict": "VU-P002", "blocked": "VU-P004"}.get(self.state, "VU-P003")
            raise PluginError(code, f"{self._title} cannot be used: {self.cause}.", _remedy(self), where=self._where)
        try:
            with ctrl_c.noticing() as pressed:
                return _read_recipe(self.target) if self.kind == "recipe" else _import(self.target)
        except BaseException as exc:  # a plugin may fail in any way; the cause is chained
            if pressed():
                raise
            owner = self.distribution
            raise PluginError(
                "VU-P003",
                f"{self._title} cannot be loaded from '{self.target}': {type(exc).__name__}: {exc}",
                f"Update or reinstall {owner}, or switch it off with VU_DISABLE_PLUGINS={owner}.",
                where=self._where,
            ) from exc

    def checked(self) -> Entry:
        """Return the entry after importing its target: unchanged, or ``broken`` with the cause."""
        if not self.usable:
            return self
        try:
            self.load()
        except PluginError as error:
            return attrs.evolve(self, state="broken", cause=str(error.__cause__ or error.problem))
        return self

    @property
    def _title(self) -> str:
        return f"The {WORDS.get(self.kind, self.kind)} '{self.name}'"

    @property
    def _where(self) -> str:
        return f"distribution {self.distribution} {self.version}"


def _remedy(entry: Entry) -> str:
    if entry.state == "conflict":
        return "Uninstall one of the distributions, or switch one off with VU_DISABLE_PLUGINS=<distribution>."
    if entry.state == "blocked":
        return "Take the distribution out of VU_DISABLE_PLUGINS."
    return f"Update or reinstall {entry.distribution}."


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _read_recipe(target: str) -> dict[str, Any]:
    package, _, path = target.partition(":")
    return tomllib.loads(resources.files(package).joinpath(path).read_text(encoding="utf-8"))


@attrs.frozen(eq=False, slots=False)
class Registry:
    """All registered names.

    Args:
        all_entries: in the order of kind and name, whatever their state.
        directory: distribution of published names, ``{kind: {name: distribution}}``, for hints what to install.
        unavailable: distributions that brought no names, with the reason (broken or blocked).

    Example:
        >>> toy = Entry("unlearner", "toy", "toy:Toy", "Does nothing.", "toys", "1.0", aliases=("plaything",))
        >>> Registry((toy,)).get("unlearner", "plaything").name
        'toy'
    """

    all_entries: tuple[Entry, ...] = ()
    directory: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    unavailable: Mapping[str, str] = attrs.field(factory=dict)

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Return the entries of a kind, or all, in every state."""
        return tuple(entry for entry in self.all_entries if kind is None or entry.kind == kind)

    def get(self, kind: str, name: str) -> Entry:
        """Return the entry behind a canonical name or an alias.

        Raises:
            PluginError: nobody brings the name (with near misses, what is installed, and what to install), or two
                distributions claim it.
        """
        found = self._by_name.get((kind, name), ())
        if not found:
            raise self._unknown(kind, name)
        if any(name in entry.contested for entry in found):
            claims = ", ".join(f"{entry.distribution} {entry.version} ({entry.target})" for entry in found)
            raise PluginError(
                "VU-P002",
                f"The {WORDS.get(kind, kind)} name '{name}' is claimed more than once: {claims}.",
                "Uninstall one of them, or switch one off with VU_DISABLE_PLUGINS=<distribution>.",
            )
        return found[0]

    def default(self, kind: str) -> Entry | None:
        """Return what is used when nothing is said; ``None`` when nobody offers it.

        Raises:
            PluginError: two distributions offer a default, or its name is claimed twice.
        """
        offers = [entry for entry in self.entries(kind) if entry.default and entry.usable]
        if len(offers) > 1:
            listed = ", ".join(f"'{entry.name}' ({entry.distribution} {entry.version})" for entry in offers)
            raise PluginError(
                "VU-P006",
                f"Several distributions bring a default {WORDS.get(kind, kind)}: {listed}.",
                f"Say which one you want{_flag(kind)}, or switch one off with VU_DISABLE_PLUGINS=<distribution>.",
            )
        if not offers:
            for entry in self.entries(kind):
                if entry.default:  # the one there is cannot be used: say why instead of "there is none"
                    return self.get(kind, entry.name)
        return offers[0] if offers else None

    def usable_names(self, kind: str) -> tuple[str, ...]:
        """Return the canonical names of a kind that can be used."""
        return tuple(entry.name for entry in self.entries(kind) if entry.usable)

    def nothing(self, kind: str) -> PluginError:
        """Return the error for a kind of which nothing is installed."""
        word = WORDS.get(kind, kind)
        published = [name for name in self.directory.get(kind, {}).values() if name not in self.unavailable]
        remedy = f"Try: pip install {published[0]}" if published else f"Install a plugin that brings a {word}."
        return PluginError("VU-P001", f"No {word} is installed.{self.missing(kind)}", remedy)

    def missing(self, kind: str) -> str:
        """Say which distributions would bring names of a kind, but are broken or blocked."""
        owners = dict.fromkeys(self.directory.get(kind, {}).values())
        return "".join(f" {name} is {self.unavailable[name]}." for name in owners if name in self.unavailable)

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, str], tuple[Entry, ...]]:
        found: dict[tuple[str, str], tuple[Entry, ...]] = {}
        for entry in self.all_entries:
            for name in entry.names:
                found[entry.kind, name] = (*found.get((entry.kind, name), ()), entry)
        return found

    def _unknown(self, kind: str, name: str) -> PluginError:
        word = WORDS.get(kind, kind)
        known = [each for entry in self.entries(kind) for each in entry.names]
        published = self.directory.get(kind, {})
        owner = published.get(name)
        if owner is not None and owner in self.unavailable:
            cause = self.unavailable[owner]
            code = "VU-P004" if cause.startswith("blocked") else "VU-P003"
            return PluginError(
                code,
                f"The {word} '{name}' is not available: its distribution {owner} is {cause}.",
                "Take it out of VU_DISABLE_PLUGINS." if code == "VU-P004" else f"Update or reinstall {owner}.",
            )
        problem = f"There is no {word} '{name}'.{did_you_mean(name, [*known, *published])}"
        elsewhere = sorted({other for other, each in self._by_name if each == name and other != kind})
        if elsewhere:
            problem += (
                f" '{name}' is the name of a {' and of a '.join(WORDS.get(other, other) for other in elsewhere)}."
            )
        usable = self.usable_names(kind)
        installed = f"Installed: {', '.join(usable)}." if usable else f"No {word} is installed."
        near = next((published[each] for each in (name, *near_misses(name, published)) if each in published), None)
        hint = f" Try: pip install {near}" if near is not None and not _has(known, published, near) else ""
        return PluginError("VU-P001", problem, installed + hint)


def _has(known: Iterable[str], published: Mapping[str, str], distribution: str) -> bool:
    """Tell whether a name that the distribution publishes is installed already."""
    return any(published.get(name) == distribution for name in known)


def _flag(kind: str) -> str:
    return f" with {FLAGS[kind]}" if kind in FLAGS else ""
