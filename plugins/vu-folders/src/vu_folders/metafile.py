"""The data plugin ``metafile``: one JSON file lists what to forget and what to retain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core import DataError, Evaluation, ForgetRetain, Manifest, Selection, Source, Split, did_you_mean, setting
from vu_folders import assembly
from vu_folders.columns import read_entry, read_text
from vu_folders.grammar import read_concepts
from vu_folders.rows import Row, axes_of, fingerprinted
from vu_folders.settings import ImageSettings

if TYPE_CHECKING:
    from vu_core import Run

SIDES = ("forget", "retain")
_BEGINNING = 4096  # characters that `recognises` reads


@attrs.frozen
class Config(ImageSettings):
    """Settings of the data ``metafile``, the table ``[data]``."""

    base_dir: str | None = setting(
        None, help="folder that relative file names start at; that of the metafile when absent", path=True
    )


class Metafile:
    """Read the JSON metafile of the FADE authors.

    One object with the keys ``forget`` and ``retain``, each a list of entries ``{"file_name", "text", "overwrite"}``.
    ``--forget side:forget`` names its forget list, and is meant when nothing is said. Further text
    columns are kept as labels.

    Args:
        ref: the JSON file; config: see `Config`.

    Deviates: relative file names start at the metafile's folder, not at the working folder (``base_dir`` for parity).

    Source: the released code of FADE / SPARE, arXiv 2602.07058.
    """

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source(
        "FADE / SPARE, arXiv 2602.07058", "https://github.com/LeonardoSanBenitez/vision-unlearning", "code"
    )
    metrics: ClassVar[tuple[str, ...]] = assembly.METRICS

    def __init__(self, ref: str, config: Config) -> None:
        self.ref = ref
        self.config = config

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Tell whether ``path`` is a JSON file whose first key is ``forget`` or ``retain``."""
        if path.suffix.lower() != ".json" or not path.is_file():
            return False
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            beginning = "".join(file.read(_BEGINNING).split())
        return beginning.startswith(tuple(f'{{"{side}":' for side in SIDES))

    def parse(self, forget: Sequence[str], overwrite: Sequence[str]) -> Selection:
        """Understand ``--forget`` and ``--overwrite``.

        Raises:
            DataError: VU-D075 when anything but ``side:forget`` is named, VU-D074 without overwrite, and what is wrong
                with the file.
        """
        notes = [] if forget else ["Nothing was named, so the forget list of the metafile is forgotten."]
        selection = Selection(read_concepts(forget or ["side:forget"], overwrite, {"side": ("forget",)}, {}))
        return self._images(selection).noted(bool(overwrite), notes)

    def manifest(self, selection: Selection) -> Manifest:
        """Describe the data that a run will see. Raises: DataError VU-D070 to VU-D076."""
        return self._images(selection).manifest("metafile", self.ref)

    def build(self, selection: Selection, *, resolution: int, run: Run) -> ForgetRetain:
        """Return train and validation examples; ``resolution`` is used when the configuration names none."""
        return self._images(selection).build(resolution, run)

    def evaluation(
        self, selection: Selection, *, split: Split, seeds: Sequence[int], samples: int, resolution: int, run: Run
    ) -> Evaluation:
        """Return captions and images of ``split``; see `vu_folders.assembly.Images.evaluation`."""
        return self._images(selection).evaluation(resolution, split=split, seeds=seeds, samples=samples)

    def _images(self, selection: Selection) -> assembly.Images:
        forget, retain = self._rows["forget"], self._rows["retain"]
        return assembly.Images(selection, forget, retain, axes_of((*forget, *retain)), self.config)

    @cached_property
    def _rows(self) -> Mapping[str, tuple[Row, ...]]:
        content = _read(Path(self.ref).expanduser(), self.ref)
        rows = {side: fingerprinted(self._side(side, content[side])) for side in SIDES}
        if not rows["forget"]:
            raise DataError(
                "VU-D076",
                "The forget list of the metafile is empty.",
                "List the images that show what is to be forgotten.",
                where=self.ref,
            )
        return rows

    def _side(self, side: str, entries: Any) -> list[Row]:
        if not isinstance(entries, list):
            raise DataError(
                "VU-D072", f"{side!r} must be a list of entries.", "Write a JSON list.", where=f"{self.ref}: {side}"
            )
        root = Path(self.config.base_dir or Path(self.ref).parent).expanduser()
        rows = []
        for number, entry in enumerate(entries):
            where = f"{self.ref}: {side}[{number}]"
            name, caption, overwrite, columns = read_entry(entry, where, self.config.overwrite_column)
            own = overwrite if side == "forget" else ""
            rows.append(Row(root / name, name, caption, own, {**columns, "side": side}, where))
        return rows


def _read(path: Path, ref: str) -> dict[str, Any]:
    """Return the content of a metafile. Raises: DataError VU-D070, VU-D071, VU-D072."""
    if not path.is_file():
        raise DataError(
            "VU-D070", f"There is no file {ref!r}.", "Name the JSON file: --data metafile=FILE.", where="data.ref"
        )
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(
            "VU-D071", f"The metafile is no valid JSON: {error}.", "Correct the file.", where=ref
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            "VU-D072", "The metafile holds no JSON object.", 'Write {"forget": [...], "retain": [...]}.', where=ref
        )
    if unknown := [key for key in content if key not in SIDES]:
        raise DataError(
            "VU-D072",
            f"The metafile has an unknown key {unknown[0]!r}.{did_you_mean(unknown[0], SIDES)}",
            "Its keys are 'forget' and 'retain'.",
            where=ref,
        )
    if missing := [side for side in SIDES if side not in content]:
        raise DataError(
            "VU-D072", f"The metafile has no key {missing[0]!r}.", "Its keys are 'forget' and 'retain'.", where=ref
        )
    return content
