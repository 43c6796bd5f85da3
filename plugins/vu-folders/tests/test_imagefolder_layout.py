"""Image folders that are separated into train and test, lists of classes, and random shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

from vu_core import Capability, DataError, Evaluation, Examples, Run, Selection
from vu_folders.imagefolder import Config, ImageFolder, check_overwrites
from vu_folders.layout import parts_of

Write = Callable[..., Path]
CLASSES = ("cat", "cow", "dog")


@pytest.fixture
def separated(image: Write, tmp_path: Path) -> Path:
    """Ten training and three test images of three classes."""
    root = tmp_path / "separated"
    for place, (part, count) in enumerate((("train", 10), ("test", 3))):
        for number, name in enumerate(CLASSES):
            for each in range(count):
                image(root / part / name / f"{each}.png", seed=1000 * place + 100 * number + each)
    return root


def opened(root: Path, forget: Sequence[str] = ("class:cat",), **settings: Any) -> tuple[ImageFolder, Selection]:
    data = ImageFolder(str(root), Config(**settings))
    return data, data.parse(forget, [])


def counts(root: Path, forget: Sequence[str] = ("class:cat",), **settings: Any) -> dict[str, int]:
    data, selection = opened(root, forget, **settings)
    return dict(data.manifest(selection).counts)


def evaluated(root: Path, run: Run, forget: Sequence[str] = ("class:cat",), split: str = "held-out") -> Evaluation:
    data, selection = opened(root, forget)
    return data.evaluation(selection, split=split, seeds=(10_000,), samples=2, resolution=16, run=run)  # type: ignore[arg-type]


def images(table: Examples) -> set[bytes]:
    assert table.load is not None
    return {table.load(row, torch.Generator()).numpy().tobytes() for row in range(len(table))}


def error_of(root: Path, forget: Sequence[str] = ("class:cat",), **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        counts(root, forget, **settings)
    return caught.value


def test_train_and_test_are_what_the_folders_say(separated: Path, run: Run) -> None:
    found = counts(separated)
    assert (found["train/forget"], found["train/retain"]) == (9, 18)
    assert (found["validation/forget"], found["validation/retain"]) == (1, 2)
    assert (found["held-out/forget"], found["held-out/retain"]) == (3, 6)
    examples = evaluated(separated, run).examples
    assert examples is not None
    data, selection = opened(separated)
    held = ImageFolder(str(separated / "test"), Config(validation=0, held_out=0))
    alone = held.build(held.parse(["class:cat"], ["a dog"]), resolution=16, run=attrs.evolve(run, stage="measure"))
    assert images(examples[0]) == images(alone.forget)
    assert data.manifest(selection).split.startswith("by folder")


def test_without_overwrite_the_tables_have_none(separated: Path, run: Run) -> None:
    data, selection = opened(separated)
    assert selection.concepts[0].overwrite is None
    assert data.build(selection, resolution=16, run=run).forget.overwrites is None
    named = data.parse(["class:cat"], ["class:dog"])
    assert data.build(named, resolution=16, run=run).forget.overwrites == ("An image of dog.",) * 9


def test_val_beside_test_is_for_validation(separated: Path, image: Write) -> None:
    for number, name in enumerate(CLASSES):
        for each in range(2):
            image(separated / "val" / name / f"{each}.png", seed=5000 + 10 * number + each)
    found = counts(separated)
    assert (found["train/forget"], found["validation/forget"], found["held-out/forget"]) == (10, 2, 3)


def test_val_alone_is_held_out(separated: Path) -> None:
    (separated / "test").rename(separated / "val")
    found = counts(separated)
    assert (found["validation/forget"], found["held-out/forget"]) == (1, 3)


def test_validation_is_a_share_of_every_class_and_keeps_equal_images_together(separated: Path, image: Write) -> None:
    assert counts(separated, validation=0)["validation/retain"] == 0
    assert counts(separated, validation=0.29)["validation/forget"] == 2
    for each in range(10):
        (separated / "train" / "cat" / f"again{each}.png").write_bytes(
            (separated / "train" / "cat" / f"{each}.png").read_bytes()
        )
    assert counts(separated, validation=0.29)["validation/forget"] == 4


def test_other_folders_are_no_such_layout(separated: Path, image: Write) -> None:
    assert set(parts_of(separated)) == {"train", "held-out"}
    image(separated / "owl" / "1.png")
    assert parts_of(separated) == {}
    assert (
        "folder"
        in ImageFolder(str(separated), Config())
        .manifest(ImageFolder(str(separated), Config()).parse(["folder:train"], ["x"]))
        .axes
    )


@pytest.mark.parametrize("name", ["cat.png", "metadata.jsonl"])
def test_images_beside_the_class_folders_are_no_such_layout(separated: Path, image: Write, name: str) -> None:
    image(separated / "train" / "x.png").rename(separated / "train" / name)
    assert parts_of(separated) == {}


def test_classes_choose_and_order(separated: Path, tmp_path: Path) -> None:
    data = ImageFolder(str(separated), Config(classes=("dog", "cat")))
    assert data.classes() == {"dog": "class:dog", "cat": "class:cat"}
    assert counts(separated, classes=("dog", "cat"))["train/retain"] == 9
    listing = tmp_path / "classes.txt"
    listing.write_text("dog\n\ncat\n")
    assert ImageFolder(str(separated), Config(classes_file=str(listing))).classes() == data.classes()
    assert counts(separated, classes_file=str(listing))["held-out/retain"] == 3
    assert tuple(ImageFolder(str(separated), Config()).classes()) == CLASSES


def test_classes_choose_among_plain_class_folders(separated: Path) -> None:
    data = ImageFolder(str(separated / "train"), Config(classes=("dog", "cat")))
    assert dict(data.manifest(data.parse(["class:cat"], ["x"])).axes)["class"] == ("dog", "cat")
    assert error_of(separated / "train", classes=("dog", "cta")).code == "VU-D118"


def test_what_does_not_agree_is_said(separated: Path, tmp_path: Path) -> None:
    near = error_of(separated, classes=("cat", "cwo"))
    assert near.code == "VU-D118"
    assert "cow" in near.problem
    assert error_of(separated, classes=("cat", "cat")).code == "VU-D118"
    assert error_of(separated, classes=("cat",), classes_file="list").code == "VU-D118"
    assert error_of(separated, classes_file=str(tmp_path / "none")).code == "VU-D070"
    for path in (separated / "test" / "dog").iterdir():
        path.unlink()
    empty = error_of(separated)
    assert (empty.code, "'dog'" in empty.problem, empty.where) == ("VU-D118", True, str(separated / "test"))


def test_no_class_folders_have_no_classes(image: Write, tmp_path: Path) -> None:
    image(tmp_path / "plain" / "1.png")
    (tmp_path / "plain" / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a cat", "animal": "cat"}')
    with pytest.raises(DataError) as caught:
        ImageFolder(str(tmp_path / "plain"), Config()).classes()
    assert caught.value.code == "VU-D118"


def test_random_share_is_of_training_images(separated: Path, run: Run) -> None:
    found = counts(separated, ["random:30%"])
    assert found["train/forget"] == 8  # floor(0.3 * 27)
    assert found["train/retain"] == 19
    assert (found["validation/forget"], found["validation/retain"]) == (0, 3)
    assert (found["held-out/forget"], found["held-out/retain"]) == (0, 9)
    evaluation = evaluated(separated, run, ["random:0.3"])
    assert evaluation.examples is not None
    assert [len(table) for table in evaluation.examples] == [0, 9]
    assert not any(item.forget for item in evaluation.items)
    assert evaluation.concepts[0].labels == {"random": "0.3"}


def test_random_seed_draws_others(separated: Path, run: Run) -> None:
    def drawn(seed: int) -> set[bytes]:
        data, selection = opened(separated, ["random:0.3"], random_seed=seed)
        return images(data.build(selection, resolution=16, run=attrs.evolve(run, stage="measure")).forget)

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


@pytest.mark.parametrize(
    "forget", [["random:0"], ["random:1"], ["random:x"], ["random:120%"], ["random:0.1", "class:cat"]]
)
def test_what_is_no_share_is_said(separated: Path, forget: list[str]) -> None:
    assert error_of(separated, forget).code == "VU-D075"


def test_a_share_is_not_rounded(separated: Path) -> None:
    (concept,) = ImageFolder(str(separated), Config()).parse(["random:0.9999999"], []).concepts
    assert concept.labels == {"random": "0.9999999"}


def test_a_share_of_no_image_is_said(separated: Path) -> None:
    assert error_of(separated, ["random:0.01"]).code == "VU-D076"


def test_a_share_has_no_overwrite(separated: Path) -> None:
    with pytest.raises(DataError) as caught:
        ImageFolder(str(separated), Config()).parse(["random:0.1"], ["a dog"])
    assert caught.value.code == "VU-D075"


def test_everything_for_validation_leaves_nothing_to_train_on(separated: Path) -> None:
    for path in sorted((separated / "train" / "cat").iterdir())[1:]:
        path.unlink()
    assert error_of(separated).code == "VU-D076"


def test_images_are_resized_before_the_square_is_cut_out(separated: Path, run: Run) -> None:
    """Images are 40 x 36: at 72 pixels the middle 36 show a half of each side."""
    still = attrs.evolve(run, stage="measure")
    data, selection = opened(separated, resize=72)
    zoomed = data.build(selection, resolution=36, run=still).forget.load
    plain = data.build(selection, resolution=72, run=still).forget.load
    assert zoomed is not None
    assert plain is not None
    whole = plain(0, torch.Generator())
    assert torch.equal(zoomed(0, torch.Generator()), whole[:, 18:54, 18:54])


def test_a_square_larger_than_the_image_is_said(separated: Path, run: Run) -> None:
    data, selection = opened(separated, resize=32)
    with pytest.raises(DataError) as caught:
        data.build(selection, resolution=40, run=run)
    assert caught.value.code == "VU-D119"


def test_nothing_is_augmented_while_a_run_is_measured(separated: Path, run: Run) -> None:
    data, selection = opened(separated, crop="random_per_step", flip=True)
    trained = data.build(selection, resolution=32, run=run)
    measured = data.build(selection, resolution=32, run=attrs.evolve(run, stage="measure"))
    assert (trained.forget.reload, measured.forget.reload) == (True, False)
    load = measured.forget.load
    assert load is not None
    assert torch.equal(load(0, torch.Generator().manual_seed(1)), load(0, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("overwrite", [[], ["class:dog"]])
@pytest.mark.parametrize("can", [Capability.DENOISE, Capability.CLASSIFY])
def test_only_a_diffusion_model_needs_an_overwrite(separated: Path, overwrite: list[str], can: Capability) -> None:
    data = ImageFolder(str(separated), Config())
    entry = SimpleNamespace(load=lambda: ImageFolder)
    plan: Any = SimpleNamespace(
        config=SimpleNamespace(data=SimpleNamespace(entry=entry, ref=str(separated))),
        model=SimpleNamespace(capabilities=frozenset({can}), name="sd"),
        selection=data.parse(["class:cat"], overwrite),
    )
    if can == Capability.DENOISE and not overwrite:
        with pytest.raises(DataError) as caught:
            check_overwrites(plan)
        assert caught.value.code == "VU-D074"
    else:
        check_overwrites(plan)
