"""The errors a user may see: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar, TypeVar


class VuError(Exception):
    """Say what is wrong, where, and what to do.

    Args:
        code: stable code such as ``VU-C001``; ``vu explain CODE`` prints its page.
        problem: what is wrong, one sentence or a list of lines.
        remedy: what the reader can do now.
        where: file and line, configuration key or plugin; empty when the problem has no place.
        parts: the errors that this one tells together; see `together`.

    Example:
        >>> print(DataError("VU-D070", "There is no folder 'cats'.", "Check the path.", where="data.ref"))
        There is no folder 'cats'.
          where: data.ref
          what to do: Check the path.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, code: str, problem: str, remedy: str, *, where: str = "", parts: Sequence[VuError] = ()) -> None:
        super().__init__(problem)
        self.code = code
        self.problem = problem
        self.remedy = remedy
        self.where = where
        self.parts = tuple(parts)

    def __str__(self) -> str:
        place = f"\n  where: {self.where}" if self.where else ""
        return f"{self.problem}{place}\n  what to do: {self.remedy}"

    def as_dict(self) -> dict[str, str | int]:
        """Return the parts for ``--json`` and ``events.jsonl``."""
        return {
            "code": self.code,
            "kind": type(self).__name__,
            "problem": self.problem,
            "where": self.where,
            "remedy": self.remedy,
            "exit_status": self.exit_status,
        }


class ConfigError(VuError):
    """A configuration value, key or flag cannot be used (codes ``VU-C...``)."""

    exit_status = 2


class PluginError(VuError):
    """A plugin is missing, broken, blocked or claims a name twice (codes ``VU-P...``)."""

    exit_status = 3


class PlanError(VuError):
    """The parts named do not fit together, or exceed the budget (codes ``VU-L...``)."""

    exit_status = 4


class DataError(VuError):
    """A dataset, image or metafile cannot be read (codes ``VU-D...``)."""

    exit_status = 5


class UnlearnError(VuError):
    """Training failed, or ``--strict`` and forgetting did not happen (codes ``VU-U...``)."""

    exit_status = 6


class RecordError(VuError):
    """A run folder cannot be written, read or resumed (codes ``VU-R...``)."""

    exit_status = 7


class ModelError(VuError):
    """A model cannot be found or loaded (codes ``VU-M...``)."""

    exit_status = 8


class EditError(VuError):
    """An edit is empty, non-finite, an identity, or made for another base (codes ``VU-E...``)."""

    exit_status = 9


class MeasureError(VuError):
    """A metric cannot be computed (codes ``VU-S...``)."""

    exit_status = 10


ErrorT = TypeVar("ErrorT", bound=VuError)


def together(errors: Sequence[ErrorT]) -> ErrorT:
    """Return one error that tells several at once, so that all of them can be corrected in one go.

    Args:
        errors: at least one, of one kind. A single one is returned as it is; else kind and code are those of the first.

    Example:
        >>> wrong = [DataError("VU-D075", f"Nobody knows {word!r}.", "", where="data.forget") for word in ("a", "b")]
        >>> print(together(wrong))
        There are 2 problems:
          data.forget: Nobody knows 'a'.
          data.forget: Nobody knows 'b'.
          where: data.forget
          what to do: Correct each line.
    """
    first = errors[0]
    if len(errors) == 1:
        return first
    lines = (f"{error.where}: {error.problem} {error.remedy}".removeprefix(": ").rstrip() for error in errors)
    problem = "\n  ".join([f"There are {len(errors)} problems:", *lines])
    where = ", ".join(dict.fromkeys(error.where for error in errors if error.where))
    return type(first)(first.code, problem, "Correct each line.", where=where, parts=errors)


def near_misses(word: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Return the known words that look like ``word``, best first.

    Example:
        >>> near_misses("fade-spars", ["fade", "fade-sparse", "munba"])
        ('fade-sparse', 'fade')
    """
    return tuple(difflib.get_close_matches(word, sorted(set(known)), n=limit, cutoff=0.6))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the near misses of ``word``, or nothing; never ``word`` itself."""
    found = near_misses(word, (name for name in known if name != word))
    return f" Did you mean {' or '.join(repr(name) for name in found)}?" if found else ""
