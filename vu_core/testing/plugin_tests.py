"""What every plugin of every kind must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import attrs
import pytest

from vu_core.errors import VuError
from vu_core.source import Provenance, Source


class PluginTests:
    """Checks of `Config` and `source`, inherited by the tests of each kind.

    Set ``plugin`` to the class. ``settings`` are fields of its `Config` that make it small and quick (and those
    without a default). Where the kit cannot guess another value for a field, name one in ``other_values``; fields that
    show in nothing the kit can see (paths, downloads) are named in ``tested_elsewhere``.
    """

    plugin: ClassVar[type[Any]]
    settings: ClassVar[Mapping[str, Any]] = {}
    other_values: ClassVar[Mapping[str, Any]] = {}
    tested_elsewhere: ClassVar[tuple[str, ...]] = ()

    def config(self, **changes: Any) -> Any:
        """Return the `Config` that the tests use."""
        return self.plugin.Config(**{**self.settings, **changes})

    def make(self, **changes: Any) -> Any:
        """Return the plugin under test."""
        return self.plugin(self.config(**changes))

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return a comparable value that shows what a configuration does; each kind has its own."""
        raise NotImplementedError

    def test_config_is_a_frozen_attrs_class(self) -> None:
        """Configurations are values: they can be hashed into a run's id and never change under a run."""
        config = self.config()
        assert attrs.has(type(config)), f"{type(config).__name__} is no attrs class"
        for field in attrs.fields(type(config)):
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(config, field.name, getattr(config, field.name))

    def test_every_field_has_help(self) -> None:
        """`vu describe` prints one line per field."""
        silent = [path for path, field in walk_fields(self.plugin.Config) if not field.metadata.get("help")]
        assert not silent, f"no help for: {', '.join(silent)}; declare fields with vu_core.setting"

    def test_every_field_has_a_type_and_is_lower_case(self) -> None:
        """Keys of the configuration are snake_case, and typed, so that files can be checked."""
        for path, field in walk_fields(self.plugin.Config):
            assert field.type is not None, f"{path} has no type"
            assert field.name == field.name.lower(), f"{path} is not snake_case"

    def test_source_names_paper_and_address(self) -> None:
        """Every result can be traced to where its algorithm comes from."""
        source = self.plugin.source
        assert isinstance(source, Source), "source must be a vu_core.Source"
        assert source.paper.strip(), "source names no paper"
        assert source.url.startswith("https://"), f"source.url is no https address: {source.url!r}"
        assert source.provenance in get_args(Provenance), f"unknown provenance {source.provenance!r}"

    def test_is_documented(self) -> None:
        """The first line of the docstring says what the plugin does."""
        assert (self.plugin.__doc__ or "").strip(), f"{self.plugin.__name__} has no docstring"

    def test_every_field_changes_something(self, tmp_path: Path) -> None:
        """A field that changes nothing is a lie; one that is ``speed_only`` must change nothing."""
        base = self.config()
        usual = self.outcome(base, tmp_path / "usual")
        for field in attrs.fields(type(base)):
            if field.name in self.tested_elsewhere or attrs.has(type(getattr(base, field.name))):
                continue  # a nested table, such as Training, belongs to whoever reads it
            changed = self._with_other_value(base, field)
            try:
                seen = self.outcome(changed, tmp_path / field.name)
            except VuError as error:
                seen = error.code
            value = getattr(changed, field.name)
            if field.metadata.get("speed_only"):
                assert seen == usual, f"{field.name} = {value!r} claims to change speed only, but changes the result"
            else:
                assert seen != usual, f"{field.name} = {value!r} changes nothing"

    def _with_other_value(self, base: Any, field: attrs.Attribute[Any]) -> Any:
        if field.name in self.other_values:
            return attrs.evolve(base, **{field.name: self.other_values[field.name]})
        for value in _other_values(field, getattr(base, field.name)):
            try:
                return attrs.evolve(base, **{field.name: value})
            except (ValueError, TypeError):
                continue
        raise AssertionError(f"name another value for {field.name!r} in other_values")


def walk_fields(config: type[Any], prefix: str = "") -> Iterator[tuple[str, attrs.Attribute[Any]]]:
    """Yield (dotted path, field) of a `Config` and of the attrs classes inside it."""
    attrs.resolve_types(config)
    for field in attrs.fields(config):
        path = f"{prefix}{field.name}"
        yield path, field
        if isinstance(field.type, type) and attrs.has(field.type):
            yield from walk_fields(field.type, f"{path}.")


def _other_values(field: attrs.Attribute[Any], value: Any) -> Iterator[Any]:
    choices = field.metadata.get("choices")
    if choices:
        yield from (choice for choice in choices if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (value * 2 + 0.25, value / 2, 0.75 * value + 0.1)
    elif value is None:
        yield from (1, 0.5)
