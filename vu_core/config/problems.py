"""Everything that is wrong with a configuration, told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from vu_core.errors import ConfigError, VuError


@attrs.frozen
class Problem:
    """One line: key, what is wrong, where it was written; ``error`` when it is more than a wrong value."""

    key: str
    text: str
    place: str = ""
    error: VuError | None = None

    def __str__(self) -> str:
        place = f"  ({self.place})" if self.place else ""
        return f"{self.key}{':' if self.error is not None else ''} {self.text}{place}"


@attrs.define
class Problems:
    """Collects problems; `raise_if_any` tells them all.

    Args:
        place: tells where a dotted key was written.

    Example:
        >>> problems = Problems(lambda key: "run.toml:3")
        >>> problems.add("run.seed", "must be >= 0, but is -1.")
        >>> problems.raise_if_any()
        Traceback (most recent call last):
        vu_core.errors.ConfigError: run.seed must be >= 0, but is -1.
          where: run.toml:3
          what to do: Correct it; `vu describe NAME` lists every setting of a plugin.
    """

    place: Callable[[str], str]
    found: list[Problem] = attrs.field(factory=list)

    def add(self, key: str, text: str) -> None:
        """Note that something is wrong with a key."""
        self.add_at(key, text, self.place(key))

    def add_at(self, key: str, text: str, place: str) -> None:
        """Note that something is wrong with a key that was set at a known place."""
        self._note(Problem(key, text, place))

    def add_error(self, key: str, error: VuError) -> None:
        """Note an error of its own kind, part by part; alone, it is raised as it is.

        Args:
            key: what it is about, unless it names another key that was written itself.
            error: from a plugin, or from the search for one.
        """
        for part in error.parts or (error,):
            about = part.where if self.place(part.where) else key
            self._note(Problem(about, f"{part.problem} {part.remedy}", self.place(about), part))

    def _note(self, problem: Problem) -> None:
        if problem not in self.found:
            self.found.append(problem)

    def raise_if_any(self) -> None:
        """Raise the one error there is, or a ConfigError (``VU-C001``) with a line for each problem."""
        if not self.found:
            return
        first = self.found[0]
        if len(self.found) == 1 and first.error is not None:
            raise self._located(first.error, first)
        remedy = "Correct {}; `vu describe NAME` lists every setting of a plugin."
        if len(self.found) == 1:
            raise ConfigError("VU-C001", f"{first.key} {first.text}".strip(), remedy.format("it"), where=first.place)
        listed = "".join(f"\n  {problem}" for problem in sorted(self.found, key=_line))
        problem = f"The configuration has {len(self.found)} problems:{listed}"
        raise ConfigError("VU-C001", problem, remedy.format("each line"))

    def _located(self, error: VuError, problem: Problem) -> VuError:
        if error.where not in ("", problem.key):
            return error
        where = f"{problem.key} ({problem.place})" if problem.place else problem.key
        located = type(error)(error.code, error.problem, error.remedy, where=where)
        located.__cause__ = error.__cause__
        return located


def _line(problem: Problem) -> tuple[bool, str, int]:
    """Order problems as they stand in the file; those from elsewhere follow."""
    file, _, line = problem.place.rpartition(":")
    return (not line.isdigit(), file, int(line) if line.isdigit() else 0)


@contextmanager
def locating(origins: Mapping[str, str], keys: Sequence[str] = ()) -> Iterator[None]:
    """Add to the place of a `VuError` where the keys that it names were written.

    Args:
        origins: dotted key -> where its value comes from, as in `RunConfig.origins`.
        keys: what an error is about that says nothing of its place; those that nobody set are left out.

    Example:
        >>> with locating({"data.forget": "run.toml:7"}):
        ...     raise ConfigError("VU-C001", "There is no such style.", "Choose another.", where="data.forget")
        Traceback (most recent call last):
        vu_core.errors.ConfigError: There is no such style.
          where: data.forget (run.toml:7)
          what to do: Choose another.
    """
    try:
        yield
    except VuError as error:
        said = {key: origin for key, origin in origins.items() if origin and origin != "default"}
        named = error.where.split(", ") if error.where else [key for key in keys if key in said]
        error.where = ", ".join(f"{name} ({said[name]})" if name in said else name for name in named)
        raise
