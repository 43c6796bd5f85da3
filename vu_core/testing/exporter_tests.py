"""Conformance of an exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from vu_core.data import digest
from vu_core.edit import Edit, LowRank
from vu_core.errors import EditError
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toy_painter import ToyPainter
from vu_core.testing.toys import toy_run
from vu_core.testing.watching import Snapshot, nothing_global_changes


class ExporterTests(PluginTests):
    """Checks of an exporter; set ``plugin``, and `make_model` when its format needs a real pipeline."""

    def make_model(self) -> Any:
        """Return a fresh model, the same numbers each time."""
        return ToyPainter()

    def make_edit(self, model: Any) -> Edit:
        """Return an edit that the format can express: low-rank, with alpha unlike the rank."""
        generator = torch.Generator().manual_seed(0)
        parts = {}
        for name, weight in model.network.named_parameters():
            if name.endswith(("to_q.weight", "to_v.weight")):
                a = torch.randn(2, weight.shape[1], generator=generator)
                b = torch.randn(weight.shape[0], 2, generator=generator) * 0.2
                parts[name] = LowRank(a, b, alpha=6.0)
        return Edit(parts, base=model.facts.base_hash, method="toy")

    def export(self, folder: Path, model: Any = None, config: Any = None) -> tuple[Path, ...]:
        """Export once into an empty folder."""
        model = model or self.make_model()
        target = folder / "export"
        target.mkdir(parents=True)
        exporter = self.plugin(self.config() if config is None else config)
        files: tuple[Path, ...] = exporter.export(self.make_edit(model), model, target, toy_run(folder))
        return files

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return names and bytes of the files."""
        return [(file.name, digest(file.read_bytes())) for file in self.export(folder, config=config)]

    def test_files_lie_in_the_folder(self, tmp_path: Path) -> None:
        """Every file is there, is not empty, and cannot run code when it is read."""
        files = self.export(tmp_path)
        assert files, "no files"
        for file in files:
            assert file.is_file(), f"{file.name} was not written"
            assert file.is_relative_to(tmp_path / "export"), f"{file} lies outside of the folder"
            assert file.stat().st_size, f"{file.name} is empty"
            assert file.suffix not in (".bin", ".pt", ".pth", ".pkl", ".ckpt"), f"{file.name} is a pickle"

    def test_same_edit_same_bytes(self, tmp_path: Path) -> None:
        """Exporting twice gives the same bytes, so that files can be compared."""
        first, second = self.outcome(self.config(), tmp_path / "1"), self.outcome(self.config(), tmp_path / "2")
        assert first == second, "two exports of one edit differ"

    def test_verify_accepts_its_own_files(self, tmp_path: Path) -> None:
        """Reloaded through the target's loader, outputs agree within 1e-4."""
        model = self.make_model()
        files = self.export(tmp_path, model)
        error = self.make().verify(files, self.make_edit(model), model, toy_run(tmp_path))
        assert 0 <= error <= 1e-4, f"reloaded outputs differ by {error}"

    def test_verify_notices_another_edit(self, tmp_path: Path) -> None:
        """A file of half the strength is not accepted."""
        model = self.make_model()
        files = self.export(tmp_path, model)
        edit = self.make_edit(model)
        half = {n: attrs.evolve(part, alpha=part.alpha / 2) for n, part in edit if isinstance(part, LowRank)}
        try:
            error = self.make().verify(files, attrs.evolve(edit, parts=half), model, toy_run(tmp_path))
        except EditError:
            return
        assert error > 1e-4, "a file of another strength was accepted"

    def test_model_and_process_are_left_alone(self, tmp_path: Path) -> None:
        """Exporting and verifying change nothing."""
        model = self.make_model()
        before = Snapshot.of(model.network)
        with nothing_global_changes():
            files = self.export(tmp_path, model)
            self.make().verify(files, self.make_edit(model), model, toy_run(tmp_path))
        assert not before.differences(model.network), before.differences(model.network)

    def test_an_edit_of_nothing_is_refused(self, tmp_path: Path) -> None:
        """There is no file without content."""
        model = self.make_model()
        with pytest.raises(EditError):
            self.make().export(Edit({}), model, tmp_path, toy_run(tmp_path))
