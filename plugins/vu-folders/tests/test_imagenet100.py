"""``vu arrange-imagenet100`` on a raw folder of a few files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import vu_folders.imagenet100 as ours
import vu_folders.plugin as folders
from vu_cli import main
from vu_core import ConfigError
from vu_core.plugins import Plugins, discover
from vu_core.testing import CommandTests, toy_plugin
from vu_folders.imagenet100 import read
from vu_folders.layout import parts_of

Run = Callable[..., tuple[int, str]]


class TestArrange(CommandTests):
    target = "vu_folders.imagenet100:arrange"


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    extra = [("vu-toys", "0.1", toy_plugin), ("vu-folders", "0.1", folders)]
    return discover(extra=extra, installed=False)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two classes, each in its own folder train.X*, three images to train on and one to test."""
    root = tmp_path / "raw"
    for number, name in enumerate(("n01", "n02"), start=1):
        for part, count in ((f"train.X{number}", 3), ("val.X", 1)):
            (root / part / name).mkdir(parents=True)
            for each in range(count):
                (root / part / name / f"{name}_{each}.JPEG").write_text(f"{part} {name} {each}")
    (root / "Labels.json").write_text(json.dumps({"n01": "tench", "n02": "goldfish"}))
    return root


@pytest.fixture
def arrange(
    plugins: Plugins, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run the command; its exit status, and what it printed."""
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str]:
        status = main.run(["arrange-imagenet100", *map(str, words)], plugins=plugins)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def files(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("by", ["hardlink", "symlink", "copy"])
def test_every_image_comes_to_its_place(raw: Path, tmp_path: Path, arrange: Run, by: str) -> None:
    before, out = files(raw), tmp_path / "new" / "out"
    status, text = arrange(raw, out, "--by", by)
    assert status == 0, text
    expected = {f"train/n0{n}/n0{n}_{k}.JPEG": f"train.X{n} n0{n} {k}" for n in (1, 2) for k in range(3)}
    expected |= {f"test/n0{n}/n0{n}_0.JPEG": f"val.X n0{n} 0" for n in (1, 2)}
    assert files(out) == expected
    assert files(raw) == before
    image = out / "train" / "n01" / "n01_0.JPEG"
    same = image.samefile(raw / "train.X1" / "n01" / "n01_0.JPEG")
    assert (image.is_symlink(), same) == (by == "symlink", by != "copy")
    assert set(parts_of(out)) == {"train", "held-out"}
    assert list((tmp_path / "new").iterdir()) == [out]


def test_json_counts(raw: Path, tmp_path: Path, arrange: Run) -> None:
    status, text = arrange(raw, tmp_path / "out", "--json")
    assert status == 0
    assert json.loads(text)["rows"] == [
        {"part": "train", "classes": 2, "images": 6},
        {"part": "test", "classes": 2, "images": 2},
    ]


def test_dry_run_writes_nothing(raw: Path, tmp_path: Path, arrange: Run) -> None:
    before = sorted(tmp_path.iterdir())
    status, text = arrange(raw, tmp_path / "out", "--dry-run")
    assert (status, sorted(tmp_path.iterdir())) == (0, before)
    assert "Nothing was written" in text


def test_what_is_there_is_refused(raw: Path, tmp_path: Path, arrange: Run) -> None:
    (tmp_path / "out").mkdir()
    status, text = arrange(raw, tmp_path / "out")
    assert status == 2
    assert "VU-C142" in text
    assert list((tmp_path / "out").iterdir()) == []
    status, text = arrange(raw, raw / "arranged")
    assert (status, "VU-C142" in text, (raw / "arranged").exists()) == (2, True, False)


def test_a_link_that_fails_leaves_nothing(
    raw: Path, tmp_path: Path, arrange: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def refuse(source: Path, target: Path) -> None:
        if made:
            raise OSError(18, "Invalid cross-device link")
        made.append(os.link(source, target))

    monkeypatch.setattr(ours, "WAYS", {**ours.WAYS, "hardlink": refuse})
    before = sorted(tmp_path.iterdir())
    status, text = arrange(raw, tmp_path / "out")
    assert (status, "VU-C142" in text, "--by symlink" in text) == (2, True, True)
    assert sorted(path for path in tmp_path.iterdir() if path.name != "cache") == before


def code_of(raw: Path, **options: bool) -> str:
    with pytest.raises(ConfigError) as caught:
        read(raw, **options)
    return caught.value.code


@pytest.mark.parametrize("missing", ["train.X*", "val.X"])
def test_another_folder_is_refused(raw: Path, missing: str) -> None:
    for path in list(raw.glob(missing)):
        path.rename(raw / f"old-{path.name}")
    assert code_of(raw) == "VU-C140"
    assert code_of(raw / "nowhere") == "VU-C140"


def test_a_class_without_test_images_is_refused(raw: Path) -> None:
    (raw / "val.X" / "n02").rename(raw / "n02")
    assert code_of(raw) == "VU-C141"


def test_a_class_without_training_images_is_refused(raw: Path) -> None:
    (raw / "train.X2" / "n02").rename(raw / "n02")
    assert code_of(raw) == "VU-C141"


def test_an_empty_class_is_refused(raw: Path) -> None:
    for path in (raw / "val.X" / "n01").iterdir():
        path.unlink()
    assert code_of(raw) == "VU-C141"


def test_an_image_in_two_folders_is_refused(raw: Path) -> None:
    (raw / "train.X2" / "n01").mkdir()
    (raw / "train.X2" / "n01" / "n01_0.JPEG").write_text("again")
    assert code_of(raw) == "VU-C141"


@pytest.mark.parametrize("text", ['{"n01": "tench"}', '{"n01": "a", "n02": "b", "n03": "c"}', "[]", "{"])
def test_labels_that_name_others_are_refused(raw: Path, text: str) -> None:
    (raw / "Labels.json").write_text(text)
    assert code_of(raw) == "VU-C141"
    assert len(list(read(raw, labels=False).files())) == 8


def test_labels_may_be_missing(raw: Path) -> None:
    (raw / "Labels.json").unlink()
    assert set(read(raw).parts["train"]) == {"n01", "n02"}
