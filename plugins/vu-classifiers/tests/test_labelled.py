"""Labelled images in memory: what is forgotten, how they are divided, what a model is handed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from vu_classifiers.concepts import check_overwrites, select
from vu_classifiers.digits import Digits, DigitsConfig
from vu_classifiers.image_classifier import ImageClassifier
from vu_classifiers.labelled import CLASS, Divided, Labelled, resized, shifted
from vu_core import Batch, Capability, DataError, Examples, ForgetRetain, ModelFacts, Run
from vu_core.testing import toy_run

NAMES = ("cat", "cow", "dog")


@pytest.fixture(scope="module")
def data() -> Labelled:
    """20 training and 4 test images of every class, in turn; image n is all level n."""
    number = np.arange(72)
    images = np.broadcast_to(number[:, None, None, None], (72, 3, 8, 8)).astype(np.uint8)
    return Labelled(images, {CLASS: NAMES}, {CLASS: number % 3}, train=number[:60], test=number[60:])


def divided(data: Labelled, *forget: str, **changes: Any) -> Divided:
    settings = {"validation": 0.1, "random_seed": 0, "augment": False, "flip": False, **changes}
    return Divided(data, select(forget or ("class:cow",), [], data.axes), **settings)


def built(data: Labelled, run: Run, *forget: str, **changes: Any) -> ForgetRetain:
    return divided(data, *forget, **changes).build(8, run)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(tmp_path, stage="load")


def levels(table: Examples) -> list[int]:
    """Return the number of every image of a table."""
    return table.tensors["pixels"][:, 0, 0, 0].tolist()


def batch_of(table: Examples, run: Run, rows: tuple[int, ...] = (0, 1), step: int = 0) -> Batch:
    return Batch(table, rows, step, tuple(range(len(rows))), run, torch.device("cpu"))


def classifier(classes: tuple[str, ...], size: int = 8) -> ImageClassifier:
    facts = ModelFacts("mine", "", "hash", frozenset(), parameters=1, bytes=4, resolution=size)
    return ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, len(classes))), facts, classes=classes)


def test_a_class_is_forgotten_in_every_split(data: Labelled, run: Run) -> None:
    tables = built(data, run)
    assert sorted(levels(tables.forget) + levels(tables.validation_forget)) == list(range(1, 60, 3))
    assert len(tables.validation_forget) == 2  # floor(0.1 * 20)
    assert len(tables.validation_retain) == 4
    everything = [level for table in attrs.astuple(tables, recurse=False) for level in levels(table)]
    assert sorted(everything) == list(range(60))
    evaluation = divided(data).evaluation(8, split="held-out", seeds=(1,), samples=2)
    assert evaluation.examples is not None
    assert levels(evaluation.examples[0]) == [61, 64, 67, 70]
    assert len(evaluation.examples[1]) == 8
    assert tables.forget.labels == {CLASS: ("cow",) * 18}
    assert tables.forget.overwrites is None


def test_several_classes_are_one_side(data: Labelled, run: Run) -> None:
    assert len(built(data, run, "class:cow", "class:dog").forget) == 36


def test_a_random_share_is_of_training_images(data: Labelled, run: Run) -> None:
    tables = built(data, run, "random:10%")
    assert (len(tables.forget), len(tables.retain)) == (5, 49)  # floor(0.1 * 54)
    assert (len(tables.validation_forget), len(tables.validation_retain)) == (0, 6)
    evaluation = divided(data, "random:0.1").evaluation(8, split="held-out", seeds=(1,), samples=2)
    assert evaluation.examples is not None
    assert [len(table) for table in evaluation.examples] == [0, 12]
    assert not any(item.forget for item in evaluation.items)
    assert len(evaluation.samples) == 2 - 1  # nothing is shown of what was forgotten
    counts = divided(data, "random:0.1").manifest("x", "", "").counts
    assert (counts["train/forget"], counts["held-out/forget"], counts["held-out/retain"]) == (5, 0, 12)


def test_the_seed_draws_the_share(data: Labelled, run: Run) -> None:
    first, again, other = (levels(built(data, run, "random:0.3", random_seed=seed).forget) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    digests = {divided(data, "random:0.3", random_seed=seed).manifest("x", "", "").digest for seed in (0, 1)}
    assert len(digests) == 2


def test_a_larger_share_holds_the_smaller_one(data: Labelled, run: Run) -> None:
    small, large = (set(levels(built(data, run, f"random:{share}").forget)) for share in (0.1, 0.5))
    assert small < large


def test_a_share_of_no_image_is_said(data: Labelled) -> None:
    with pytest.raises(DataError) as caught:
        divided(data, "random:0.01").manifest("x", "", "")
    assert caught.value.code == "VU-D111"


def test_equal_images_are_never_on_both_sides_of_validation() -> None:
    images = np.zeros((10, 3, 4, 4), dtype=np.uint8)
    images[5:] = np.arange(1, 6)[:, None, None, None]
    rows = np.arange(10)
    data = Labelled(images, {CLASS: ("a",)}, {CLASS: np.zeros(10, dtype=np.int64)}, rows, rows[:0])
    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        taken, rest = data.stratified(rows, share)
        assert {data.hashes[row] for row in taken}.isdisjoint(data.hashes[row] for row in rest)
        assert len(taken) >= int(10 * share)
    assert len(data.stratified(rows, 0.0)[0]) == 0


@pytest.mark.parametrize(
    ("forget", "problem"),
    [
        ("", "what to forget"),
        ("cat", "Did you mean 'class:cat'"),
        ("clas:cat", "Did you mean 'class'"),
        ("class:cta", "Did you mean 'cat'"),
        ("class:cat class:cat", "twice"),
        ("random:0", "no share"),
        ("random:1", "no share"),
        ("random:101%", "no share"),
        ("random:nan", "no share"),
        ("random:-0.1", "no share"),
        ("random:0.1 class:cat", "together"),
    ],
)
def test_what_cannot_be_forgotten_is_said(forget: str, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        select(forget.split(), [], {CLASS: NAMES})
    assert caught.value.code == "VU-D111"
    assert problem in caught.value.problem
    assert "class:cat" in caught.value.remedy or "random" in caught.value.remedy or "Name" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "share"),
    [("10%", "0.1"), ("0.1", "0.1"), (".25", "0.25"), ("2.5%", "0.025"), ("0.9999999", "0.9999999")],
)
def test_a_share_may_be_a_percentage(text: str, share: str) -> None:
    assert select([f"random:{text}"], [], {CLASS: NAMES}).concepts[0].labels == {"random": share}


def test_an_overwrite_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        select(["class:cat"], ["class:dog"], {CLASS: NAMES})
    assert (caught.value.code, caught.value.where) == ("VU-D112", "data.overwrite")


@pytest.mark.parametrize(("can", "refused"), [(Capability.DENOISE, True), (Capability.CLASSIFY, False)])
@pytest.mark.parametrize("plugin", [Digits, SimpleNamespace()])
def test_a_diffusion_model_is_refused(can: Capability, refused: bool, plugin: Any) -> None:
    chosen = SimpleNamespace(entry=SimpleNamespace(load=lambda: plugin), name="digits")
    model = SimpleNamespace(capabilities=frozenset({can}), name="sd")
    plan: Any = SimpleNamespace(config=SimpleNamespace(data=chosen), model=model)
    if refused and plugin is Digits:
        with pytest.raises(DataError) as caught:
            check_overwrites(plan)
        assert caught.value.code == "VU-D113"
    else:
        check_overwrites(plan)


def test_pixels_lie_in_memory_at_the_size_of_the_model(data: Labelled, run: Run) -> None:
    tables = divided(data).build(16, run)
    stored = tables.forget.tensors["pixels"]
    assert (stored.dtype, stored.shape) == (torch.uint8, (18, 3, 16, 16))
    assert tables.forget.load is not None
    assert torch.equal(tables.forget.load(3, torch.Generator()), stored[3].float() / 127.5 - 1)


def test_the_model_finds_its_classes_by_name(data: Labelled, run: Run) -> None:
    """The order of a model's classes need not be that of the data."""
    model = classifier(("dog", "cow", "cat"))
    tables = built(data, run)
    prepared = model.prepare(tables.retain, run)
    assert prepared.tensors["pixels"] is tables.retain.tensors["pixels"]  # not read once more
    batch = batch_of(prepared, run)
    assert [model.classes[label] for label in model.labels(batch)] == list(tables.retain.labels[CLASS][:2])
    assert torch.equal(model.images(batch), tables.retain.tensors["pixels"][:2].float() / 127.5 - 1)


def test_augmented_images_change_at_every_step(data: Labelled, run: Run) -> None:
    random = attrs.evolve(data, images=np.random.default_rng(0).integers(0, 256, (72, 3, 8, 8)).astype(np.uint8))
    model = classifier(NAMES)
    table = model.prepare(built(random, run, augment=True, flip=True).retain, run)
    assert table.reload
    assert "pixels" not in table.tensors
    first, again, later = (model.images(batch_of(table, run, step=step)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert (model.labels(batch_of(table, run)) == torch.tensor([0, 2])).all()


def test_only_training_images_are_augmented_and_none_while_measured(data: Labelled, run: Run) -> None:
    tables = built(data, run, augment=True)
    assert [table.reload for table in attrs.astuple(tables, recurse=False)] == [True, True, False, False]
    measured = built(data, attrs.evolve(run, stage="measure"), augment=True)
    assert not measured.forget.reload
    assert "pixels" in measured.forget.tensors


def test_shifted_images_are_cut_out_of_a_black_frame() -> None:
    image = torch.arange(1, 193, dtype=torch.uint8).reshape(3, 8, 8)
    framed = torch.zeros(3, 10, 10, dtype=torch.uint8)
    framed[:, 1:9, 1:9] = image
    places = {framed[:, y : y + 8, x : x + 8].numpy().tobytes() for y in range(3) for x in range(3)}
    mirrored = {framed[:, y : y + 8, x : x + 8].flip(-1).numpy().tobytes() for y in range(3) for x in range(3)}
    for flip, allowed in ((False, places), (True, places | mirrored)):
        seen = {shifted(image, torch.Generator().manual_seed(seed), flip=flip).numpy().tobytes() for seed in range(300)}
        assert seen == allowed


def test_resized_keeps_what_fits_and_averages_what_does_not() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert resized(images, 8) is images
    assert resized(images[:0], 4).shape == (0, 3, 4, 4)
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(resized(flat, 5), torch.full((1, 3, 5, 5), 77, dtype=torch.uint8))


def test_a_table_that_is_too_large_is_resized_when_used(
    data: Labelled, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = divided(data).build(16, run).forget
    monkeypatch.setattr("vu_classifiers.labelled.LARGEST", 18 * 3 * 16 * 16 - 1)
    large = divided(data).build(16, run).forget
    assert (large.reload, "pixels" in large.tensors) == (True, False)
    assert large.load is not None
    assert small.load is not None
    assert torch.equal(large.load(5, torch.Generator()), small.load(5, torch.Generator()))


def test_items_name_every_class_with_every_seed(data: Labelled) -> None:
    evaluation = divided(data).evaluation(8, split="validation", seeds=(1, 2), samples=3)
    assert [(item.prompt, item.seed, item.forget) for item in evaluation.items] == [
        (name, seed, name == "cow") for seed in (1, 2) for name in NAMES
    ]
    assert [item.prompt for item in evaluation.samples] == ["cow", "cow", "cat"]


def test_digits_take_no_place() -> None:
    with pytest.raises(DataError) as caught:
        Digits("images", DigitsConfig())
    assert caught.value.code == "VU-D114"


def test_digits_are_those_of_scikit_learn(run: Run) -> None:
    from sklearn.datasets import load_digits

    digits = Digits("", DigitsConfig())
    assert list(digits.classes().items())[:2] == [("0", "class:0"), ("1", "class:1")]
    selection = digits.parse(["class:3"], [])
    counts = digits.manifest(selection).counts
    assert counts["held-out/forget"] == 36  # floor(0.2 * 183)
    assert counts["validation/forget"] == 14  # floor(0.1 * 147)
    assert counts["train/forget"] == 133
    assert (
        sum(counts[f"{split}/{side}"] for split in ("train", "validation", "held-out") for side in ("forget", "retain"))
        == 1797
    )
    table = digits.build(selection, resolution=8, run=run).forget
    threes = load_digits().images[load_digits().target == 3]
    known = {np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in threes}
    assert {image[0].numpy().tobytes() for image in table.tensors["pixels"]} <= known
    assert (table.tensors["pixels"][:, 0] == table.tensors["pixels"][:, 2]).all()


def test_digits_random_seed_draws_others(run: Run) -> None:
    digests = set()
    for seed in (0, 1):
        digits = Digits("", DigitsConfig(random_seed=seed))
        digests.add(digits.manifest(digits.parse(["random:0.1"], [])).digest)
    assert len(digests) == 2
