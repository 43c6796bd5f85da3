"""Conformance of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vu_core.contracts.sequence import SequenceTask
from vu_core.errors import VuError
from vu_core.testing.fresh_process import heavy_imports
from vu_core.testing.plugin_tests import PluginTests


class SequenceTests(PluginTests):
    """Checks of a sequence; set ``plugin``, and ``settings`` with which it divides a dozen classes."""

    classes: ClassVar[Mapping[str, str]] = {f"c{label}": f"class:{label}" for label in range(12)}
    """What is divided: class name to concept text."""

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the tasks."""
        return self.plugin(config).tasks(self.classes)

    def tasks(self) -> tuple[SequenceTask, ...]:
        """Return the tasks of the settings under test."""
        return tuple(self.make().tasks(dict(self.classes)))

    def test_there_are_tasks_and_each_forgets_something(self) -> None:
        """A task that forgets nothing is no run."""
        tasks = self.tasks()
        assert tasks, "there is no task"
        assert all(isinstance(task, SequenceTask) for task in tasks), "tasks are vu_core.SequenceTask"
        assert all(task.forget for task in tasks), "a task forgets nothing"

    def test_only_known_concepts_are_named(self) -> None:
        """Tasks name the concepts of the classes that they were handed, whatever these are called."""
        known = set(self.classes.values())
        for number, task in enumerate(self.tasks()):
            strange = {*task.forget, *task.leave_out, *task.missing} - known
            assert not strange, f"task {number} names {sorted(strange)}, which are no classes"

    def test_nothing_is_forgotten_twice(self) -> None:
        """What a task forgets was forgotten by none before it."""
        forgotten = [concept for task in self.tasks() for concept in task.forget]
        twice = sorted({concept for concept in forgotten if forgotten.count(concept) > 1})
        assert not twice, f"forgotten twice: {twice}"

    def test_the_groups_of_a_task_are_disjoint(self) -> None:
        """A class is forgotten, left out or missing, never two of these."""
        for number, task in enumerate(self.tasks()):
            named = [*task.forget, *task.leave_out, *task.missing]
            twice = sorted({concept for concept in named if named.count(concept) > 1})
            assert not twice, f"task {number} names {twice} in two groups"

    def test_something_is_retained_with_examples(self) -> None:
        """After the last task a class is left that is trained on, or there is nothing to keep."""
        earlier: set[str] = set()
        for number, task in enumerate(self.tasks()):
            earlier |= set(task.forget)
            rest = set(self.classes.values()) - earlier - {*task.leave_out, *task.missing}
            assert rest, f"task {number} retains no class with examples"

    def test_the_same_settings_give_the_same_tasks(self) -> None:
        """A sequence that is resumed or repeated has the same tasks."""
        assert self.tasks() == self.tasks(), "two equal calls gave two divisions"

    def test_too_few_classes_are_an_error(self) -> None:
        """One class cannot be divided; the user is told, and nothing is made up."""
        with pytest.raises(VuError):
            self.make().tasks(dict(list(self.classes.items())[:1]))

    def test_metrics_are_names(self) -> None:
        """``metrics`` holds names of metrics, which need not be installed."""
        names = self.plugin.metrics
        assert isinstance(names, tuple), "metrics must be a tuple of names"
        assert all(isinstance(name, str) and name for name in names), f"metrics must be names: {names!r}"

    def test_nothing_heavy_is_imported(self) -> None:
        """Tasks are found before anything heavy is needed, for `vu unlearn --dry-run`."""
        imported = heavy_imports(self.plugin, None, self.settings, [("tasks", [dict(self.classes)])])
        assert not imported, f"imported while the classes were divided: {', '.join(imported)}"
