"""Finding and calling a factory that a ref names: ``module:factory`` or ``path/to/file.py:factory``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from vu_core import ModelError, did_you_mean, digest

EXAMPLE = "--model torch-module=my_model:make"


def settled(ref: str) -> str:
    """Return the ref with a file in place of a module of the current folder, as an absolute path.

    The current folder comes first, as for ``python -m``; what is installed keeps its name. A ref that is no
    ``module:factory`` comes back as it is: `check` objects to it.

    Example:
        >>> settled("torchvision.models:resnet18")
        'torchvision.models:resnet18'
    """
    place, _, factory = ref.rpartition(":")
    file = _file_here(place) if place else None
    return ref if file is None else f"{os.path.abspath(file)}:{factory}"  # noqa: PTH100  a link keeps its name


def check(ref: str) -> None:
    """Object to a ref that leads nowhere, without importing what it names. Raises: ModelError (``VU-M092``)."""
    place, factory = _split(ref)
    if not all(word.isidentifier() for word in factory.split(".")):
        raise _not_found(f"{factory!r} in {ref!r} is no name of a function or class.", f"Write {EXAMPLE}.")
    if place.endswith(".py"):
        if not Path(place).is_file():
            folder = Path(place).parent
            near = [file.name for file in folder.glob("*.py")] if folder.is_dir() else []
            problem = f"There is no file {place!r}.{did_you_mean(Path(place).name, near)}"
            raise _not_found(problem, "Check the path before the colon.")
        return
    first = place.partition(".")[0]
    if not _is_installed(first):
        here = [file.stem for file in Path.cwd().glob("*.py")]
        problem = f"There is no module {first!r}, neither here nor installed.{did_you_mean(first, here)}"
        raise _not_found(problem, f"Write {EXAMPLE}, or name a file: path/to/my_model.py:make.")


def make(ref: str) -> Any:
    """Import what a settled ref names, call it without arguments and return what it gives.

    The folder of a file is importable meanwhile, so that the file may import its neighbours.

    Raises:
        ModelError: there is no such module or attribute (``VU-M092``), or its code fails (``VU-M093``).
    """
    check(ref)
    place, name = _split(ref)
    file = Path(place) if place.endswith(".py") else None
    with _importable(None if file is None else _package_root(file)):
        module = _imported(place, file)
        factory = _attribute(module, name, place)
        try:
            return factory()
        except (Exception, SystemExit) as error:
            raise _failed(f"{ref!r} failed when it was called", error) from error


def _split(ref: str) -> tuple[str, str]:
    place, _, factory = ref.rpartition(":")
    if not place or not factory:
        said = f"{ref!r} does not say" if ref else "Nothing says"
        raise _not_found(f"{said} what makes the network: a module and a factory in it.", f"Write {EXAMPLE}.")
    return place, factory


def _file_here(place: str) -> Path | None:
    """Return the file that a path or a module name means in the current folder, if there is one."""
    if place.endswith(".py"):
        path = Path(place).expanduser()
        return path if path.is_file() else None
    words = place.split(".")
    if not all(word.isidentifier() for word in words):
        return None
    stem = Path(*words)
    candidates = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _is_installed(name: str) -> bool:
    """Tell whether a top-level module can be imported; nothing is imported for it."""
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, ValueError):  # a name that no finder understands
        return False


def _package_root(file: Path) -> Path:
    """Return the folder from which a file is imported: above the packages that it lies in."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Let modules be imported from a folder before all others."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _imported(place: str, file: Path | None) -> ModuleType:
    """Import a module by name, or a file: alone under a name of its own, in a package by its name there."""
    try:
        if file is None:
            return importlib.import_module(place)
        words = file.relative_to(_package_root(file)).with_suffix("").parts
        if len(words) == 1:
            return _executed(file)
        module = importlib.import_module(".".join(words if words[-1] != "__init__" else words[:-1]))
    except ModuleNotFoundError as error:
        raise _not_found(f"{place!r} cannot be imported: {error}.", "Install what is missing, or check it.") from error
    except (Exception, SystemExit) as error:  # a script that parses arguments and ends is no module with a factory
        raise _failed(f"{place!r} failed while it was imported", error) from error
    if module.__file__ is None or not Path(module.__file__).samefile(file):
        problem = f"{place!r} is hidden by another module of the name {module.__name__!r}: {module.__file__}."
        raise _not_found(problem, "Give its package a name that is free.")
    return module


def _executed(file: Path) -> ModuleType:
    """Execute a file that lies in no package, anew each time, so that a changed file is not missed."""
    name = f"vu_factory_{digest(str(file))[:12]}"
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file.name} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and annotations look for it
    with ExitStack() as unless_whole:
        unless_whole.callback(sys.modules.pop, name, None)
        spec.loader.exec_module(module)
        unless_whole.pop_all()
    return module


def _attribute(module: ModuleType, name: str, place: str) -> Callable[[], Any]:
    try:
        factory: Any = attrgetter(name)(module)
    except AttributeError as error:
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        problem = f"{place!r} has no {name!r}.{did_you_mean(name, known)}"
        raise _not_found(problem, "Name a function or class of it that takes no arguments.") from error
    if not callable(factory):
        raise _not_found(
            f"{name!r} of {place!r} is {type(factory).__name__!r}, which cannot be called.", "Name a function or class."
        )
    return factory  # type: ignore[no-any-return]


def _not_found(problem: str, remedy: str) -> ModelError:
    return ModelError("VU-M092", problem, remedy, where="model.ref")


def _failed(what: str, error: Exception | SystemExit) -> ModelError:
    lines = str(error).splitlines()
    problem = f"{what}: {type(error).__name__}{f': {lines[0]}' if lines else ''}."
    remedy = "Correct it; it is called without arguments and returns the network."
    return ModelError("VU-M093", problem, remedy, where="model.ref")
