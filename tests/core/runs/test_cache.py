"""The content-addressed cache."""

import json
from pathlib import Path

import pytest
import torch

from vu_core.cache import Cache, cache_root


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    monkeypatch.delenv("VU_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "vu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "vu"


def test_values_and_tensors_come_back_exactly(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_json("before", "k", {"x": [0.1, 1 / 3]}, about="numbers")
    assert cache.get_json("before", "k") == {"x": [0.1, 1 / 3]}
    tensors = {"b": torch.randn(3, 2).t(), "a": torch.tensor([1, 2])}
    cache.put_tensors("attribution", "k", tensors, about="tensors")
    back = cache.get_tensors("attribution", "k")
    assert back is not None
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_another_key_or_kind_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_json("before", "k", 1)
    assert cache.get_json("before", "l") is None
    assert cache.get_json("after", "k") is None
    assert cache.get_tensors("before", "k") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"key": "other", "value": 2}', b"\xff\xfe\x00"])
def test_a_damaged_entry_is_a_miss(tmp_path: Path, damage: bytes) -> None:
    cache = Cache(tmp_path)
    cache.put_json("before", "k", 1)
    cache.put_tensors("attribution", "k", {"a": torch.ones(2)})
    for entry in cache.entries():
        entry.path.write_bytes(damage)
    assert cache.get_json("before", "k") is None
    assert cache.get_tensors("attribution", "k") is None
    assert {entry.about for entry in cache.entries()} == {"unreadable"}


def test_a_torn_tensor_file_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_tensors("attribution", "k", {"a": torch.ones(2000)})
    path = cache.entries()[0].path
    path.write_bytes(path.read_bytes()[:-7])
    assert cache.get_tensors("attribution", "k") is None


def test_listing_and_clearing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.entries() == ()
    cache.put_json("before", "k", 1, about="one")
    cache.put_tensors("attribution", "k", {"a": torch.ones(2)}, about="two")
    assert {(entry.kind, entry.about) for entry in cache.entries()} == {("before", "one"), ("attribution", "two")}
    assert all(entry.bytes == entry.path.stat().st_size for entry in cache.entries())
    assert [entry.about for entry in cache.clear("before")] == ["one"]
    assert [entry.about for entry in cache.entries()] == ["two"]
    cache.clear()
    assert cache.entries() == ()


def test_not_a_number_is_never_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Cache(tmp_path).put_json("before", "k", float("nan"))
    assert Cache(tmp_path).entries() == ()


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(json.dumps({}))
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "note.txt").write_text("mine")
    Cache(tmp_path).clear()
    assert (tmp_path / "speed.json").exists()
    assert (tmp_path / "before" / "note.txt").exists()
