"""The published binary files of CIFAR, with fewer records."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from vu_classifiers.cifar import Cifar10, Cifar10Config, Cifar100, Cifar100Config, Published, read
from vu_classifiers.cifar_names import CIFAR10, COARSE, FINE
from vu_core import DataError
from vu_core.testing import toy_run

Write = Callable[..., Path]
TEN = attrs.evolve(Cifar10.published, records=(20, 30))
HUNDRED = attrs.evolve(Cifar100.published, records=(300, 200))


def packed(folder: Path, published: Published, place: Path) -> Published:
    """Pack a folder as the authors do, and return what is published with the checksum of this archive."""
    with tarfile.open(place / published.archive, "w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, f"{published.folder}/{path.name}")
    md5 = hashlib.md5((place / published.archive).read_bytes(), usedforsecurity=False).hexdigest()
    return attrs.evolve(published, md5=md5)


def error_of(ref: object, published: Published = TEN) -> DataError:
    with pytest.raises(DataError) as caught:
        read(str(ref), published)
    return caught.value


def test_published_files_are_those_of_the_authors() -> None:
    """Sizes, names and checksums of https://www.cs.toronto.edu/~kriz/cifar.html."""
    ten, hundred = Cifar10.published, Cifar100.published
    assert ten.train == tuple(f"data_batch_{number}.bin" for number in (1, 2, 3, 4, 5))
    assert [ten.records[0] * (1 + 3072), hundred.records[0] * (2 + 3072)] == [30_730_000, 153_700_000]
    assert (ten.md5, hundred.md5) == ("c32a1d4ab5d03f1284b67883e8d87530", "03b5dce01913d631647c71ecec9e9cb8")
    assert (len(CIFAR10), len(COARSE), len(FINE)) == (10, 20, 100)
    assert [list(names) for names in (COARSE, FINE)] == [sorted(COARSE), sorted(FINE)]
    assert (FINE[19], FINE[63], COARSE[14]) == ("cattle", "porcupine", "people")


def test_a_record_is_label_red_green_blue(tmp_path: Path, write_cifar: Write) -> None:
    folder = write_cifar(tmp_path / "data", TEN)
    raw = bytearray((folder / "data_batch_2.bin").read_bytes())
    planes = [bytes(range(256)) * 4, bytes([7]) * 1024, bytes([200]) * 1024]
    raw[3 * 3073 : 4 * 3073] = bytes([9]) + b"".join(planes)
    (folder / "data_batch_2.bin").write_bytes(raw)
    images, (labels,), test = read(str(folder), TEN)
    assert (images.shape, images.dtype, test) == ((130, 3, 32, 32), np.uint8, 30)
    assert labels[23] == 9
    assert images[23, 0, 1, 5] == 37  # second row, sixth pixel
    assert (images[23, 1] == 7).all()
    assert (images[23, 2] == 200).all()


def test_coarse_comes_before_fine(tmp_path: Path, write_cifar: Write) -> None:
    _, (coarse, fine), _ = read(str(write_cifar(tmp_path / "data", HUNDRED)), HUNDRED)
    assert fine[:7].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert coarse[:7].tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_archive_and_folder_hold_the_same(tmp_path: Path, write_cifar: Write) -> None:
    folder = write_cifar(tmp_path / TEN.folder, TEN)
    place = tmp_path / "downloads"
    place.mkdir()
    published = packed(folder, TEN, place)
    for ref in (folder, tmp_path, place, place / TEN.archive):
        images, (labels,), _ = read(str(ref), published)
        assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == (
            hashlib.sha256(b"".join(map(np.ndarray.tobytes, _flat(folder)))).hexdigest()
        )


def _flat(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    images, (labels,), _ = read(str(folder), TEN)
    return images, labels


def test_another_archive_is_refused(tmp_path: Path, write_cifar: Write) -> None:
    packed(write_cifar(tmp_path / "data", TEN), TEN, tmp_path)
    error = error_of(tmp_path)
    assert (error.code, TEN.md5 in error.problem) == ("VU-D116", True)


def test_an_archive_that_lacks_a_file_is_refused(tmp_path: Path, write_cifar: Write) -> None:
    folder = write_cifar(tmp_path / "data", TEN)
    (folder / "test_batch.bin").unlink()
    error = error_of(tmp_path, packed(folder, TEN, tmp_path))
    assert (error.code, "'test_batch.bin'" in error.problem) == ("VU-D117", True)


def test_an_archive_that_cannot_be_unpacked_is_refused(tmp_path: Path) -> None:
    (tmp_path / TEN.archive).write_bytes(b"no archive")
    md5 = hashlib.md5(b"no archive", usedforsecurity=False).hexdigest()
    assert error_of(tmp_path, attrs.evolve(TEN, md5=md5)).code == "VU-D117"


def test_a_file_of_another_size_is_refused(tmp_path: Path, write_cifar: Write) -> None:
    folder = write_cifar(tmp_path / "data", TEN)
    (folder / "data_batch_4.bin").write_bytes((folder / "data_batch_4.bin").read_bytes()[:-1])
    error = error_of(folder)
    assert (error.code, "'data_batch_4.bin'" in error.problem) == ("VU-D117", True)
    (folder / "data_batch_4.bin").unlink()
    assert error_of(folder).code == "VU-D117"


def test_a_label_that_no_class_has_is_refused(tmp_path: Path, write_cifar: Write) -> None:
    folder = write_cifar(tmp_path / "data", TEN)
    raw = bytearray((folder / "test_batch.bin").read_bytes())
    raw[3073] = 10
    (folder / "test_batch.bin").write_bytes(raw)
    assert error_of(folder).code == "VU-D117"


def test_files_that_are_not_there_are_said(tmp_path: Path) -> None:
    assert error_of(tmp_path).code == "VU-D115"
    assert error_of("").code == "VU-D115"
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")
    error = error_of(tmp_path)
    assert (error.code, "pickles" in error.problem) == ("VU-D115", True)


@pytest.mark.parametrize(("plugin", "published"), [(Cifar10, TEN), (Cifar100, HUNDRED)])
def test_folders_and_archives_are_recognised(
    tmp_path: Path, write_cifar: Write, plugin: type[Cifar10] | type[Cifar100], published: Published
) -> None:
    assert not plugin.recognises(tmp_path)
    folder = write_cifar(tmp_path / published.folder, published)
    assert plugin.recognises(folder)
    assert plugin.recognises(tmp_path)
    (tmp_path / "other").mkdir()
    packed(folder, published, tmp_path / "other")
    assert plugin.recognises(tmp_path / "other")
    assert plugin.recognises(tmp_path / "other" / published.archive)
    other = Cifar100 if plugin is Cifar10 else Cifar10
    assert not any(other.recognises(path) for path in (folder, tmp_path, tmp_path / "other"))


def test_classes_are_fine_or_coarse(tmp_path: Path, write_cifar: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar100, "published", HUNDRED)
    ref = str(write_cifar(tmp_path / "data", HUNDRED))
    fine, coarse = Cifar100(ref, Cifar100Config()), Cifar100(ref, Cifar100Config(labels="coarse"))
    assert tuple(fine.classes()) == FINE
    assert tuple(coarse.classes()) == COARSE
    assert list(Cifar10("", Cifar10Config()).classes().values())[3] == "class:cat"
    several = fine.manifest(fine.parse(["superclass:fish"], []))
    one = coarse.manifest(coarse.parse(["class:fish"], []))
    assert several.counts["train/forget"] == 10  # 3 of each of 5 classes, one of them for validation
    assert one.counts["train/forget"] == 14  # 15 of one class, one of them for validation
    assert set(several.axes) == {"class", "superclass"}
    with pytest.raises(DataError):
        coarse.parse(["class:apple"], [])


def test_the_seed_draws_the_share(tmp_path: Path, write_cifar: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar10, "published", TEN)
    ref = str(write_cifar(tmp_path / "data", TEN))
    drawn = set()
    for seed in (0, 1):
        data = Cifar10(ref, Cifar10Config(random_seed=seed, augment=False))
        tables = data.build(data.parse(["random:20%"], []), resolution=32, run=toy_run(tmp_path))
        drawn.add(tables.forget.tensors["pixels"].numpy().tobytes())
        assert len(tables.forget) == 18  # floor(0.2 * 90)
    assert len(drawn) == 2


def test_test_images_are_never_trained_on(tmp_path: Path, write_cifar: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar10, "published", TEN)
    folder = write_cifar(tmp_path / "data", TEN)
    data = Cifar10(str(folder), Cifar10Config(augment=False))
    selection = data.parse(["class:cat"], [])
    found = data.evaluation(selection, split="held-out", seeds=(1,), samples=0, resolution=32, run=toy_run(tmp_path))
    assert found.examples is not None
    records = np.fromfile(folder / "test_batch.bin", dtype=np.uint8).reshape(30, 3073)
    cats = torch.from_numpy(records[records[:, 0] == 3][:, 1:].reshape(-1, 3, 32, 32))
    assert torch.equal(found.examples[0].tensors["pixels"], cats)
    assert len(found.examples[1]) == 27
