"""The data plugin ``metafile``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from vu_core import DataError, Run
from vu_folders.metafile import Config, Metafile

Write = Callable[..., Path]


def content(count: int = 4) -> dict[str, Any]:
    return {
        "forget": [
            {
                "file_name": f"images/f{i}.png",
                "text": f"An image of x{i} in Warm Smear style.",
                "overwrite": f"An image of x{i} in Photo style.",
                "style": "Warm_Smear",
            }
            for i in range(count)
        ],
        "retain": [
            {"file_name": f"images/r{i}.png", "text": f"An image of y{i}.", "overwrite": "", "score": 3}
            for i in range(count)
        ],
    }


@pytest.fixture
def metafile(image: Write, tmp_path: Path) -> Path:
    for i in range(4):
        image(tmp_path / "data" / "images" / f"f{i}.png", seed=i)
        image(tmp_path / "data" / "images" / f"r{i}.png", seed=10 + i)
    path = tmp_path / "data" / "meta.json"
    path.write_text(json.dumps(content()))
    return path


def error_of(path: Path, forget: tuple[str, ...] = (), overwrite: tuple[str, ...] = (), **settings: Any) -> DataError:
    data = Metafile(str(path), Config(**settings))
    with pytest.raises(DataError) as caught:
        data.manifest(data.parse(forget, overwrite))
    return caught.value


def test_reading(metafile: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # names are relative to the metafile, wherever one is
    data = Metafile("data/meta.json", Config())
    selection = data.parse([], [])
    built = data.build(selection, resolution=32, run=run)
    for caption, overwrite in zip(built.forget.captions, built.forget.overwrites or (), strict=True):
        assert overwrite == caption.replace("Warm Smear", "Photo")
    assert len(built.forget) == 2
    assert len(built.validation_forget) == 1
    assert built.retain.overwrites is None
    assert set(built.forget.labels["style"]) == {"Warm_Smear"}  # further columns are kept
    assert set(built.retain.labels["side"]) == {"retain"}
    assert "score" not in built.retain.labels  # numbers name nothing
    assert data.manifest(selection).counts["held-out/forget"] == 1
    assert built.forget.load is not None
    assert built.forget.load(0, run.generator("x")).shape == (3, 32, 32)
    asked = data.evaluation(selection, split="held-out", seeds=(1,), samples=2, resolution=32, run=run)
    assert len(asked.items) == 2


def test_named_or_not_is_the_same(metafile: Path) -> None:
    data = Metafile(str(metafile), Config())
    assert data.parse([], []).concepts == data.parse(["side:forget"], []).concepts
    assert data.parse([], []).notes
    assert not data.parse(["side:forget"], []).notes


def test_base_dir_for_parity(metafile: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.json"
    moved.write_text(metafile.read_text())
    assert error_of(moved).code == "VU-D070"
    data = Metafile(str(moved), Config(base_dir=str(metafile.parent)))
    assert data.manifest(data.parse([], [])).counts["train/forget"] == 2


def test_overwrite_precedence(metafile: Path, run: Run) -> None:
    changed = content()
    changed["forget"][0]["overwrite"] = ""
    del changed["forget"][1]["overwrite"]
    metafile.write_text(json.dumps(changed))
    error = error_of(metafile)
    assert error.code == "VU-D074"
    assert "forget[0]" in error.where
    data = Metafile(str(metafile), Config(validation=0, held_out=0, caption_template="A {} image."))
    selection = data.parse([], ["Photo"])
    assert "2 of 4" in selection.notes[1]
    built = data.build(selection, resolution=32, run=run)
    assert sorted(built.forget.overwrites or ()) == [
        "A Photo image.",
        "A Photo image.",
        "An image of x2 in Photo style.",
        "An image of x3 in Photo style.",
    ]


def test_overwrite_column(metafile: Path, run: Run) -> None:
    changed = content()
    for entry in changed["forget"]:
        entry["surrogate"] = "another caption"
    metafile.write_text(json.dumps(changed))
    data = Metafile(str(metafile), Config(overwrite_column="surrogate"))
    built = data.build(data.parse([], []), resolution=32, run=run)
    assert set(built.forget.overwrites or ()) == {"another caption"}
    assert error_of(metafile, overwrite_column="absent").code == "VU-D074"


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in content().items() if name != key}


def _entry(**values: Any) -> dict[str, Any]:
    changed = content()
    changed["forget"][2] = {k: v for k, v in {**changed["forget"][2], **values}.items() if v is not None}
    return changed


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("{", "VU-D071", "no valid JSON"),
        ("[]", "VU-D072", "no JSON object"),
        ({**content(), "retian": []}, "VU-D072", "Did you mean 'retain'?"),
        (_without("retain"), "VU-D072", "no key 'retain'"),
        (_without("forget"), "VU-D072", "no key 'forget'"),
        ({**content(), "forget": []}, "VU-D076", "empty"),
        ({**content(), "forget": {}}, "VU-D072", "must be a list"),
        ({**content(), "forget": ["a.png"]}, "VU-D072", "no JSON object"),
        (_entry(text=None), "VU-D072", "no 'text'"),
        (_entry(file_name=None), "VU-D072", "no 'file_name'"),
        (_entry(text=7), "VU-D072", "must be text"),
        (_entry(file_name="images/nothing.png"), "VU-D070", "images/nothing.png"),
        (_entry(file_name="meta.json"), "VU-D073", "no image"),
        (_entry(overwrite=" "), "VU-D074", "no overwrite"),
    ],
)
def test_bad_metafiles(metafile: Path, text: Any, code: str, said: str) -> None:
    metafile.write_text(text if isinstance(text, str) else json.dumps(text))
    error = error_of(metafile)
    assert error.code == code
    assert said in error.problem
    assert "meta.json" in error.where
    assert error.exit_status == 5


def test_what_cannot_be_named(metafile: Path) -> None:
    assert error_of(metafile, ("style:Warm_Smear",)).code == "VU-D075"
    assert "side:forget" in error_of(metafile, ("forget",)).problem
    assert error_of(metafile.with_name("absent.json")).code == "VU-D070"


def test_empty_retain_list_is_allowed(metafile: Path) -> None:
    metafile.write_text(json.dumps({**content(), "retain": []}))
    data = Metafile(str(metafile), Config())
    assert data.manifest(data.parse([], [])).counts["train/retain"] == 0


def test_recognises(metafile: Path, tmp_path: Path) -> None:
    assert Metafile.recognises(metafile)
    metafile.write_text(json.dumps({"retain": [], "forget": []}, indent=2))
    assert Metafile.recognises(metafile)
    metafile.write_text('{"_class_name": "x"}')
    assert not Metafile.recognises(metafile)
    assert not Metafile.recognises(tmp_path)


def test_only_base_dir_is_beyond_the_shared_settings(metafile: Path) -> None:
    from vu_folders.imagefolder import Config as ImageFolderConfig

    names = {field.name for field in attrs.fields(Config)}
    assert names - {field.name for field in attrs.fields(ImageFolderConfig)} == {"base_dir"}


def test_recognises_a_file_with_a_byte_order_mark(metafile: Path) -> None:
    metafile.write_text("\ufeff" + metafile.read_text(), encoding="utf-8")
    assert Metafile.recognises(metafile)


def test_an_overwrite_is_free_text(metafile: Path) -> None:
    for overwrite in ("side:forget", "style:photo"):
        error = error_of(metafile, overwrite=(overwrite,))
        assert error.code == "VU-D075"
        assert "names no axis" in error.problem
