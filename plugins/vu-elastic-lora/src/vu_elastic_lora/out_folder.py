"""The folder that ``vu extract`` makes.

``elastic_adapter_config.json`` names the groups and their ranks, ``super/edit.safetensors`` is the whole adapter, and
``sub/`` is a run of its own: the extracted adapter, measured. A search leaves ``search.json``, with all that it has
measured, and ``chosen_ranks.json``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vu_core import Edit, RecordError, write_text
from vu_elastic_lora.adapter_config import FILE, groups_to_json
from vu_elastic_lora.groups import RankGroup

SUPER, SUB, EDIT = "super", "sub", "edit.safetensors"
SEARCH, CHOSEN = "search.json", "chosen_ranks.json"


@contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """Make the folder; when what is done in it fails, take away what would be half of a result.

    A run in ``sub/`` that can go on stays with what belongs to it, and so does the evidence of a search.

    Raises:
        RecordError: ``out`` holds something already (``VU-R050``) or cannot be made (``VU-R055``).
    """
    with _writing(out):
        there = out.is_dir()
        if out.exists() and (not there or any(out.iterdir())):
            raise RecordError(
                "VU-R050",
                f"{str(out)!r} is not an empty folder.",
                "Choose an --out that is empty or does not exist yet.",
                where="--out",
            )
        out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        undo.callback(_take_back, out, keep_folder=there)
        yield
        undo.pop_all()


def _take_back(out: Path, *, keep_folder: bool) -> None:
    """Remove what was written, unless a run in ``sub/`` can go on with it."""
    if (out / SUB).exists():
        return
    (out / FILE).unlink(missing_ok=True)
    shutil.rmtree(out / SUPER, ignore_errors=True)
    if not keep_folder:
        with suppress(OSError):  # the evidence of a search lies in it
            out.rmdir()


def write_super(out: Path, edit: Edit, groups: Sequence[RankGroup]) -> Path:
    """Write the whole adapter and what it can be cut to.

    Returns:
        The file of the adapter.

    Raises:
        RecordError: the folder cannot be written (``VU-R055``).
    """
    from vu_core.adapters import save_edit

    path = out / SUPER / EDIT
    write_file(out / FILE, groups_to_json(groups))
    with _writing(path):
        save_edit(edit, path)
    return path


def write_file(path: Path, text: str) -> None:
    """Put a text into a file, old or new but never a part of it. Raises: RecordError ``VU-R055``."""
    with _writing(path):
        write_text(path, text)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(
            "VU-R055",
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            "Free some space or check the permissions, or choose another folder with --out.",
            where=str(path),
        ) from error
