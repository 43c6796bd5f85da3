"""The sequence `continual`: order, splits, missing classes."""

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import pytest

from vu_core import ConfigError
from vu_core.testing import SequenceTests
from vu_gs_lora.continual import Continual, ContinualConfig

HUNDRED = {f"c{label}": f"class:{label}" for label in range(100)}
LAST = [51, 54, 13, 88, 84, 26, 50, 39, 96, 81, 49, 42, 21, 93, 74, 73, 46, 90, 68, 79]
"""The last 20 of the published order of 100 classes: what the first task of 100-20 forgets."""
FIRST = [83, 17, 10, 9, 89, 52, 7, 32, 37, 77, 61, 34, 78, 55, 56, 63, 69, 22, 75, 66]


class TestContinual(SequenceTests):
    plugin = Continual
    settings: ClassVar[Mapping[str, Any]] = {"tasks": 3, "classes_per_task": 2, "missing": 1}
    other_values: ClassVar[Mapping[str, Any]] = {"retain": 9}


def _labels(concepts: tuple[str, ...]) -> list[int]:
    return [int(text.removeprefix("class:")) for text in concepts]


def test_the_published_order() -> None:
    tasks = Continual(ContinualConfig()).tasks(HUNDRED)
    assert _labels(tasks[0].forget) == LAST
    forgotten = [label for task in reversed(tasks) for label in _labels(task.forget)]
    assert forgotten[-20:] == LAST
    assert not set(forgotten) & set(FIRST), "100-20, 80-20, 60-20, 40-20: the first 20 of the order stay"


def test_splits_are_disjoint_and_their_union_is_everything() -> None:
    for config in (ContinualConfig(), ContinualConfig(retain=70, tasks=3)):
        tasks = Continual(config).tasks(HUNDRED)
        for number, task in enumerate(tasks):
            forget, old = set(_labels(task.forget)), set(_labels(task.leave_out))
            retained = 100 - len(forget) - len(old)
            assert not forget & old
            assert retained == (config.retain or 80) - 20 * number


def test_a_single_step_forgets_the_last_of_the_order() -> None:
    (task,) = Continual(ContinualConfig(tasks=1, classes_per_task=5)).tasks(HUNDRED)
    assert _labels(task.forget) == [73, 46, 90, 68, 79]
    assert task.leave_out == ()


def test_missing_classes_are_the_first_of_the_order() -> None:
    for task in Continual(ContinualConfig(missing=5)).tasks(HUNDRED):
        assert _labels(task.missing) == FIRST[:5]


def test_with_fewer_retained_classes_the_others_are_old_from_the_beginning() -> None:
    first, second = Continual(ContinualConfig(tasks=2, classes_per_task=20, retain=60)).tasks(HUNDRED)
    assert _labels(first.leave_out) == LAST
    assert set(_labels(second.leave_out)) == {*LAST, *_labels(first.forget)}


@pytest.mark.parametrize(
    "changed", [{"tasks": 2}, {"classes_per_task": 10}, {"retain": 70}, {"missing": 1}, {"order_seed": 7}]
)
def test_every_setting_changes_the_tasks(changed: Mapping[str, Any]) -> None:
    usual = ContinualConfig(tasks=3)
    assert Continual(attrs.evolve(usual, **changed)).tasks(HUNDRED) != Continual(usual).tasks(HUNDRED)


@pytest.mark.parametrize("config", [{"tasks": 5}, {"missing": 20}, {"retain": 81}, {"retain": 60, "tasks": 4}])
def test_too_few_classes_are_an_error(config: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match="100 classes") as caught:
        Continual(ContinualConfig(**config)).tasks(HUNDRED)
    assert caught.value.code == "VU-C160"


def test_all_but_one_class_may_be_forgotten() -> None:
    tasks = Continual(ContinualConfig(tasks=99, classes_per_task=1)).tasks(HUNDRED)
    assert len(tasks) == 99
