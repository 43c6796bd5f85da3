"""The sequence `continual`: order, splits, missing classes."""

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import pytest

from vu_core import ConfigError
from vu_core.testing import SequenceTests
from vu_gs_lora.continual import Continual, ContinualConfig

HUNDRED = {f"c{label}": f"class:{label}" for label in range(100)}
# fmt: off
ORDER = [
    83, 17, 10, 9, 89, 52, 7, 32, 37, 77, 61, 34, 78, 55, 56, 63, 69, 22, 75, 66,
    35, 72, 71, 23, 86, 38, 24, 5, 29, 30, 16, 11, 82, 19, 57, 14, 91, 27, 98, 53,
    0, 20, 59, 28, 47, 18, 6, 48, 12, 62, 1, 43, 3, 60, 41, 85, 4, 95, 97, 36,
    94, 65, 67, 99, 25, 33, 70, 40, 92, 31, 58, 15, 45, 2, 87, 76, 80, 44, 64, 8,
    51, 54, 13, 88, 84, 26, 50, 39, 96, 81, 49, 42, 21, 93, 74, 73, 46, 90, 68, 79,
]
"""The published order of 100 classes; 100-20, the first task, forgets the last row."""
# fmt: on
FIRST, LAST = ORDER[:20], ORDER[-20:]


class TestContinual(SequenceTests):
    plugin = Continual
    settings: ClassVar[Mapping[str, Any]] = {"tasks": 3, "classes_per_task": 2, "missing": 1}
    other_values: ClassVar[Mapping[str, Any]] = {"retain": 9}


def _labels(concepts: tuple[str, ...]) -> list[int]:
    return [int(text.removeprefix("class:")) for text in concepts]


def test_the_published_order() -> None:
    """100-20, 80-20, 60-20, 40-20: each task forgets the last 20 of what is left, and the first 20 stay."""
    tasks = Continual(ContinualConfig()).tasks(HUNDRED)
    assert [_labels(task.forget) for task in tasks] == [ORDER[80:], ORDER[60:80], ORDER[40:60], ORDER[20:40]]


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
