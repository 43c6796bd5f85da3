"""Conformance of an exporter."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from vu_core.contracts.exporter import Check
from vu_core.contracts.model import Denoiser, TextToImage
from vu_core.data import digest
from vu_core.edit import Edit, LowRank, Part, Replace, Sparse
from vu_core.errors import EditError
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toy_painter import ToyPainter
from vu_core.testing.toys import toy_run
from vu_core.testing.watching import Snapshot, nothing_global_changes

MOST_LINES = 12
"""Of usage, which is part of a model card."""


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

    def export(self, folder: Path, model: Any = None, config: Any = None, edit: Edit | None = None) -> tuple[Path, ...]:
        """Export once into an empty folder."""
        model = model or self.make_model()
        target = folder / "export"
        target.mkdir(parents=True)
        exporter = self.plugin(self.config() if config is None else config)
        files: tuple[Path, ...] = exporter.export(edit or self.make_edit(model), model, target, toy_run(folder))
        return files

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return names and bytes of the files."""
        return [(file.name, digest(file.read_bytes())) for file in self.export(folder, config=config)]

    def accepts(self, files: tuple[Path, ...], edit: Edit, model: Any, folder: Path) -> bool:
        """Tell whether a fresh exporter finds that the files do what the edit does."""
        try:
            checks = self.make().verify(files, edit, model, toy_run(folder))
        except EditError:
            return False
        return all(check.passed for check in checks)

    def test_files_lie_in_the_folder(self, tmp_path: Path) -> None:
        """Every file is there, is not empty, cannot run code when it is read, and no other file is left."""
        model = self.make_model()
        toy_run(tmp_path)
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        files = self.export(tmp_path, model)
        self.make().verify(files, self.make_edit(model), model, toy_run(tmp_path))
        assert files, "no files"
        for file in files:
            assert file.is_file(), f"{file.name} was not written"
            assert file.is_relative_to(tmp_path / "export"), f"{file} lies outside of the folder"
            assert file.stat().st_size, f"{file.name} is empty"
            assert file.suffix not in (".bin", ".pt", ".pth", ".pkl", ".ckpt"), f"{file.name} is a pickle"
        left = {path for path in tmp_path.rglob("*") if path.is_file()} - before - set(files)
        assert not left, f"written, but not named: {', '.join(sorted(path.name for path in left))}"

    def test_same_edit_same_bytes(self, tmp_path: Path) -> None:
        """Exporting twice gives the same bytes, whatever the order of the parts, so that files can be compared."""
        model = self.make_model()
        edit = self.make_edit(model)
        backwards = attrs.evolve(edit, parts=dict(reversed(list(edit.parts.items()))))
        first, second = (
            [digest(file.read_bytes()) for file in self.export(tmp_path / str(number), model, edit=one)]
            for number, one in enumerate((edit, backwards))
        )
        assert first == second, "two exports of one edit differ"

    def test_verify_accepts_its_own_files(self, tmp_path: Path) -> None:
        """Reloaded through the target's loader, everything agrees; outputs and an image are among it."""
        model = self.make_model()
        checks = self.make().verify(self.export(tmp_path, model), self.make_edit(model), model, toy_run(tmp_path))
        assert checks, "verify compared nothing"
        for check in checks:
            assert isinstance(check, Check), f"verify returned {check!r}, which is no Check"
            assert 0 <= check.limit < math.inf, f"{check.what} has the limit {check.limit}"
            assert check.passed, f"{check.what} differs by {check.error}, allowed {check.limit}"
        asked = [check.what for check in checks]
        assert len(set(asked)) == len(asked), f"two comparisons have one name: {asked}"
        if isinstance(model, Denoiser):
            assert "denoiser" in asked, f"outputs of the denoiser were not compared, only {asked}"
        if isinstance(model, TextToImage):
            assert "image" in asked, f"no image was compared, only {asked}"

    @pytest.mark.parametrize("fault", ["half strength", "lost layer", "swapped sign", "other numbers", "not finite"])
    def test_verify_notices_another_edit(self, tmp_path: Path, fault: str) -> None:
        """Files of another edit are not accepted, whether the exporter has seen that edit or not."""
        model = self.make_model()
        edit = self.make_edit(model)
        wrong = with_fault(edit, fault)
        try:
            files = self.export(tmp_path / "wrong", model, edit=wrong)
        except EditError:  # an edit that is not finite may be refused
            return
        assert not self.accepts(files, edit, model, tmp_path), f"a file with {fault} was accepted"

    def test_verify_reads_the_files(self, tmp_path: Path) -> None:
        """What was cut off on the way, or lost, is noticed."""
        model = self.make_model()
        files = self.export(tmp_path, model)
        largest = max(files, key=lambda file: file.stat().st_size)
        whole = largest.read_bytes()
        largest.write_bytes(whole[: len(whole) // 2])
        assert not self.accepts(files, self.make_edit(model), model, tmp_path), f"half of {largest.name} was accepted"
        largest.unlink()
        assert not self.accepts(files, self.make_edit(model), model, tmp_path), f"a lost {largest.name} was accepted"

    @pytest.mark.parametrize("kind", ["masked", "sparse", "whole"])
    def test_other_kinds_are_right_or_refused(self, tmp_path: Path, kind: str) -> None:
        """What a format cannot hold is refused before a file is written, never written as something else."""
        model = self.make_model()
        edit = self.make_edit(model)
        other = of_kind(edit, kind, model)
        try:
            files = self.export(tmp_path, model, edit=other)
        except EditError:
            left = [path.name for path in (tmp_path / "export").rglob("*")]
            assert not left, f"the edit was refused, but {', '.join(left)} is left"
            return
        assert self.accepts(files, other, model, tmp_path), f"a {kind} change was written as something else"
        assert not self.accepts(files, edit, model, tmp_path), f"a {kind} change counts as the plain one"

    def test_usage_is_python(self, tmp_path: Path) -> None:
        """A few lines of Python that load the export, wherever its folder lies."""
        files = self.export(tmp_path)
        usage = self.make().usage(files, "owner/name")
        try:
            tree = ast.parse(usage)
        except SyntaxError as error:
            pytest.fail(f"usage is no Python: {error}")
        assert tree.body, "usage does nothing"
        assert len(usage.splitlines()) <= MOST_LINES, f"usage has {len(usage.splitlines())} lines"
        assert str(tmp_path) not in usage, "usage names a folder of this machine"

    def test_model_and_process_are_left_alone(self, tmp_path: Path) -> None:
        """Exporting and verifying change nothing, also when the files cannot be read."""
        model = self.make_model()
        before, attributes = Snapshot.of(model.network), _attributes(model)
        with nothing_global_changes():
            files = self.export(tmp_path, model)
            self.make().verify(files, self.make_edit(model), model, toy_run(tmp_path))
            for file in files:
                file.write_bytes(b"damaged")
            self.accepts(files, self.make_edit(model), model, tmp_path)
        assert not before.differences(model.network), before.differences(model.network)
        assert _attributes(model) == attributes, "attributes are left on the network"

    def test_an_edit_of_nothing_is_refused(self, tmp_path: Path) -> None:
        """There is no file without content."""
        model = self.make_model()
        with pytest.raises(EditError):
            self.export(tmp_path, model, edit=attrs.evolve(self.make_edit(model), parts={}))

    def test_a_failing_export_leaves_nothing(self, tmp_path: Path) -> None:
        """An edit of another model is refused before anything is written."""
        model = self.make_model()
        edit = self.make_edit(model)
        name, part = list(edit)[-1]
        foreign = attrs.evolve(edit, parts={**edit.parts, name.replace(".weight", "_of_another.weight"): part})
        with pytest.raises(EditError):
            self.export(tmp_path, model, edit=foreign)
        left = [path.name for path in (tmp_path / "export").rglob("*")]
        assert not left, f"the edit was refused, but {', '.join(left)} is left"


def with_fault(edit: Edit, fault: str) -> Edit:
    """Return an edit that differs from a low-rank one by a fault that exporters have had."""
    faults: dict[str, Callable[[LowRank], LowRank]] = {
        "half strength": lambda part: attrs.evolve(part, alpha=part.alpha / 2),
        "swapped sign": lambda part: attrs.evolve(part, A=-part.A),
        "other numbers": lambda part: attrs.evolve(part, B=part.B.flip(0)),
        "not finite": lambda part: attrs.evolve(part, B=torch.full_like(part.B, float("nan"))),
    }
    parts = {name: part for name, part in edit if isinstance(part, LowRank)}
    if fault == "lost layer":
        return attrs.evolve(edit, parts=dict(list(parts.items())[1:]))
    return attrs.evolve(edit, parts={name: faults[fault](part) for name, part in parts.items()})


def of_kind(edit: Edit, kind: str, model: Any) -> Edit:
    """Return the edit with its first low-rank part masked, or as a sparse or a whole tensor that differs from it."""
    name, part = next((name, part) for name, part in edit if isinstance(part, LowRank))
    weight = model.network.get_parameter(name)
    half = torch.arange(weight.numel()).reshape(part.B.shape[0], -1) % 2 == 0
    changed = attrs.evolve(part, mask=half).delta(tuple(weight.shape))
    kinds: dict[str, Part] = {
        "masked": attrs.evolve(part, mask=half),
        "sparse": Sparse(half.flatten().nonzero().flatten(), changed.flatten()[half.flatten()], tuple(weight.shape)),
        "whole": Replace((weight.detach().cpu() + changed).to(weight.dtype)),
    }
    return attrs.evolve(edit, parts={**edit.parts, name: kinds[kind]})


def _attributes(model: Any) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.network.named_modules()}
