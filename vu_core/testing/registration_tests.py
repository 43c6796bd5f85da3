"""Conformance of what is data or a command: recipes, commands."""

from __future__ import annotations

import tomllib
from importlib import import_module
from importlib.resources import files
from typing import Any, ClassVar

import click
from click.testing import CliRunner

TABLES = {"recipe", "unlearner", "weighting", "regularizer", "data", "measure", "metric"}
"""Tables that a recipe may hold; never ``[run]``: a seed or a folder is nobody's recipe."""


class RecipeTests:
    """Checks of a recipe; set ``target`` as it is registered, ``"package:path/in/package.toml"``."""

    target: ClassVar[str]

    def read(self) -> dict[str, Any]:
        """Return the tables of the recipe."""
        package, _, path = self.target.partition(":")
        return tomllib.loads(files(package).joinpath(path).read_text(encoding="utf-8"))

    def test_names_model_and_method(self) -> None:
        """A recipe belongs to one (model, method)."""
        header = self.read().get("recipe", {})
        for key in ("model", "method", "summary"):
            assert header.get(key), f"[recipe] names no {key}"
        assert set(header) == {"model", "method", "summary"}, f"unknown keys in [recipe]: {sorted(header)}"

    def test_holds_known_tables_only(self) -> None:
        """A recipe sets parameters of the method, nothing of the run."""
        unknown = set(self.read()) - TABLES
        assert not unknown, f"tables that a recipe may not have: {sorted(unknown)}"

    def test_never_depends_on_a_concept(self) -> None:
        """Settings are for a model and a method; tuning per concept is not a recipe."""
        data = self.read().get("data", {})
        assert not {"forget", "overwrite"} & set(data), "a recipe names a concept"

    def test_sets_something(self) -> None:
        """A recipe without settings is no recipe."""
        assert set(self.read()) - {"recipe"}, "the recipe sets nothing"


class CommandTests:
    """Checks of a command; set ``target`` as it is registered, ``"module:attribute"``."""

    target: ClassVar[str]

    def command(self) -> click.Command:
        """Return the click command."""
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command), f"{self.target} is no click command"
        return found

    def test_has_help(self) -> None:
        """Command and options explain themselves."""
        command = self.command()
        assert command.help, "the command has no help"
        silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
        assert not silent, f"options without help: {silent}"

    def test_help_can_be_printed(self) -> None:
        """`--help` works and starts nothing."""
        result = CliRunner().invoke(self.command(), ["--help"])
        assert result.exit_code == 0, result.output
        assert "Usage" in result.output
