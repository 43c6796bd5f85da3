"""Proving a check: on a plugin that is broken in just one way, it must turn red, and for that reason."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch


@attrs.frozen
class Broken:
    """A plugin that one check must catch.

    Args:
        check: name of the test method, such as ``test_same_seed_same_edit``.
        make: returns the test class an author would write for the broken plugin; see `case`.
        words: what the failure must say, so that it is red for the right reason.
    """

    check: str
    make: Callable[[], type[Any]]
    words: str

    def __str__(self) -> str:
        return f"{self.check.removeprefix('test_')}: {self.words}"


def case(tests: type[Any], plugin: type[Any], **attributes: Any) -> type[Any]:
    """Return the test class that an author would write."""
    return type("Case", (tests,), {"plugin": plugin, **attributes})


def but(plugin: type[Any], **attributes: Any) -> type[Any]:
    """Return the plugin with something replaced, documented as it was."""
    return type("Broken", (plugin,), {"__doc__": "Do something.", **attributes})


def red(checked: type[Any], check: str, folder: Path) -> str:
    """Run one check with all its parameters.

    Returns:
        What it said when it failed; nothing when it stayed green. Any other error than a failed check is raised.
    """
    method = getattr(checked, check)
    wanted = inspect.signature(method).parameters
    marks = {mark.args[0]: mark.args[1] for mark in getattr(method, "pytestmark", ())}
    for number, values in enumerate(itertools.product(*marks.values())):
        place = folder / str(number)
        place.mkdir(parents=True)
        with pytest.MonkeyPatch.context() as monkeypatch:
            offered = {"tmp_path": place, "monkeypatch": monkeypatch, **dict(zip(marks, values, strict=True))}
            try:
                method(checked(), **{name: value for name, value in offered.items() if name in wanted})
            except (AssertionError, pytest.fail.Exception) as failure:
                return str(failure) or type(failure).__name__
    return ""


def unproven(tests: type[Any], broken: list[Broken], shared: type[Any] | None = None) -> list[str]:
    """Return the checks of a kit for which no broken plugin is given; those of ``shared`` are proven elsewhere."""
    inherited = set(dir(shared)) if shared is not None else set()
    checks = {name for name in dir(tests) if name.startswith("test_")} - inherited
    return sorted(checks - {entry.check for entry in broken})


@attrs.frozen
class Proof:
    """What proves one kit.

    Args:
        tests: the kit.
        broken: broken plugins, at least one for each check of the kit.
        elsewhere: checks that a test of their own proves.
        shared: a kit whose checks this one inherits; they are proven with that kit.
    """

    tests: type[Any]
    broken: list[Broken]
    elsewhere: tuple[str, ...] = ()
    shared: type[Any] | None = None


class ProofTests:
    """Run every `Broken` of some kits, and see that no check of theirs lacks one.

    Example:
        >>> class TestProofs(ProofTests):
        ...     proofs = ()
    """

    proofs: ClassVar[tuple[Proof, ...]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make one test of each broken plugin and of each kit."""
        if "broken" in metafunc.fixturenames:
            metafunc.parametrize("broken", [each for proof in self.proofs for each in proof.broken], ids=str)
        if "proof" in metafunc.fixturenames:
            metafunc.parametrize("proof", self.proofs, ids=[proof.tests.__name__ for proof in self.proofs])

    @pytest.fixture(autouse=True)
    def as_it_was(self) -> Iterator[None]:
        """Broken plugins leave things behind; no other test may see them."""
        grad = torch.is_grad_enabled()
        with torch.random.fork_rng():
            yield
        torch.set_grad_enabled(grad)

    def test_a_broken_plugin_turns_the_check_red(self, broken: Broken, tmp_path: Path) -> None:
        """A check that stays green on what it must catch is worth nothing."""
        said = red(broken.make(), broken.check, tmp_path)
        assert said, "the check is green on a broken plugin"
        assert broken.words in said, f"red for another reason: {said}"

    def test_every_check_has_a_broken_plugin(self, proof: Proof) -> None:
        """A check that nobody proves may be unable to fail."""
        assert set(unproven(proof.tests, proof.broken, proof.shared)) == set(proof.elsewhere)
