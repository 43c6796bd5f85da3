"""What every command of `vu` demands of its command line, and help pages in sections."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import click

MAY_BE_EMPTY = {"prompt"}
"""Parameters for which the empty text means something: nothing but the noise."""


class Command(click.Command):
    """A command that takes nothing silently: no empty text, no option whose first value the second would replace."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does. Raises: click.UsageError for an empty text or a repeated single-valued option."""
        words = list(args)
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            values, _, order = self.make_parser(ctx).parse_args(list(words))
            for parameter in self.get_params(ctx):
                _refuse_empty(ctx, parameter, values.get(parameter.name or ""))
                _refuse_repeated(ctx, parameter, order.count(parameter), words)
        return rest


class SectionedCommand(Command):
    """A command that lists its options under headings.

    Args:
        sections: parameter names per heading; what is in none of them stands under the last one.
    """

    def __init__(self, *arguments: Any, sections: Mapping[str, tuple[str, ...]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by section."""
        last = list(self.sections)[-1]
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in self.sections}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = next((t for t, names in self.sections.items() if parameter.name in names), last)
                rows[title].append(record)
        for title, lines in rows.items():
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)


class FiniteNumber(click.types.FloatParamType):
    """A number; click's own type lets ``nan`` and ``inf`` pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises: click.BadParameter for anything else."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class FiniteRange(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises: click.BadParameter for anything else."""
        number: float = super().convert(FiniteNumber().convert(value, param, ctx), param, ctx)
        return number


class PositiveNumber(FiniteRange):
    """A finite number above zero."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)


def _refuse_empty(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    texts = value if isinstance(value, list | tuple) else (value,)
    empty = any(isinstance(text, str) and not text.strip() for text in texts)
    if empty and parameter.name not in MAY_BE_EMPTY:
        raise click.BadParameter("it must not be empty.", ctx, parameter)


def _refuse_repeated(ctx: click.Context, parameter: click.Parameter, times: int, words: Sequence[str]) -> None:
    if not isinstance(parameter, click.Option) or parameter.multiple or parameter.is_flag or times < 2:
        return
    options = [each for each in ctx.command.params if isinstance(each, click.Option) and not each.is_flag]
    values = " and ".join(map(repr, _values_of(parameter, words, {name for each in options for name in each.opts})))
    raise click.UsageError(f"{max(parameter.opts, key=len)} was given more than once, as {values}.", ctx)


def _values_of(option: click.Option, words: Sequence[str], valued: Container[str]) -> list[str]:
    """Return the values of an option in the order in which they were written.

    Args:
        option: whose values.
        words: the command line.
        valued: all names of options that take the next word as value.
    """
    found = []
    following = iter(words)
    for word in following:
        name, equals, value = word.partition("=")
        if word == "--":  # only arguments follow
            break
        if word in valued:
            taken = next(following, "")
            found += [taken] if word in option.opts else []
        elif equals and name in option.opts and name.startswith("--"):
            found.append(value)
        elif not word.startswith("--") and word[:2] in option.opts:
            found.append(word[2:])
    return found
