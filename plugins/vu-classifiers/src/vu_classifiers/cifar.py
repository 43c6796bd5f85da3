"""The data plugins ``cifar10`` and ``cifar100``: the published binary files, from a folder or their archive."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from vu_classifiers.cifar_names import CIFAR10, COARSE, FINE
from vu_classifiers.concepts import select
from vu_classifiers.labelled import CLASS, METRICS, Divided, Labelled
from vu_core import DataError, Evaluation, ForgetRetain, Manifest, Run, Selection, Source, Split, setting

SIDE = 32
PIXELS = 3 * SIDE * SIDE
SUPERCLASS = "superclass"
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"


@attrs.frozen
class Published:
    """The files of a dataset as its authors publish them.

    A record is one byte per label, then 3072 bytes: red, green and blue, each 32 rows of 32 pixels.

    Args:
        archive: name of the compressed archive; md5: its checksum.
        folder: what it unpacks to.
        train, test: names of the files in there.
        records: images per file of train, and of test.
        names: names of the labels, in the order of their bytes in a record.
    """

    archive: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    records: tuple[int, int]
    names: tuple[tuple[str, ...], ...]


@attrs.frozen
class Cifar10Config:
    """Settings of `Cifar10`."""

    validation: float = setting(
        0.1, help="part of the training images of every class that methods may select on", ge=0, lt=1
    )
    augment: bool = setting(
        True, help="shift training images by up to 4 of 32 pixels and mirror every other one, anew at every step"
    )
    random_seed: int = setting(0, help="which images --forget random:SHARE draws", ge=0)


@attrs.frozen
class Cifar100Config(Cifar10Config):
    """Settings of `Cifar100`."""

    labels: str = setting(
        "fine", help="what the classes are: the 100 fine ones or the 20 coarse ones", choices=("fine", "coarse")
    )


class Cifar10:
    """Read CIFAR-10: 50,000 training and 10,000 test images, 32x32, ten classes.

    The files are the binary version, in a folder ``cifar-10-batches-bin`` or in the archive
    ``cifar-10-binary.tar.gz``, which is read as it is and whose checksum must be the published one. The authors publish
    no checksums of the files inside: of a folder the sizes and the labels are checked.

    As in the experiments of SalUn a tenth of every class is taken out of the training images for validation, and the
    test images of a forgotten class are the unseen forget side. ``class:cat`` forgets a class, ``random:0.1`` or
    ``random:10%`` this share of the training images; then the test images are all retained.

    Args:
        ref: the folder with the files, one that holds it or the archive, or the archive; config: see `Cifar10Config`.
    """

    Config: ClassVar[type[Cifar10Config]] = Cifar10Config
    source: ClassVar[Source] = Source(
        "Learning Multiple Layers of Features from Tiny Images, Krizhevsky 2009", ADDRESS, "own"
    )
    metrics: ClassVar[tuple[str, ...]] = METRICS
    has_overwrites: ClassVar[bool] = False
    published: ClassVar[Published] = Published(
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        records=(10_000, 10_000),
        names=(CIFAR10,),
    )

    def __init__(self, ref: str, config: Cifar10Config) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is the archive, or a folder with it or with the files, by their names."""
        return recognised(path, cls.published)

    def classes(self) -> Mapping[str, str]:
        """Return the concept of every class, in the order of the labels."""
        return {name: f"{CLASS}:{name}" for name in CIFAR10}

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``class:cat`` and ``random:0.1``. Raises: DataError VU-D111, VU-D112."""
        return select(forget, overwrite, {CLASS: CIFAR10})

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the data that a run will see. Raises: DataError VU-D111, VU-D115 to VU-D117."""
        return self._divided(selection).manifest("cifar10", self.ref, "the published test images held out")

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return train and validation tables; see `vu_classifiers.labelled.Divided.build`."""
        return self._divided(selection).build(resolution, run)

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Return the images of ``split``; see `vu_classifiers.labelled.Divided.evaluation`."""
        return self._divided(selection).evaluation(resolution, split=split, seeds=seeds, samples=samples)

    @cached_property
    def _labelled(self) -> Labelled:
        images, (labels,), test = read(self.ref, self.published)
        return _labelled(images, {CLASS: CIFAR10}, {CLASS: labels}, test)

    def _divided(self, selection: Selection) -> Divided:
        return _divided(self._labelled, selection, self.config)


class Cifar100:
    """Read CIFAR-100: 50,000 training and 10,000 test images, 32x32, 100 fine classes in 20 coarse ones.

    The files are the binary version, in a folder ``cifar-100-binary`` or in the archive ``cifar-100-binary.tar.gz``,
    checked as those of `Cifar10`. Its split and its grammar are those of `Cifar10`; ``superclass:fish`` forgets all
    fine classes of a coarse one. With ``labels = "coarse"`` the classes are the 20 coarse ones.

    Args:
        ref: the folder with the files, one that holds it or the archive, or the archive; config: see `Cifar100Config`.
    """

    Config: ClassVar[type[Cifar100Config]] = Cifar100Config
    source: ClassVar[Source] = Cifar10.source
    metrics: ClassVar[tuple[str, ...]] = METRICS
    has_overwrites: ClassVar[bool] = False
    published: ClassVar[Published] = Published(
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        records=(50_000, 10_000),
        names=(COARSE, FINE),
    )

    def __init__(self, ref: str, config: Cifar100Config) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is the archive, or a folder with it or with the files, by their names."""
        return recognised(path, cls.published)

    def classes(self) -> Mapping[str, str]:
        """Return the concept of every class, in the order of the labels."""
        return {name: f"{CLASS}:{name}" for name in self._axes[CLASS]}

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``class:apple``, ``superclass:fish`` and ``random:0.1``. Raises: DataError VU-D111, VU-D112."""
        return select(forget, overwrite, self._axes)

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the data that a run will see. Raises: DataError VU-D111, VU-D115 to VU-D117."""
        return self._divided(selection).manifest("cifar100", self.ref, "the published test images held out")

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return train and validation tables; see `vu_classifiers.labelled.Divided.build`."""
        return self._divided(selection).build(resolution, run)

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Return the images of ``split``; see `vu_classifiers.labelled.Divided.evaluation`."""
        return self._divided(selection).evaluation(resolution, split=split, seeds=seeds, samples=samples)

    @property
    def _axes(self) -> Mapping[str, tuple[str, ...]]:
        return {CLASS: COARSE} if self.config.labels == "coarse" else {CLASS: FINE, SUPERCLASS: COARSE}

    @cached_property
    def _labelled(self) -> Labelled:
        images, (coarse, fine), test = read(self.ref, self.published)
        labels = {CLASS: coarse} if self.config.labels == "coarse" else {CLASS: fine, SUPERCLASS: coarse}
        return _labelled(images, self._axes, labels, test)

    def _divided(self, selection: Selection) -> Divided:
        return _divided(self._labelled, selection, self.config)


def _labelled(
    images: NDArray[np.uint8],
    axes: Mapping[str, tuple[str, ...]],
    labels: Mapping[str, NDArray[np.int64]],
    test: int,
) -> Labelled:
    rows = np.arange(len(images))
    return Labelled(images, axes, labels, train=rows[:-test], test=rows[-test:])


def _divided(data: Labelled, selection: Selection, config: Cifar10Config) -> Divided:
    return Divided(data, selection, config.validation, config.random_seed, augment=config.augment, flip=True)


def recognised(path: Path, published: Published) -> bool:
    """Tell whether a path is the archive, or a folder with it, with the files or with their folder."""
    if path.is_file():
        return path.name == published.archive
    named = (published.archive, published.train[0], f"{published.folder}/{published.train[0]}")
    return path.is_dir() and any((path / name).is_file() for name in named)


def read(ref: str, published: Published) -> tuple[NDArray[np.uint8], list[NDArray[np.int64]], int]:
    """Return all images, train before test.

    Args:
        ref: the folder with the files, one that holds it or the archive, or the archive.
        published: what they must be.

    Returns:
        Images uint8 ``(N, 3, 32, 32)``, the labels of every kind ``(N,)``, and the number of test images.

    Raises:
        DataError: the files are not there (``VU-D115``), the archive is not the published one (``VU-D116``), or a
            file is damaged (``VU-D117``).
    """
    named = [*((name, published.records[0]) for name in published.train), (published.test, published.records[1])]
    folder, archive = _found(ref, published)
    if folder is not None:
        contents = {name: _bytes(folder / name) for name, _ in named}
    else:
        contents = _unpacked(archive, published, [name for name, _ in named])
    parts = [_records(name, contents[name], count, published) for name, count in named]
    records = np.concatenate(parts)  # (N, labels + 3072)
    kinds = len(published.names)
    images = np.ascontiguousarray(records[:, kinds:]).reshape(-1, 3, SIDE, SIDE)
    return images, [records[:, kind].astype(np.int64) for kind in range(kinds)], published.records[1]


def _found(ref: str, published: Published) -> tuple[Path | None, Path]:
    """Return the folder of the files, or ``None`` and the archive. Raises: DataError (``VU-D115``)."""
    place = Path(ref).expanduser()
    for folder in (place, place / published.folder):
        if (folder / published.train[0]).is_file():
            return folder, place
    archive = place if place.is_file() else place / published.archive
    if ref and archive.is_file():
        return None, archive
    problem = f"There are no files of {published.folder} in {ref!r}." if ref else "It is not said where the files lie."
    pickled = (f"{published.folder.replace('-bin', '-py')}/data_batch_1", "data_batch_1", "cifar-100-python/train")
    if ref and any((place / name).is_file() for name in pickled):
        problem = f"{ref!r} holds the Python version: pickles, which could run any program when they are read."
    name = "cifar10" if "10-" in published.archive else "cifar100"
    raise DataError(
        "VU-D115",
        problem,
        f"Fetch {published.archive} (the binary version, {ADDRESS}) and name the folder it lies in: "
        f"--data {name}=FOLDER.",
        where="data.ref",
    )


def _unpacked(archive: Path, published: Published, names: Sequence[str]) -> dict[str, bytes]:
    """Return the files of an archive by name. Raises: DataError (``VU-D115``, ``VU-D116``, ``VU-D117``)."""
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != published.md5:
        raise DataError(
            "VU-D116",
            f"{str(archive)!r} is not the published archive: its MD5 is {found}, not {published.md5}.",
            "Fetch it again; a download that was cut off looks like this.",
            where="data.ref",
        )
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                content = tar.extractfile(member) if name in names else None
                if content is not None:
                    contents[name] = content.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise _damaged(str(archive), f"it cannot be unpacked ({error})") from error
    for name in names:
        if name not in contents:
            raise _damaged(str(archive), f"it holds no {name!r}")
    return contents


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(str(path), f"it cannot be read ({error.strerror})") from error


def _records(name: str, content: bytes, count: int, published: Published) -> NDArray[np.uint8]:
    """Return the records of a file, ``(count, labels + 3072)``. Raises: DataError (``VU-D117``)."""
    kinds = len(published.names)
    if len(content) != count * (kinds + PIXELS):
        raise _damaged(name, f"it has {len(content)} bytes, where {count} records are {count * (kinds + PIXELS)}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(count, kinds + PIXELS)
    for kind, names in enumerate(published.names):
        largest = int(records[:, kind].max(initial=0))
        if largest >= len(names):
            raise _damaged(name, f"it has the label {largest}, where there are {len(names)} classes")
    return records


def _damaged(name: str, what: str) -> DataError:
    return DataError(
        "VU-D117",
        f"{name!r} is no file of the published data, or it is damaged: {what}.",
        "Fetch the archive again and unpack it, or name the archive itself: its checksum is verified.",
        where="data.ref",
    )
