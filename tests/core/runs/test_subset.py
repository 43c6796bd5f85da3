"""``[subset]``: which examples are trained on."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vu_core import DataError, Examples, ForgetRetain, VuError
from vu_core.config import Override, RawConfig, SubsetSettings
from vu_core.pipeline import dry_run
from vu_core.plan import Plan
from vu_core.plugins import Plugins, discover
from vu_core.stages.load import load
from vu_core.stages.measure import evaluate_on
from vu_core.stages.read import read
from vu_core.stages.subset import draw
from vu_core.testing import toy_plugin

Make = Callable[..., RawConfig]


@pytest.fixture(scope="module")
def toys() -> Plugins:
    """The toys of the conformance kit: images with a colour and a shape."""
    return discover(extra=[("vu-toys", "0.1", toy_plugin)], installed=False)


def _raw(**values: Any) -> RawConfig:
    settings = {
        "model.name": "toy",
        "data.name": "toy",
        "data.per_pair": 10,
        "data.forget": ["colour:red"],
        "unlearner.method": "toy-distillation",
        "run.seed": 1,
    }
    settings |= {key.replace("__", "."): value for key, value in values.items()}
    return read(None, [Override(key, value, "--set") for key, value in settings.items()])


def _loaded(toys: Plugins, **values: Any) -> tuple[Plan, Any]:
    plan = dry_run(_raw(**values), plugins=toys)
    return plan, load(plan, toys, Path("run"), lambda event: None)


def _data(toys: Plugins, **values: Any) -> ForgetRetain:
    data = _loaded(toys, **values)[1].data
    assert isinstance(data, ForgetRetain)
    return data


def _classes(table: Examples) -> Counter[tuple[str, ...]]:
    return Counter(zip(table.labels["colour"], table.labels["shape"], strict=True))


def _pixels(table: Examples) -> list[float]:
    import torch

    assert table.load is not None
    return [float(table.load(row, torch.Generator())[0, 0, 0]) for row in range(len(table))]  # tells the index


def test_few_shot_keeps_exactly_so_many_of_every_class(toys: Plugins) -> None:
    data = _data(toys, subset__per_class=3)
    assert set(_classes(data.forget).values()) == {3}
    assert set(_classes(data.retain).values()) == {3}
    assert len(_classes(data.retain)) == 4
    assert len(data.validation_retain) == 4, "what is selected on stays whole"


def test_a_class_with_too_few_examples_is_an_error(toys: Plugins) -> None:
    with pytest.raises(DataError, match="10 training examples") as caught:
        _data(toys, subset__per_class=11)
    assert caught.value.code == "VU-D120"


def test_two_methods_with_one_seed_get_the_same_examples(toys: Plugins) -> None:
    one = _data(toys, subset__per_class=3)
    other = _data(toys, subset__per_class=3, unlearner__strength=2.0, unlearner__parameters__name="full", run__task=2)
    assert _pixels(one.forget) == _pixels(other.forget)
    assert _pixels(one.retain) == _pixels(other.retain)
    assert _pixels(_data(toys, subset__per_class=3, run__seed=2).retain) != _pixels(one.retain)


def test_what_becomes_of_one_class_does_not_hang_on_the_others(toys: Plugins) -> None:
    wide, narrow = (
        _data(toys, subset__per_class=3, subset__leave_out=left_out).retain for left_out in ([], ["colour:blue"])
    )
    green = [row for row, colour in enumerate(wide.labels["colour"]) if colour == "green"]
    assert _pixels(wide.take(green)) == _pixels(narrow)


@pytest.mark.parametrize(("fraction", "kept"), [(0.3, 3), (0.04, 1), (1.0, 10)])
def test_a_fraction_is_one_of_every_class(toys: Plugins, fraction: float, kept: int) -> None:
    data = _data(toys, subset__fraction=fraction)
    assert set(_classes(data.forget).values()) | set(_classes(data.retain).values()) == {kept}


def test_the_order_of_the_table_stays() -> None:
    table = Examples("retain", tuple(map(str, range(20))), labels={"class": ("a", "b") * 10})
    rows = [int(caption) for caption in draw(table, SubsetSettings(fraction=0.5), seed=0).captions]
    assert rows == sorted(rows)
    assert len(rows) == 10


def test_what_is_left_out_is_in_neither_side_and_counts_as_old(toys: Plugins) -> None:
    _, bench = _loaded(toys, subset__leave_out=["colour:blue"])
    for table in (bench.data.forget, bench.data.retain, bench.data.validation_forget, bench.data.validation_retain):
        assert "blue" not in table.labels["colour"]
    evaluation = evaluate_on(bench)
    assert set(evaluation.groups["old"].labels["colour"]) == {"blue"}
    assert set(evaluation.examples[1].labels["colour"]) == {"green"}
    assert {item.labels["colour"] for item in (*evaluation.items, *evaluation.samples)} == {"red", "green"}


def test_missing_classes_are_in_no_batch_but_are_asked_about(toys: Plugins) -> None:
    _, bench = _loaded(toys, subset__missing=["colour:blue"])
    for table in (bench.data.retain, bench.data.validation_retain):
        assert set(table.labels["colour"]) == {"green"}
    evaluation = evaluate_on(bench)
    assert set(evaluation.examples[1].labels["colour"]) == {"green", "blue"}
    assert set(evaluation.groups["missing"].labels["colour"]) == {"blue"}
    assert "old" not in evaluation.groups


def test_without_the_table_everything_is_trained_on(toys: Plugins) -> None:
    plan, bench = _loaded(toys)
    assert len(bench.data.retain) == 40
    assert evaluate_on(bench).groups == {}
    assert plan.data_digest == plan.manifest.digest


def test_the_plan_counts_what_is_left(toys: Plugins) -> None:
    counts = dry_run(_raw(subset__fraction=0.5, subset__leave_out=["colour:blue"]), plugins=toys).manifest.counts
    assert (counts["train/forget"], counts["train/retain"]) == (10, 10)
    counts = dry_run(_raw(subset__missing=["colour:blue"]), plugins=toys).manifest.counts
    assert counts["train/retain"] == 20


def test_the_subset_is_part_of_the_id_and_of_what_caches_hang_on(toys: Plugins) -> None:
    plans = [
        dry_run(_raw(**values), plugins=toys)
        for values in ({}, {"subset__per_class": 3}, {"subset__fraction": 0.5}, {"subset__leave_out": ["colour:blue"]})
    ]
    assert len({plan.run_id for plan in plans}) == 4
    assert len({plan.data_digest for plan in plans}) == 4


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"subset__leave_out": ["colour:pink"]}, "VU-D110"),
        ({"subset__missing": ["colour:pink"]}, "VU-D110"),
        ({"subset__leave_out": ["colour:red"]}, "VU-D121"),
        ({"subset__missing": ["colour:green", "colour:blue"]}, "VU-D121"),
        ({"subset__fraction": 0.0}, "VU-C001"),
        ({"subset__fraction": 1.1}, "VU-C001"),
        ({"subset__per_class": 0}, "VU-C001"),
        ({"subset__per_class": 2, "subset__fraction": 0.5}, "VU-C001"),
        ({"subset__foo": 2}, "VU-C001"),
    ],
)
def test_what_cannot_be_had_is_told(toys: Plugins, values: dict[str, Any], code: str) -> None:
    with pytest.raises(VuError) as caught:
        _data(toys, **values)
    assert caught.value.code == code
