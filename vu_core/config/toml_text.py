"""TOML as text: on which line each key stands, and how a value is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_NUMBER_OR_WORD = re.compile(r"[^\s,\]}#]+(?: \d\d:\d\d[^\s,\]}#]*)?")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")


def dotted(parts: Sequence[str]) -> str:
    """Join the parts of a key, quoting those that need it.

    Example:
        >>> dotted(("data", "a b"))
        'data."a b"'
    """
    return ".".join(part if _BARE.fullmatch(part) else _quoted(part) for part in parts)


def _quoted(text: str) -> str:
    """Write a text as a basic string: the escapes of JSON are those of TOML, but for the delete character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def lines_of_keys(text: str) -> dict[str, int]:
    r"""Return the line, from 1, of every table and key of a TOML document, by dotted key.

    Tables have the line of their header, elements of arrays of tables have an index in their key. The document must
    have been accepted by ``tomllib`` before: nothing is checked here.

    Example:
        >>> lines_of_keys('[run]\nseed = 1\n[[tasks]]\nforget = ["a"]')["tasks.0.forget"]
        4
    """
    return dict(_Scanner(text).keys())


@attrs.define
class _Scanner:
    """Walks over a valid document and yields (dotted key, line)."""

    text: str
    at: int = 0
    counts: dict[tuple[str, ...], int] = attrs.field(factory=dict)

    def keys(self) -> Iterator[tuple[str, int]]:
        table: tuple[str, ...] = ()
        while self._skip(_BLANK) < len(self.text):
            line = self._line()
            if self.text.startswith("[[", self.at):
                table = self._array_element(self._header(2))
                yield dotted(table), line
            elif self.text[self.at] == "[":
                table = self._inside(self._header(1))
                yield dotted(table), line
            else:
                yield from self._pair(table)

    def _pair(self, table: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        line = self._line()
        key = self._key()
        self.at += 1  # the equals sign
        self._skip(_SPACE)
        path = (*table, *key)
        for length in range(len(table) + 1, len(path) + 1):
            yield dotted(path[:length]), line
        yield from self._value(path)

    def _value(self, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        opening = self.text[self.at]
        if opening in "\"'":
            self._string()
        elif opening == "[":
            yield from self._array(path)
        elif opening == "{":
            yield from self._inline_table(path)
        else:
            self._skip(_NUMBER_OR_WORD)

    def _array(self, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        self.at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self.text[self.at] == "]":
                break
            if self.text[self.at] == ",":
                self.at += 1
                index += 1
                continue
            yield dotted((*path, str(index))), self._line()
            yield from self._value((*path, str(index)))
        self.at += 1

    def _inline_table(self, path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        self.at += 1
        while True:
            self._skip(_BLANK)
            if self.text[self.at] == "}":
                break
            if self.text[self.at] == ",":
                self.at += 1
                continue
            yield from self._pair(path)
        self.at += 1

    def _header(self, brackets: int) -> tuple[str, ...]:
        self.at += brackets
        key = self._key()
        self.at += brackets
        return key

    def _key(self) -> tuple[str, ...]:
        """Read a dotted key; stops in front of what follows it."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            if self.text[self.at] in "\"'":
                start = self.at
                self._string()
                raw = self.text[start : self.at]
                parts.append(_unquoted(raw))
            else:
                start = self.at
                self._skip(_BARE)
                parts.append(self.text[start : self.at])
            self._skip(_SPACE)
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def _string(self) -> None:
        quote = self.text[self.at]
        literal = quote == "'"
        fence = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(fence)
        while not self.text.startswith(fence, self.at):
            self.at += 1 if literal or self.text[self.at] != "\\" else 2
        self.at += len(fence)
        # Up to two quotes may stand directly in front of the closing fence and belong to the text.
        while len(fence) == 3 and self.text.startswith(quote, self.at):
            self.at += 1

    def _array_element(self, key: tuple[str, ...]) -> tuple[str, ...]:
        path = self._inside(key[:-1]) + key[-1:]
        number = self.counts.get(path, -1) + 1
        self.counts[path] = number
        return (*path, str(number))

    def _inside(self, key: tuple[str, ...]) -> tuple[str, ...]:
        """Return the key with the index of the current element after every array of tables on the way."""
        path: tuple[str, ...] = ()
        for part in key:
            path += (part,)
            if path in self.counts:
                path += (str(self.counts[path]),)
        return path

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def _line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1


def _unquoted(raw: str) -> str:
    import tomllib

    return str(tomllib.loads(f"value = {raw}")["value"])


def toml_value(value: Any) -> str:
    """Write a value as TOML on one line.

    Example:
        >>> toml_value({"rank": 4, "targets": ("to_q", "to_k")})
        '{ rank = 4, targets = ["to_q", "to_k"] }'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(
            f"{dotted((str(key),))} = {toml_value(item)}" for key, item in value.items() if item is not None
        )
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)
