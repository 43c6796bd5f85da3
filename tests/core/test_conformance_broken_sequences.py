"""Every check of a sequence turns red on one that is broken in just that way."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import attrs

import vu_core.testing as kit
from vu_core import SequenceTask
from vu_core.testing import ToySequence
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.proof import Broken, Proof, ProofTests, but, case

Tasks = tuple[SequenceTask, ...]


class HeavySequence(ToySequence):
    """Loads torch to divide a dozen classes."""

    def tasks(self, classes: Mapping[str, str]) -> Tasks:
        import torch

        return super().tasks(classes) if torch.__version__ else ()


def dividing(change: Callable[[Tasks, Mapping[str, str]], Any]) -> Callable[[], type[Any]]:
    """The toy, with something done to its tasks."""

    def make() -> type[Any]:
        def tasks(self: Any, classes: Mapping[str, str]) -> Any:
            return change(ToySequence.tasks(self, classes), classes)

        return case(kit.SequenceTests, but(ToySequence, tasks=tasks))

    return make


def first(**changes: Any) -> Callable[[Tasks, Mapping[str, str]], Tasks]:
    return lambda tasks, classes: (attrs.evolve(tasks[0], **changes), *tasks[1:])


def careless(self: Any, classes: Mapping[str, str]) -> Tasks:
    return (SequenceTask((next(iter(classes.values())),)),)


def shuffled(tasks: Tasks, classes: Mapping[str, str]) -> Tasks:
    return (SequenceTask((f"class:{random.SystemRandom().random()}",)),)


BROKEN = [
    Broken("test_there_are_tasks_and_each_forgets_something", dividing(lambda tasks, _: ()), "there is no task"),
    Broken("test_there_are_tasks_and_each_forgets_something", dividing(first(forget=())), "forgets nothing"),
    Broken("test_only_known_concepts_are_named", dividing(first(leave_out=("class:99",))), "class:99"),
    Broken("test_only_known_concepts_are_named", dividing(first(forget=("c0",))), "which are no classes"),
    Broken("test_nothing_is_forgotten_twice", dividing(lambda tasks, _: (tasks[0], *tasks)), "forgotten twice"),
    Broken("test_the_groups_of_a_task_are_disjoint", dividing(first(missing=("class:0",))), "in two groups"),
    Broken(
        "test_something_is_retained_with_examples",
        dividing(lambda tasks, classes: (SequenceTask(tuple(classes.values())),)),
        "retains no class",
    ),
    Broken("test_the_same_settings_give_the_same_tasks", dividing(shuffled), "two divisions"),
    Broken(
        "test_too_few_classes_are_an_error",
        lambda: case(kit.SequenceTests, but(ToySequence, tasks=careless)),
        "DID NOT RAISE",
    ),
    Broken(
        "test_metrics_are_names",
        lambda: case(kit.SequenceTests, but(ToySequence, metrics=["size"])),
        "a tuple of names",
    ),
    Broken("test_nothing_heavy_is_imported", lambda: case(kit.SequenceTests, HeavySequence), "torch"),
]


class TestBrokenSequences(ProofTests):
    proofs = (Proof(kit.SequenceTests, BROKEN, shared=PluginTests),)
