"""The toy exporters."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch

from vu_core import Check, Edit, EditError, Run, Source, setting
from vu_core.adapters import apply_edit, load_edit, save_edit


@attrs.frozen
class Config:
    stem: str = setting("edit", help="stem of the file")
    parts: int = setting(1, help="copies of the file", ge=1)


class Right:
    """Writes the edit into a folder of its own, reads it again and compares the weights."""

    Config: ClassVar[type[Config]] = Config
    source: ClassVar[Source] = Source("a toy", "https://example.org", "own")
    handed: ClassVar[list[tuple[str, Edit]]] = []
    """Every edit that `export` and `verify` were handed, for tests."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        self.handed.append(("export", edit))
        paths = [folder / "weights" / f"{self.config.stem}-{n}.safetensors" for n in range(self.config.parts)]
        (folder / "weights").mkdir()
        for path in paths:
            save_edit(edit, path)
        return tuple(paths)

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        self.handed.append(("verify", edit))
        with apply_edit(model.network, load_edit(files[0])):
            found = [weight.clone() for weight in model.network.parameters()]
        with apply_edit(model.network, edit):
            errors = [float((a - b).abs().max()) for a, b in zip(found, model.network.parameters(), strict=True)]
        return (Check("denoiser", max(errors), 1e-4), Check("image", 0.0, 0.5))

    def usage(self, files: tuple[Path, ...], base: str) -> str:
        return f"from toylib import load\nload({base!r}, '.', 'weights/{files[0].name}')\n"


class Half(Right):
    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        return (Check("denoiser", 0.0312, 1e-4), Check("image", 0.25, 0.5))


class NotANumber(Right):
    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        return (Check("denoiser", 0.0, 1e-4), Check("image", float("nan"), 0.5))


class NoLimit(Right):
    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        return (Check("denoiser", float("inf"), float("inf")),)


class Raises(Right):
    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        super().export(edit, model, folder, run)
        raise ValueError("half of it is written")


class RaisesLater(Right):
    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        raise ValueError("cannot compare")


class Stopped(Right):
    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        raise KeyboardInterrupt


class DiskFull(Right):
    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        super().export(edit, model, folder, run)
        raise OSError(errno.ENOSPC, "No space left on device")


class Refuses(Right):
    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        raise EditError("VU-E070", "The edit is masked weight by weight.", "Or refit it: --refit-rank 8.")


class Outside(Right):
    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        path = folder.parent / "outside.safetensors"
        save_edit(edit, path)
        return (*super().export(edit, model, folder, run), path)


class Link(Right):
    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        files = super().export(edit, model, folder, run)
        link = folder / "link.safetensors"
        link.symlink_to(__file__)
        return (*files, link)


class Unnamed(Right):
    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        (folder / "left.over").write_text("x")
        return super().export(edit, model, folder, run)


class Litter(Right):
    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        (files[0].parent / "cache").write_text("x")
        return super().verify(files, edit, model, run)


class Nothing(Right):
    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        return ()


class Silent(Right):
    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        return ()


class Number(Right):
    """Judges for itself."""

    def verify(self, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> Any:
        return 0.0


class Dirty(Right):
    """Merges the edit into the model and forgets to take it out."""

    def export(self, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        with torch.no_grad():
            next(iter(model.network.parameters())).add_(1e-3)
        return super().export(edit, model, folder, run)


class NoPython(Right):
    def usage(self, files: tuple[Path, ...], base: str) -> str:
        return "$ tool load ."
