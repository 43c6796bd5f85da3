"""Unlearner ``composition``: finished edits are added up; nothing is trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from vu_core.adapters import STRATEGIES, combined, edit_digest, load_edit
from vu_core.contracts.model import Model
from vu_core.data import ForgetRetain
from vu_core.edit import Edit
from vu_core.errors import EditError
from vu_core.run import Run
from vu_core.run_folder import SOURCES, writing
from vu_core.setting import setting
from vu_core.source import Source

REMEDY = "`vu compose RUN RUN` makes a run of this method, with copies of the edits in its folder."


def _some(values: tuple[Any, ...]) -> str | None:
    return None if values else f"is empty: there is nothing to add up. {REMEDY}"


@attrs.frozen
class CompositionConfig:
    """Settings of ``composition``; ``vu compose`` fills them in."""

    sources: str = setting(help="folder that holds the edits: 0.safetensors, 1.safetensors, ...", path=True)
    digests: tuple[str, ...] = setting((), help="hash of each edit, in this order", check=_some)
    weights: tuple[float, ...] = setting((), help="factor of each edit, in this order")
    strategy: str = setting(
        "sum",
        help="sum: all changes as they are; orthogonal: a direction that several share counts once",
        choices=STRATEGIES,
    )

    def __attrs_post_init__(self) -> None:
        if len(self.digests) != len(self.weights):
            counts = f"digests ({len(self.digests)}) and weights ({len(self.weights)})"
            raise ValueError(f"has different numbers of {counts}: each edit has one of both")


class Composition:
    """Add up edits that separate runs have made: ``W + sum_i w_i delta_i``.

    Needs no example and draws nothing, so that the same edits, weights and strategy give the same bytes. An edit that
    is left out leaves no trace: the rest is what it would have been without it. ``vu compose`` and ``vu revoke`` make
    such runs; see `vu_core.adapters.combined` for the arithmetic. Copies of the edits lie in ``sources/`` of every run,
    so that it needs no other folder to be taken apart.

    Args:
        config: see `CompositionConfig`.

    Source:
        Task arithmetic, Ilharco et al. 2022, https://arxiv.org/abs/2212.04089.
    """

    Config: ClassVar[type[CompositionConfig]] = CompositionConfig
    source: ClassVar[Source] = Source(
        "Task arithmetic, Ilharco et al. 2022", "https://arxiv.org/abs/2212.04089", "paper"
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    uses_examples: ClassVar[bool] = False

    def __init__(self, config: CompositionConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Load the edits, check that they are those of the configuration, and return their sum.

        Raises:
            EditError: the folder of the edits is not there, or does not hold just these (``VU-E065``); an edit cannot
                be read (``VU-E031``, ``VU-E032``, ``VU-E034``) or was made for other weights (``VU-E053``); or they
                cannot be added up: see `vu_core.adapters.combined`.
            RecordError: the copies cannot be written (``VU-R055``).
        """
        folder = _folder(self.config.sources, run)
        edits = load_sources(folder, self.config.digests)
        for path, edit in edits.items():
            _check_base(path, edit, model)
        _keep(folder, run.folder / SOURCES)
        config = self.config
        return combined(list(edits.values()), config.weights, strategy=config.strategy, network=model.network)


def _folder(sources: str, run: Run) -> Path:
    """Return the folder of the edits; when the run folder was moved, what it holds itself."""
    for folder in (Path(sources), run.folder / SOURCES):
        if sources and folder.is_dir():
            return folder
    raise EditError(
        "VU-E065",
        f"There is no folder {sources!r} with edits to add up." if sources else "No folder with edits is named.",
        f"{REMEDY} If the folder was moved, say where it is now: --set unlearner.sources=FOLDER.",
        where="unlearner.sources",
    )


def load_sources(folder: Path, digests: Sequence[str]) -> dict[Path, Edit]:
    """Return the edits of a composed run, by file and in order.

    Args:
        folder: holds ``0.safetensors``, ``1.safetensors``, ...
        digests: hash of each.

    Raises:
        EditError: the folder does not hold just these (``VU-E065``), or one cannot be read (``VU-E031``,
            ``VU-E032``, ``VU-E034``).
    """
    paths = [folder / f"{number}.safetensors" for number in range(len(digests))]
    there = sorted(folder.glob("*.safetensors"))
    if there != sorted(paths):
        names = ", ".join(path.name for path in there) or "none"
        expected = "0.safetensors" if len(paths) == 1 else f"0.safetensors to {len(paths) - 1}.safetensors"
        raise _wrong(folder, f"it should hold {expected}, but holds {names}")
    edits = {path: load_edit(path) for path in paths}
    changed = [
        path.name for (path, edit), digest in zip(edits.items(), digests, strict=True) if edit_digest(edit) != digest
    ]
    if changed:
        raise _wrong(folder, f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} no longer what it was")
    return edits


def _wrong(folder: Path, why: str) -> EditError:
    return EditError(
        "VU-E065",
        f"The edits to add up are not those of the configuration: {why}.",
        f"Put back the edits that the run was made of. {REMEDY}",
        where=str(folder),
    )


def _keep(folder: Path, place: Path) -> None:
    """Copy the edits into a run that was repeated from a file; one that ``vu compose`` began holds them already."""
    if not (place.exists() and place.samefile(folder)):
        with writing(place):
            shutil.copytree(folder, place, dirs_exist_ok=True)


def _check_base(path: Path, edit: Edit, model: Model) -> None:
    base = model.facts.base_hash
    if edit.base != base:
        raise EditError(
            "VU-E053",
            f"The edit {path.name!r} was made for weights with the hash {edit.base[:12] or '(not named)'}; these have "
            f"the hash {base[:12]}.",
            "Compose edits of the model that the run names.",
            where=str(path),
        )
