"""Files that say which ranks an adapter can have, and which it is to have.

``elastic_adapter_config.json`` lists groups of targets with their search spaces::

    [{"target": ["unet.attn1.to_q.lora_A", "unet.attn1.to_k.lora_A"], "search_space": [16, 8, 4]}]

A custom configuration chooses one rank for each::

    [{"target": ["unet.attn1.to_q.lora_A", "unet.attn1.to_k.lora_A"], "active_rank_value": 8}]

A target names the A side of a low-rank change: the weight ``unet.attn1.to_q.weight`` has the target
``unet.attn1.to_q.lora_A``.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vu_core import ConfigError, did_you_mean
from vu_elastic_lora.groups import RankGroup, Version, gathered, search_space_problem

FILE = "elastic_adapter_config.json"
"""Name of the file with the groups."""

_KINDS = {bool: "a truth value", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}


def target_of(name: str) -> str:
    """Return the target that stands for a weight in the files.

    Example:
        >>> target_of("unet.attn1.to_q.weight")
        'unet.attn1.to_q.lora_A'
    """
    return f"{name.removesuffix('.weight')}.lora_A"


def groups_to_json(groups: Iterable[RankGroup]) -> str:
    """Return the text of ``elastic_adapter_config.json``."""
    return _text({"target": _targets(group), "search_space": list(group.search_space)} for group in groups)


def ranks_to_json(groups: Sequence[RankGroup], ranks: Mapping[str, int]) -> str:
    """Return the text of a custom configuration.

    Args:
        groups: all groups of the adapter.
        ranks: rank per weight name, one per group.
    """
    chosen = zip(groups, gathered(groups, ranks), strict=True)
    return _text({"target": _targets(group), "active_rank_value": rank} for group, rank in chosen)


def _targets(group: RankGroup) -> list[str]:
    return [target_of(name) for name in group.names]


def _text(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return a JSON list with one entry per line."""
    return "[\n" + ",\n".join(f" {json.dumps(entry)}" for entry in entries) + "\n]\n"


def read_groups(path: Path, names: Collection[str]) -> tuple[RankGroup, ...]:
    """Read ``elastic_adapter_config.json``; the reverse of `groups_to_json`.

    Args:
        path: the file.
        names: weights of the adapter that it is for; the file may leave some out.

    Raises:
        ConfigError: ``VU-C092`` the file cannot be read or is no list of tables; ``VU-C093`` a search space that is not
            strictly descending, a target that the adapter does not have or that stands in two groups; all at once.
    """
    problems = _Problems(path)
    found = []
    owners: dict[str, int] = {}
    known = {target_of(name): name for name in names}
    for number, entry in _entries(path, problems, "search_space"):
        ranks = entry["search_space"]
        wrong = search_space_problem(ranks) if isinstance(ranks, list) else _no_kind(ranks, "a list of ranks")
        if wrong:
            problems.add(number, f"'search_space' {wrong}.")
        group = tuple(problems.resolved(number, entry["target"], known, owners))
        if not wrong:
            found.append(RankGroup(group, tuple(ranks)))
    problems.raise_if_any()
    return tuple(found)


def read_ranks(path: Path, groups: Sequence[RankGroup], default: Version | None = None) -> dict[str, int]:
    """Read a custom configuration; the reverse of `ranks_to_json`.

    Args:
        path: the file.
        groups: all groups of the adapter that it is for.
        default: version for the groups that the file leaves out; without it every group must be in the file.

    Returns:
        The rank of every weight of the groups.

    Raises:
        ConfigError: ``VU-C092`` the file cannot be read or is no list of tables; ``VU-C093`` a rank that is no whole
            number or outside of the search space of its group, a target that the adapter does not have or that stands
            in two entries, a group that is left out or of which only a part is there; all at once.
    """
    problems = _Problems(path)
    ranks: dict[str, int] = {}
    owners: dict[str, int] = {}
    known = {target_of(name): name for group in groups for name in group.names}
    for number, entry in _entries(path, problems, "active_rank_value"):
        rank = entry["active_rank_value"]
        names = list(problems.resolved(number, entry["target"], known, owners))
        if type(rank) is int:
            ranks |= dict.fromkeys(names, rank)
        else:
            problems.add(number, f"'active_rank_value' {_no_kind(rank, 'a whole number')}.")
    problems.raise_if_any()
    if default is not None:
        for group in groups:
            if not any(name in ranks for name in group.names):
                ranks |= dict.fromkeys(group.names, group.rank(default))
    return checked_ranks(groups, ranks, where=str(path))


def checked_ranks(groups: Sequence[RankGroup], ranks: Mapping[str, int], where: str = "") -> dict[str, int]:
    """Return the ranks of all weights if they are one per group, each out of its search space.

    Args:
        groups: all groups of the adapter.
        ranks: rank per weight name.
        where: place for the messages, such as a file.

    Raises:
        ConfigError: ``VU-C093`` with everything that is wrong.
    """
    known = [name for group in groups for name in group.names]
    targets = [target_of(name) for name in known]
    strange = [target_of(name) for name in ranks if name not in known]
    wrong = [f"There is no target {target!r}.{did_you_mean(target, targets)}" for target in strange]
    for group in groups:
        wrong += _group_problems(group, ranks)
    if wrong:
        raise _unfit(wrong, where)
    return {name: ranks[name] for name in known}


def _group_problems(group: RankGroup, ranks: Mapping[str, int]) -> Iterator[str]:
    """Yield what is wrong with the ranks of one group."""
    about = f"the group of {target_of(group.names[0])!r}"
    missing = [target_of(name) for name in group.names if name not in ranks]
    if len(missing) == len(group.names):
        yield f"A rank for {about} is missing."
        return
    if missing:
        yield f"Of {about} there is no rank for {', '.join(map(repr, missing))}; all of a group have one rank."
    used = list(dict.fromkeys(ranks[name] for name in group.names if name in ranks))
    if len(used) > 1:
        listed = " and ".join(map(repr, used))
        yield f"Of {about} the ranks {listed} are asked for, but all of a group have one rank."
    for rank in used:
        if type(rank) is not int or rank not in group.search_space:
            yield f"The rank {rank!r} is none that {about} can have: {', '.join(map(str, group.search_space))}."


def _entries(path: Path, problems: _Problems, key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield number and table of every entry that has the two keys ``target`` and ``key`` and no other."""
    for number, entry in enumerate(_list_of(path), start=1):
        if not isinstance(entry, dict):
            problems.add(number, f"{_no_kind(entry, 'a table')}.")
            continue
        unknown = [
            f"{name!r} is unknown.{did_you_mean(name, ('target', key))}" for name in entry.keys() - {key, "target"}
        ]
        absent = [f"{name!r} is missing." for name in ("target", key) if name not in entry]
        for text in sorted([*unknown, *absent]):
            problems.add(number, text)
        if not unknown and not absent:
            yield number, entry


def _list_of(path: Path) -> list[Any]:
    """Return the list that a JSON file holds. Raises: ConfigError ``VU-C092``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_table)
    except OSError as error:
        raise _unreadable(path, error.strerror or type(error).__name__) from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"it is not the JSON that is expected: {error}") from error
    if not isinstance(value, list):
        raise _unreadable(path, f"it must hold a list of tables, but holds {_kind(value)}")
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a table of JSON, unless a key of it is written twice."""
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} stands twice in one table")
    return dict(pairs)


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        "VU-C092",
        f"The configuration of ranks {path.name!r} cannot be read: {why}.",
        "Name a file such as chosen_ranks.json of a search, or one of: maximal, heuristic, minimal.",
        where=str(path),
    )


def _no_kind(value: Any, wanted: str) -> str:
    return f"must be {wanted}, but is {reprlib.repr(value)} ({_kind(value)})"


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "nothing" if value is None else type(value).__name__)


def _unfit(problems: Sequence[str], where: str) -> ConfigError:
    """Return one error that tells all problems."""
    told = problems[0] if len(problems) == 1 else "\n  ".join(["The ranks do not fit the adapter:", *problems])
    remedy = f"Correct that; {FILE} lists every target of an adapter with the ranks that it can have."
    return ConfigError("VU-C093", told, remedy, where=where)


class _Problems:
    """Everything that is wrong with the entries of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[str] = []

    def add(self, number: int, text: str) -> None:
        """Note what is wrong with an entry; the first one has the number 1."""
        self.found.append(f"Entry {number}: {text}")

    def resolved(self, number: int, targets: Any, known: Mapping[str, str], owners: dict[str, int]) -> Iterator[str]:
        """Yield the weights that the targets of an entry name; ``owners`` remembers who has named them already."""
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            self.add(number, f"'target' {_no_kind(targets, 'a list of texts')}.")
            return
        if not targets:
            self.add(number, "'target' must name at least one target.")
        for target in targets:
            if target not in known:
                self.add(number, f"There is no target {target!r}.{did_you_mean(target, known)}")
            elif target in owners:
                place = "this entry" if owners[target] == number else f"entry {owners[target]}"
                self.add(number, f"The target {target!r} stands in {place} already.")
            else:
                owners[target] = number
                yield known[target]

    def raise_if_any(self) -> None:
        """Tell all of them."""
        if self.found:
            raise _unfit(self.found, str(self.path))
