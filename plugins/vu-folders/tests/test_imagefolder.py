"""The data plugin ``imagefolder``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from vu_core import DataError, Run
from vu_folders.imagefolder import Config, ImageFolder

Write = Callable[..., Path]


@pytest.fixture
def classes(image: Write, tmp_path: Path) -> Path:
    """Three class folders with five images each."""
    root = tmp_path / "animals"
    for place, name in enumerate(("cat", "golden_retriever", "cow")):
        for number in range(5):
            image(root / name / f"{number}.png", seed=10 * place + number)
    return root


def lines(*entries: dict[str, Any]) -> str:
    return "\n".join(json.dumps(entry) for entry in entries) + "\n"


@pytest.fixture
def sides(image: Write, tmp_path: Path) -> Path:
    """Folders forget and retain with captions and overwrite captions."""
    root = tmp_path / "sides"
    for place, side in enumerate(("forget", "retain")):
        entries = []
        for number in range(4):
            image(root / side / "files" / f"{number}.png", seed=10 * place + number)
            entry = {"file_name": f"files/{number}.png", "text": f"{side} caption {number}", "style": f"s{number % 2}"}
            entries.append({**entry, "overwrite": f"other {number}"} if side == "forget" else entry)
        (root / side / "metadata.jsonl").write_text(lines(*entries))
    return root


def error_of(
    root: Path | str, forget: Sequence[str] = ("folder:forget",), overwrite: Sequence[str] = (), **settings: Any
) -> DataError:
    data = ImageFolder(str(root), Config(**settings))
    with pytest.raises(DataError) as caught:
        data.manifest(data.parse(forget, overwrite))
    return caught.value


def test_class_folders(classes: Path, run: Run) -> None:
    data = ImageFolder(str(classes), Config())
    selection = data.parse(["class:cat"], ["golden_retriever"])
    manifest = data.manifest(selection)
    assert manifest.counts == {
        "train/forget": 3,
        "validation/forget": 1,
        "held-out/forget": 1,
        "train/retain": 8,
        "validation/retain": 1,
        "held-out/retain": 1,
        "evaluation/items": 2,
    }
    assert manifest.axes["class"] == ("cat", "cow", "golden_retriever")
    assert "held out" in manifest.split
    built = data.build(selection, resolution=32, run=run)
    assert set(built.forget.captions) == {"An image of cat."}
    assert set(built.forget.overwrites or ()) == {"An image of golden retriever."}
    assert set(built.retain.captions) == {"An image of cow.", "An image of golden retriever."}
    assert set(built.retain.labels["class"]) == {"cow", "golden_retriever"}
    assert built.retain.overwrites is None


def test_overwrite_by_axis_is_its_value(classes: Path) -> None:
    data = ImageFolder(str(classes), Config())
    selection = data.parse(["class:cat", "class:cow"], ["class:golden_retriever"])
    assert [concept.overwrite_labels for concept in selection.concepts] == [{"class": "golden_retriever"}] * 2
    both = data.build(selection, resolution=32, run=run_of(classes))
    assert set(both.forget.overwrites or ()) == {"An image of golden retriever."}


def run_of(folder: Path) -> Run:
    return Run(seed=1, device="cpu", precision="fp32", folder=folder, cache=folder)


def test_one_overwrite_per_concept(classes: Path, run: Run) -> None:
    data = ImageFolder(str(classes), Config())
    built = data.build(data.parse(["class:cat", "class:cow"], ["a fish", "a bird"]), resolution=32, run=run)
    pairs = set(zip(built.forget.captions, built.forget.overwrites or (), strict=True))
    assert pairs == {("An image of cat.", "An image of a fish."), ("An image of cow.", "An image of a bird.")}


def test_folders_forget_and_retain(sides: Path, run: Run) -> None:
    data = ImageFolder(str(sides), Config())
    selection = data.parse([], [])
    assert "forget" in selection.notes[0]
    built = data.build(selection, resolution=32, run=run)
    for caption, overwrite in zip(built.forget.captions, built.forget.overwrites or (), strict=True):
        assert overwrite == f"other {caption[-1]}"
    assert all(caption.startswith("retain") for caption in built.retain.captions)
    assert data.manifest(selection).axes["style"] == ("s0", "s1")


def test_columns_and_pairs(sides: Path, run: Run) -> None:
    data = ImageFolder(str(sides), Config(validation=0, held_out=0))
    selection = data.parse(["folder:forget+style:s1"], [])
    built = data.build(selection, resolution=32, run=run)
    assert sorted(built.forget.captions) == ["forget caption 1", "forget caption 3"]
    assert len(built.retain) == 6
    by_style = data.build(data.parse(["style:s0"], ["x"]), resolution=32, run=run)
    assert sorted(by_style.forget.overwrites or ()) == ["An image of x."] * 2 + ["other 0", "other 2"]


def test_own_overwrite_comes_first_and_it_is_said(sides: Path) -> None:
    (note,) = ImageFolder(str(sides), Config()).parse(["folder:forget"], ["x"]).notes
    assert note == "4 of 4 forget images have their own overwrite caption; it comes first."


def test_class_folders_inside_of_forget_and_retain(image: Write, tmp_path: Path, run: Run) -> None:
    for place, name in enumerate(("forget/cat", "retain/dog", "retain/cow")):
        for number in range(3):
            image(tmp_path / "data" / name / f"{number}.jpg", seed=10 * place + number)
    data = ImageFolder(str(tmp_path / "data"), Config())
    built = data.build(data.parse([], ["class:dog"]), resolution=32, run=run)
    assert set(built.forget.captions) == {"An image of cat."}
    assert set(built.forget.overwrites or ()) == {"An image of dog."}
    assert set(built.retain.labels["folder"]) == {"retain"}


def test_held_out_images_are_not_built(classes: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building and loading all that a method sees touches no held-out file."""
    opened: list[Path] = []
    data = ImageFolder(str(classes), Config())
    selection = data.parse(["class:cat"], ["x"])
    built = data.build(selection, resolution=32, run=run)
    import vu_folders.assembly as assembly

    monkeypatch.setattr(assembly, "read_image", lambda path, *a, **k: opened.append(path) or torch.zeros(1))
    for table in (built.forget, built.retain, built.validation_forget, built.validation_retain):
        for row in range(len(table)):
            assert table.load is not None
            table.load(row, run.generator("x"))
    seen = set(opened)
    asked = data.evaluation(selection, split="held-out", seeds=(10_000,), samples=2, resolution=32, run=run)
    assert asked.examples is not None
    for table in asked.examples:
        for row in range(len(table)):
            assert table.load is not None
            table.load(row, run.generator("x"))
    held = set(opened) - seen
    assert len(seen) == 13
    assert len(held) == 2


def test_evaluation(classes: Path, run: Run) -> None:
    data = ImageFolder(str(classes), Config())
    selection = data.parse(["class:cat"], ["x"])
    asked = data.evaluation(selection, split="validation", seeds=(3, 4), samples=3, resolution=32, run=run)
    assert asked.split == "validation"
    assert asked.judge is None
    assert asked.concepts == selection.concepts
    assert [(item.prompt, item.seed, item.forget) for item in asked.items][:2] == [
        ("An image of cat.", 3, True),
        ("An image of cat.", 4, True),
    ]
    assert [item.forget for item in asked.samples] == [True, True, False]
    assert asked.examples is not None
    assert asked.examples[0].overwrites == ("An image of x.",)
    none = data.evaluation(selection, split="validation", seeds=(3,), samples=0, resolution=32, run=run)
    assert none.samples == ()


def test_without_held_out_part_training_captions_are_asked(classes: Path, run: Run) -> None:
    data = ImageFolder(str(classes), Config(held_out=0))
    asked = data.evaluation(
        data.parse(["class:cat"], ["x"]), split="held-out", seeds=(1,), samples=2, resolution=32, run=run
    )
    assert asked.examples is None
    assert {item.prompt for item in asked.items} == {
        "An image of cat.",
        "An image of cow.",
        "An image of golden retriever.",
    }


def test_every_setting_changes_something(classes: Path, sides: Path, run: Run) -> None:
    """Each field of the configuration changes an example, a caption, a count or raises; none is ignored."""

    def seen(**settings: Any) -> tuple[Any, ...]:
        data = ImageFolder(str(classes), Config(**settings))
        selection = data.parse(["class:cat"], ["x"])
        built = data.build(selection, resolution=32, run=run)
        assert built.forget.load is not None
        images = [built.forget.load(0, run.generator("draw", seed)) for seed in range(4)]
        pixels = tuple(float(image.double().square().sum()) for image in images)
        places = tuple(float(image[0, 0, 0]) for image in images)
        counts = tuple(data.manifest(selection).counts.items())
        return (images[0].shape, pixels, places, built.forget.reload, built.forget.captions, counts)

    changes: dict[str, Any] = {
        "resolution": 16,
        "resize": 34,
        "crop": "center",
        "flip": True,
        "caption_template": "{}",
        "max_forget": 1,
        "max_retain": 1,
        "validation": 0.4,
        "held_out": 0.4,
    }
    usual = seen()
    for field, value in changes.items():
        assert seen(**{field: value}) != usual, field
    assert seen(crop="random_per_step")[3] is True
    assert error_of(sides, overwrite_column="substitute").code == "VU-D074"
    elsewhere = {"overwrite_column", "classes", "classes_file", "random_seed"}  # test_imagefolder_layout.py
    assert set(changes) | elsewhere == {field.name for field in attrs.fields(Config)}


def test_crop_and_flip_are_for_training_images(classes: Path, run: Run) -> None:
    data = ImageFolder(str(classes), Config(flip=True, crop="random_per_step"))
    built = data.build(data.parse(["class:cat"], ["x"]), resolution=32, run=run)
    assert built.forget.reload
    assert built.retain.reload
    assert not built.validation_forget.reload
    load = built.validation_forget.load
    assert load is not None
    assert all(torch.equal(load(0, run.generator("a", i)), load(0, run.generator("b", i))) for i in range(5))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resolution": 30}, "multiple of 8"),
        ({"resolution": 0}, ">= 8"),
        ({"crop": "randm"}, "'random_per_step'"),
        ({"caption_template": "An image"}, "one {}"),
        ({"caption_template": "{} {}"}, "one {}"),
        ({"caption_template": "{name}"}, "one {}"),
        ({"max_forget": 0}, ">= 1"),
        ({"validation": 1.0}, "< 1"),
        ({"held_out": -0.1}, ">= 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"must") as caught:
        Config(**settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("forget", "overwrite", "code", "said"),
    [
        ([], [], "VU-D075", "not said what to forget"),
        (["cat"], ["x"], "VU-D075", "Did you mean 'folder:cat' or 'class:cat'?"),
        (["clas:cat"], ["x"], "VU-D075", "Did you mean 'class'?"),
        (["class:cta"], ["x"], "VU-D075", "Did you mean 'cat'?"),
        (["class:cat"], ["class:dgo"], "VU-D075", "no value 'dgo'"),
        (["class:cat"], [" "], "VU-D075", "empty"),
        (["class:cat"], ["a", "b"], "VU-D075", "1 concepts to forget and 2 overwrites"),
        (["class:cat"], [], "VU-D074", "no overwrite caption"),
        (["class:cat"], ["class:cat"], "VU-D074", "its own caption"),
        (["class:cat+folder:cow"], ["x"], "VU-D076", "No image"),
        (["class:cat+class:cow"], ["x"], "VU-D075", "names the axis 'class' twice"),
        (["class:cat", "class:cat"], ["x"], "VU-D075", "or the same"),
        (["class:cat", "folder:cat+class:cat"], ["x"], "VU-D075", "'folder:cat+class:cat' is part of 'class:cat'"),
        (["folder:cat+class:cat", "class:cat"], ["x"], "VU-D075", "'folder:cat+class:cat' is part of 'class:cat'"),
        (["class:cat"], ["class:cow+folder:cow"], "VU-D075", "names several values"),
        (["class:cat"], ["clas:cow"], "VU-D075", "Did you mean 'class'?"),
        (["class:cat"], ["style:photo"], "VU-D075", "names no axis"),
    ],
)
def test_what_cannot_be_named(classes: Path, forget: list[str], overwrite: list[str], code: str, said: str) -> None:
    error = error_of(classes, forget, overwrite)
    assert error.code == code
    assert said in error.problem
    assert error.remedy


def test_free_text_may_hold_colon_and_plus(classes: Path, run: Run) -> None:
    data = ImageFolder(str(classes), Config())
    built = data.build(data.parse(["class:cat"], ["a dog: brown + white"]), resolution=32, run=run)
    assert set(built.forget.overwrites or ()) == {"An image of a dog: brown + white."}


def test_a_made_overwrite_of_images_with_own_captions_is_noted(sides: Path, classes: Path) -> None:
    """The caption of such an image is rarely written like the template, so the run says what will be asked."""
    (note,) = ImageFolder(str(sides), Config(overwrite_column="none")).parse(["style:s1"], ["style:s0"]).notes
    assert note == (
        "The overwrite caption of 4 of 4 forget images is 'An image of s0.' (data.caption_template), although they "
        "have captions of their own."
    )
    assert ImageFolder(str(classes), Config()).parse(["class:cat"], ["class:cow"]).notes == ()


def test_values_may_hold_plus_and_colon(image: Write, tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / "data" / "a+b:c" / f"{number}.png", seed=number)
        image(tmp_path / "data" / "d" / f"{number}.png", seed=10 + number)
    (concept,) = ImageFolder(str(tmp_path / "data"), Config()).parse(["class:a+b:c"], ["x"]).concepts
    assert concept.labels == {"class": "a+b:c"}


def _append(root: Path, text: str) -> None:
    with (root / "forget" / "metadata.jsonl").open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("{broken", "VU-D071", "no valid JSON"),
        ("[1]", "VU-D072", "no JSON object"),
        ('{"filename": "x.png", "text": "a"}', "VU-D072", "Did you mean 'filename'?"),
        ('{"file_name": "files/0.png"}', "VU-D072", "no 'text'"),
        ('{"file_name": "files/0.png", "text": 5}', "VU-D072", "'text' must be text"),
        ('{"file_name": "files/0.png", "text": "a", "overwrite": ["b"]}', "VU-D072", "'overwrite' must be text"),
        ('{"file_name": " ", "text": "a"}', "VU-D072", "'file_name' is empty"),
        ('{"file_name": "files/0.png", "text": "a", "class": "b"}', "VU-D072", "'class'"),
        ('{"file_name": "files/9.png", "text": "a", "overwrite": "b"}', "VU-D070", "files/9.png"),
        ('{"file_name": "metadata.jsonl", "text": "a", "overwrite": "b"}', "VU-D073", "no image"),
    ],
)
def test_bad_lines_are_named_with_their_number(sides: Path, line: str, code: str, said: str) -> None:
    _append(sides, line + "\n")
    error = error_of(sides)
    assert error.code == code
    assert said in error.problem
    assert error.where.endswith("metadata.jsonl:5")


def test_bad_folders(sides: Path, image: Write, tmp_path: Path) -> None:
    assert error_of(tmp_path / "absent").code == "VU-D070"
    (tmp_path / "empty").mkdir()
    assert error_of(tmp_path / "empty").code == "VU-D070"
    stray = image(sides / "forget" / "stray.png", seed=99)
    error = error_of(sides)
    assert error.code == "VU-D071"
    assert "stray.png" in error.problem
    stray.unlink()
    loose = image(sides / "loose.png", seed=99)
    assert "no caption" in error_of(sides).problem
    loose.unlink()
    damaged = image(sides / "forget" / "files" / "0.png", seed=1)
    damaged.write_bytes(damaged.read_bytes()[:60])
    error = error_of(sides)
    assert error.code == "VU-D073"
    assert "files/0.png" in error.problem


@pytest.mark.parametrize("strange", ["\u2028", "\u0085", "\x0b"])
def test_a_line_ends_at_a_line_feed_only(sides: Path, strange: str) -> None:
    listing = sides / "forget" / "metadata.jsonl"
    text = listing.read_text(encoding="utf-8")
    listing.write_text(text.replace("caption 0", json.dumps(f"a{strange}b", ensure_ascii=False)[1:-1]), "utf-8")
    data = ImageFolder(str(sides), Config())
    captions = {row.caption for row in data._images(data.parse([], [])).forget}
    assert f"forget a{strange}b" in captions


def test_encodings(sides: Path) -> None:
    listing = sides / "forget" / "metadata.jsonl"
    text = listing.read_text(encoding="utf-8")
    listing.write_text("\ufeff" + text, encoding="utf-8")  # as some editors write it
    data = ImageFolder(str(sides), Config())
    assert data.manifest(data.parse([], [])).counts["train/forget"] == 2
    listing.write_bytes(text.replace("caption", "l\u00e9gende").encode("latin-1"))
    error = error_of(sides)
    assert error.code == "VU-D071"
    assert "UTF-8" in error.problem


def test_hidden_files_are_left_alone(sides: Path, classes: Path, image: Write) -> None:
    for place in (sides / "forget" / ".thumbnails", classes / "cat" / ".thumbnails"):
        image(place / "small.png", seed=99)
    for root, forget in ((sides, ()), (classes, ("class:cat",))):
        data = ImageFolder(str(root), Config())
        assert not any("small" in row.name for row in data._rows)
        data.parse(forget, ["x"])


def test_everything_forgotten_is_noted(classes: Path) -> None:
    data = ImageFolder(str(classes), Config())
    selection = data.parse(["class:cat", "class:cow", "class:golden_retriever"], ["x"])
    assert "nothing is left to retain" in selection.notes[0]
    assert data.manifest(selection).counts["train/retain"] == 0


def test_recognises(classes: Path, sides: Path, tmp_path: Path) -> None:
    assert ImageFolder.recognises(classes)
    assert ImageFolder.recognises(sides)
    (tmp_path / "other" / ".hidden").mkdir(parents=True)
    (tmp_path / "other" / ".hidden" / "1.png").touch()
    (tmp_path / "other" / "notes.txt").touch()
    assert not ImageFolder.recognises(tmp_path / "other")
    deep = tmp_path / "deep" / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    assert not ImageFolder.recognises(tmp_path / "deep")
    (deep / "1.JPG").touch()
    assert ImageFolder.recognises(tmp_path / "deep")
    assert not ImageFolder.recognises(tmp_path / "file.json")


def test_recognising_a_large_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vu_folders.imagefolder as module

    root = tmp_path / "large"
    (root / "circle").mkdir(parents=True)
    (root / "circle" / "back").symlink_to(root)
    for number in range(50):
        (root / f"{number}.txt").touch()
    assert not ImageFolder.recognises(root)
    (root / "circle" / "1.png").touch()
    assert ImageFolder.recognises(root)
    monkeypatch.setattr(module, "_ENTRIES", 20)
    assert not ImageFolder.recognises(root)


def test_parsing_imports_no_torch(classes: Path) -> None:
    program = (
        "import sys\n"
        "from vu_folders import plugin\n"
        "from vu_folders.imagefolder import Config, ImageFolder\n"
        "from vu_folders.metafile import Metafile\n"
        f"data = ImageFolder({str(classes)!r}, Config())\n"
        "data.manifest(data.parse(['class:cat'], ['x']))\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
