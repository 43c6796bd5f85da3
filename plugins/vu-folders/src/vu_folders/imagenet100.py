"""``vu arrange-imagenet100``: a raw ImageNet-100 as folders ``train`` and ``test``."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
import click

from vu_core import ConfigError, Event, Host, Table

LABELS = "Labels.json"
WAYS: Mapping[str, Callable[[Path, Path], object]] = {
    "hardlink": os.link,
    "symlink": lambda source, target: target.symlink_to(source.resolve()),
    "copy": shutil.copyfile,
}
"""How an image comes to its new place."""

_TOLD = 1000  # images between two lines of progress

EPILOG = """\b
Examples:
  vu arrange-imagenet100 downloads/imagenet100 data/imagenet100 --dry-run
  vu arrange-imagenet100 downloads/imagenet100 data/imagenet100
  vu unlearn --data data/imagenet100 --forget class:n01440764 --set data.resize=256 --set data.crop=center ...
"""


@attrs.frozen
class Raw:
    """What a raw ImageNet-100 holds: per part, ``train`` and ``test``, the images of every class by name."""

    parts: Mapping[str, Mapping[str, Mapping[str, Path]]]

    def files(self) -> Iterator[tuple[Path, Path]]:
        """Yield every image and its place below the new folder, in a fixed order."""
        for part, classes in self.parts.items():
            for name, images in sorted(classes.items()):
                for image, path in sorted(images.items()):
                    yield path, Path(part, name, image)


@click.command(short_help="Arrange a raw ImageNet-100 as train and test.", epilog=EPILOG)
@click.argument("raw", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--by",
    type=click.Choice(tuple(WAYS)),
    default="hardlink",
    show_default=True,
    help="How images come to their place; a hard link takes no space and needs the same disk.",
)
@click.option("--labels/--no-labels", default=True, help="Compare the class folders with Labels.json, if there is one.")
@click.option("--dry-run", is_flag=True, help="Count and check; write nothing.")
@click.pass_obj
def arrange(host: Host, /, raw: Path, out: Path, by: str, labels: bool, dry_run: bool) -> Table:
    """Arrange the raw ImageNet-100 in RAW as OUT/train/CLASS and OUT/test/CLASS.

    RAW holds train.X1, train.X2, ..., val.X and Labels.json, as it is published. RAW stays as it is. OUT appears as a
    whole or not at all.
    """
    found = read(raw, labels=labels)
    _check_out(out, raw)
    files = list(found.files())
    if not dry_run:
        with host.watching() as on_event, _whole(out) as staging:
            for number, (source, place) in enumerate(files, start=1):
                _put(source, staging / place, by)
                if number % _TOLD == 0 or number == len(files):
                    step = {"what": "images", "step": number, "total": len(files)}
                    on_event(Event("progress", "arrange", step, durable=False))
    rows = tuple((part, len(classes), sum(map(len, classes.values()))) for part, classes in found.parts.items())
    written = "Nothing was written (--dry-run)." if dry_run else f"Written to {out}: vu unlearn --data {out}"
    return Table("ImageNet-100", ("part", "classes", "images"), rows, (written,))


def read(raw: Path, *, labels: bool = True) -> Raw:
    """Look through a raw ImageNet-100.

    Args:
        raw: the folder with ``train.X*`` and ``val.X``.
        labels: compare the class folders with ``Labels.json``, if there is one.

    Raises:
        ConfigError: it is something else (``VU-C140``), or its folders do not fit together (``VU-C141``).
    """
    trains = sorted(path for path in raw.glob("train.X*") if path.is_dir())
    for pattern, there in (("train.X*", bool(trains)), ("val.X", (raw / "val.X").is_dir())):
        if not there:
            raise ConfigError(
                "VU-C140",
                f"{str(raw)!r} is no raw ImageNet-100: it holds no folder {pattern}.",
                f"Name the folder with train.X1, train.X2, ..., val.X and {LABELS}.",
                where="RAW",
            )
    train: dict[str, dict[str, Path]] = {}
    for folder in trains:
        for name, images in _classes(folder).items():
            own = train.setdefault(name, {})
            if twice := sorted(own.keys() & images.keys()):
                raise _apart(
                    f"The image {twice[0]!r} of the class {name!r} lies in two folders train.X*.", folder / name
                )
            own |= images
    test = _classes(raw / "val.X")
    for name in sorted(train.keys() ^ test.keys()):
        where = "in val.X and in no folder train.X*" if name in test else "in a folder train.X* and not in val.X"
        raise _apart(f"The class {name!r} is {where}.", raw / "val.X" / name)
    if labels:
        _check_labels(raw / LABELS, set(train))
    return Raw({"train": train, "test": test})


def _classes(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the images of every class folder by name. Raises: ConfigError (``VU-C141``)."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            images = {
                image.name: image for image in path.iterdir() if image.suffix.lower() in (".jpeg", ".jpg", ".png")
            }
            if not images:
                raise _apart(f"The class folder {path.name!r} holds no images.", path)
            found[path.name] = images
    return found


def _check_labels(path: Path, classes: set[str]) -> None:
    """Compare the class folders with the published list. Raises: ConfigError (``VU-C141``)."""
    if not path.is_file():
        return
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _apart(f"{LABELS} cannot be read: {error}.", path) from error
    if not isinstance(named, dict):
        raise _apart(f"{LABELS} is no table of class names.", path)
    for name in sorted(classes ^ named.keys()):
        problem = "stands in it and has no folder" if name in named else "has a folder and does not stand in it"
        raise _apart(f"{LABELS} names other classes: {name!r} {problem}.", path)


def _check_out(out: Path, raw: Path) -> None:
    """Refuse a folder that is there, or lies inside the source. Raises: ConfigError (``VU-C142``)."""
    if out.exists() or out.is_symlink():
        raise _not_there(f"{str(out)!r} exists already.", "Name a folder that does not exist yet.")
    if out.resolve().is_relative_to(raw.resolve()):
        raise _not_there(f"{str(out)!r} lies inside {str(raw)!r}.", "Name a folder beside it.")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``out``, and rename it to ``out`` at the end; else take it away."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", suffix=".part", dir=out.parent))
        staging.chmod(0o755)  # mkdtemp lets nobody else in
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield staging
        try:
            staging.rename(out)
        except OSError as error:
            raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put(source: Path, target: Path, by: str) -> None:
    """Bring an image to its place. Raises: ConfigError (``VU-C142``)."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        WAYS[by](source, target)
    except OSError as error:
        if by == "hardlink" and error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise _not_there(
                f"{str(source)!r} cannot be linked there: {error.strerror}.",
                "Use --by symlink or --by copy, or a folder on the same disk.",
            ) from error
        raise _unwritable(source, error) from error


def _apart(problem: str, where: Path) -> ConfigError:
    remedy = f"Unpack the archive again; --no-labels leaves {LABELS} out of the check."
    return ConfigError("VU-C141", problem, remedy, where=str(where))


def _unwritable(path: Path, error: OSError) -> ConfigError:
    problem = f"{str(path)!r} cannot be written: {error.strerror or error}."
    return _not_there(problem, "Free some space, check the permissions, or choose another folder.")


def _not_there(problem: str, remedy: str) -> ConfigError:
    return ConfigError("VU-C142", problem, remedy, where="OUT")
