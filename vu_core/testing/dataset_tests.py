"""Conformance of a data plugin."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from vu_core.data import Evaluation, Examples, ForgetRetain, Selection, digest
from vu_core.errors import DataError
from vu_core.testing.fresh_process import heavy_imports
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toys import toy_run
from vu_core.testing.watching import nothing_global_changes

SEEDS = (10_000, 10_001)
FEW_ROWS = 16
"""So many images of a table are compared when a field of the settings should change something."""


class DatasetTests(PluginTests):
    """Checks of a data plugin; set ``plugin``, ``forget`` and ``other_forget`` (two things that may be forgotten).

    ``unknown`` is something that may not; ``ref`` (or `make_ref`) is the folder or file; ``resolution`` is in pixels.
    """

    forget: ClassVar[tuple[str, ...]] = ()
    other_forget: ClassVar[tuple[str, ...]] = ()
    overwrite: ClassVar[tuple[str, ...]] = ()
    unknown: ClassVar[str] = "no-such-axis:no-such-value"
    ref: ClassVar[str] = ""
    resolution: ClassVar[int] = 8

    def make_ref(self) -> str:
        """Return the folder or file that is read."""
        return self.ref

    def make(self, **changes: Any) -> Any:
        """Return the plugin under test."""
        return self.plugin(self.make_ref(), self.config(**changes))

    def select(self, data: Any = None) -> Selection:
        """Return what is forgotten in the tests."""
        selection: Selection = (data or self.make()).parse(self.forget, self.overwrite)
        return selection

    def build(self, folder: Path, data: Any = None) -> ForgetRetain:
        """Return training and validation examples."""
        data = data or self.make()
        built: ForgetRetain = data.build(self.select(data), resolution=self.resolution, run=toy_run(folder))
        return built

    def evaluation(self, folder: Path, samples: int = 2) -> Evaluation:
        """Return what `measure` would ask of the held-out part."""
        data = self.make()
        found: Evaluation = data.evaluation(
            self.select(data),
            split="held-out",
            seeds=SEEDS,
            samples=samples,
            resolution=self.resolution,
            run=toy_run(folder, stage="measure"),
        )
        return found

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the counts, and what `build` and `evaluation` give; a settings text in the digest is no effect."""
        data = self.plugin(self.make_ref(), config)
        asked = data.evaluation(
            self.select(data),
            split="held-out",
            seeds=SEEDS,
            samples=2,
            resolution=self.resolution,
            run=toy_run(folder, stage="measure"),
        )
        seen = [table for _, table in tables(self.build(folder, data))] + list(asked.examples or ())
        counts = dict(data.manifest(self.select(data)).counts)
        return [counts, asked.items, asked.samples, *(looked_at(table) for table in seen)]

    def test_planning_imports_no_torch(self) -> None:
        """Parsing and describing the data are quick."""
        calls: list[list[Any]] = [["parse", [list(self.forget), list(self.overwrite)]], ["manifest", ["<previous>"]]]
        heavy = heavy_imports(self.plugin, self.make_ref(), self.settings, calls)
        assert not heavy, f"parse or manifest import {', '.join(heavy)}"

    def test_recognises_nothing_in_an_empty_folder(self, tmp_path: Path) -> None:
        """An empty folder and a missing one are no data; asking raises nothing."""
        assert self.plugin.recognises(tmp_path) is False, "an empty folder is no data"
        assert self.plugin.recognises(tmp_path / "missing") is False, "a missing folder is no data"

    def test_concepts_are_understood(self) -> None:
        """Every flag becomes a concept with labels, and an overwrite that is another one unless the data has none."""
        concepts = self.select().concepts
        assert [concept.text for concept in concepts] == list(self.forget), "concepts are not those of the flags"
        for concept in concepts:
            assert concept.labels, f"{concept.text} has no labels"
            if not getattr(self.plugin, "has_overwrites", True):
                assert concept.overwrite is None, f"has_overwrites is False, but {concept.text} has an overwrite"
                continue
            assert concept.overwrite, f"{concept.text} has no overwrite, and none was supplied"
            assert dict(concept.overwrite_labels) != dict(concept.labels), f"{concept.text} overwrites itself"

    def test_an_unknown_concept_is_a_data_error(self) -> None:
        """The message names what was written and what may be."""
        with pytest.raises(DataError) as caught:
            self.make().parse([self.unknown], [])
        assert self.unknown in caught.value.problem, "the message does not name what was written"
        assert caught.value.remedy, "the message does not say what to do"

    def test_metrics_are_named(self) -> None:
        """The data says how it is measured when nobody else does."""
        assert self.plugin.metrics, "no default metrics"
        assert all(isinstance(name, str) for name in self.plugin.metrics), "metrics are names"

    def test_manifest_tells_what_a_run_sees(self, tmp_path: Path) -> None:
        """Counts are those of `build`; the digest is stable, and another one for another concept."""
        data = self.make()
        manifest, built = data.manifest(self.select(data)), self.build(tmp_path)
        counts = {
            "train/forget": len(built.forget),
            "train/retain": len(built.retain),
            "validation/forget": len(built.validation_forget),
            "validation/retain": len(built.validation_retain),
        }
        told = {key: manifest.counts.get(key, 0) for key in counts}
        assert told == counts, f"the manifest counts {told}, build gives {counts}"
        assert manifest.split, "the manifest does not say how the data were separated"
        assert manifest.digest == self.make().manifest(self.select()).digest, "asked twice, the digest differs"
        if self.other_forget:
            other = data.manifest(data.parse(self.other_forget, self.overwrite))
            assert other.digest != manifest.digest, "another concept has the same digest"

    def test_sides_are_what_they_say(self, tmp_path: Path) -> None:
        """Forget rows show a concept and have an overwrite caption, if the data has some; retain rows neither."""
        data = self.make()
        concepts, built = self.select(data).concepts, self.build(tmp_path, data)
        assert len(built.forget), "nothing to forget"
        for side, table in tables(built):
            assert table.side == side, f"a table of the side {side} says {table.side}"
            for row in range(len(table)):
                labels = {axis: column[row] for axis, column in table.labels.items()}
                shown = any(concept.labels.items() <= labels.items() for concept in concepts)
                assert shown == (side == "forget"), f"row {row} of {side} shows {labels}"
        assert built.retain.overwrites is None, "retain examples have overwrite captions"
        if not getattr(self.plugin, "has_overwrites", True):
            assert built.forget.overwrites is None, "has_overwrites is False, but there are overwrite captions"
            return
        assert built.forget.overwrites is not None, "forget examples have no overwrite captions"
        pairs = zip(built.forget.captions, built.forget.overwrites, strict=True)
        assert all(over and over != caption for caption, over in pairs), "an overwrite caption is empty or the caption"

    def test_pixels_are_images(self, tmp_path: Path) -> None:
        """float32, three channels, the resolution asked for, in [-1, 1], the same for the same generator."""
        built = tables(self.build(tmp_path))
        if not getattr(self.plugin, "has_images", True):
            assert all(table.load is None for _, table in built), "has_images is False, but there are images"
            pytest.skip("the data has no images")
        for _, table in built:
            for row in {0, len(table) - 1} if len(table) else ():
                assert table.load is not None, "there are no images"
                first, second = (table.load(row, torch.Generator().manual_seed(3)) for _ in range(2))
                assert first.dtype == torch.float32, f"pixels are {first.dtype}"
                assert first.shape == (3, self.resolution, self.resolution), f"an image is {tuple(first.shape)}"
                assert -1 <= float(first.min()) <= float(first.max()) <= 1, "pixels leave [-1, 1]"
                assert torch.equal(first, second), "the same generator gave two images"

    def test_images_stand_still_while_measured(self, tmp_path: Path) -> None:
        """A metric looks at what was trained on as it is: not cropped at random, not mirrored."""
        data = self.make()
        run = toy_run(tmp_path, stage="measure")
        for _, table in tables(data.build(self.select(data), resolution=self.resolution, run=run)):
            assert not table.reload, f"the {table.side} images change at every step while a run is measured"
            if (load := table.load) is None:
                continue
            for row in range(min(len(table), FEW_ROWS)):
                first, second = (load(row, torch.Generator().manual_seed(seed)) for seed in (1, 2))
                assert torch.equal(first, second), f"the generator changes a {table.side} image of a measured run"

    def test_every_class_can_be_forgotten(self) -> None:
        """Where the data list their classes, what is listed can follow ``--forget``."""
        data = self.make()
        try:
            listed = dict(data.classes()) if hasattr(data, "classes") else {}
        except DataError:
            listed = {}
        if not listed:
            pytest.skip("the data list no classes")
        for name, text in listed.items():
            if text in self.overwrite:
                continue
            try:
                concepts = data.parse([text], self.overwrite).concepts
            except DataError as error:
                raise AssertionError(f"the class {name!r} is listed as {text!r}: {error.problem}") from error
            assert [concept.text for concept in concepts] == [text], f"{text!r} is understood as something else"

    def test_held_out_is_not_touched_by_build(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing that `build` returns is among what `evaluation` shows, and `build` never asks for it."""
        shown = contents(self.evaluation(tmp_path / "held-out"))

        def forbidden(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("build asks for the held-out part")

        monkeypatch.setattr(self.plugin, "evaluation", forbidden)
        built = self.build(tmp_path / "train")
        seen = {key for _, table in tables(built) for key in contents_of(table)}
        assert not seen & shown, f"{len(seen & shown)} held-out images are in the training or validation data"

    def test_train_and_validation_are_disjoint(self, tmp_path: Path) -> None:
        """What methods may select on is not what they train on."""
        built = self.build(tmp_path)
        for train, validation in ((built.forget, built.validation_forget), (built.retain, built.validation_retain)):
            both = contents_of(train) & contents_of(validation)
            assert not both, f"{len(both)} images of {train.side} are in both"

    def test_building_twice_gives_the_same(self, tmp_path: Path) -> None:
        """Training data depend on the configuration alone."""
        first, second = self.build(tmp_path / "1"), self.build(tmp_path / "2")
        for (_, a), (_, b) in zip(tables(first), tables(second), strict=True):
            assert (a.captions, a.overwrites) == (b.captions, b.overwrites), "built twice, captions differ"
            assert contents_of(a) == contents_of(b), "built twice, images differ"

    def test_evaluation_asks_with_the_seeds_of_the_split(self, tmp_path: Path) -> None:
        """Items are in a fixed order, marked as forget or retain, and use no other seeds."""
        found = self.evaluation(tmp_path)
        assert found.split == "held-out", f"asked for held-out, got {found.split!r}"
        assert found.items == self.evaluation(tmp_path).items, "asked twice, the items differ"
        assert len(found.concepts) == len(self.forget), "the evaluation does not pass on the concepts"
        if found.items:
            used = {item.seed for item in found.items}
            assert used <= {*SEEDS, 0}, f"seeds {sorted(used - set(SEEDS))} are not those of the split"
            assert {item.forget for item in found.items} == {True, False}, "one of the sides is never asked for"
        for item in found.items:
            shown = any(concept.labels.items() <= item.labels.items() for concept in found.concepts)
            assert item.forget == shown, f"{item.prompt!r} is marked forget={item.forget}"
            wrong = {a: v for a, v in item.labels.items() if v not in found.axes.get(a, (v,))}
            assert not wrong, f"{item.prompt!r} has labels that no axis knows: {wrong}"

    def test_samples_are_counted(self, tmp_path: Path) -> None:
        """As many images for the report as were asked for, forget first; none when none."""
        samples = self.evaluation(tmp_path, samples=2).samples
        assert len(samples) == 2, f"asked for 2 samples, got {len(samples)}"
        assert samples[0].forget, "the first sample is not of the forget side"
        assert not self.evaluation(tmp_path, samples=0).samples, "asked for no samples, got some"

    def test_judge_names_every_axis(self, tmp_path: Path) -> None:
        """The judge has a fingerprint and names each image on each axis."""
        found = self.evaluation(tmp_path)
        if found.judge is None:
            pytest.skip("the data has no judge")
        assert found.judge.fingerprint, "the judge has no fingerprint"
        images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8).numpy()
        named = found.judge.classify(images)
        assert set(named) == set(found.axes), f"the judge names {sorted(named)}, the axes are {sorted(found.axes)}"
        for axis, column in named.items():
            assert len(column) == 3, f"{len(column)} names for 3 images on {axis}"
            assert set(column) <= set(found.axes[axis]), f"unknown names on {axis}: {set(column)}"

    def test_nothing_global_changes(self, tmp_path: Path) -> None:
        """Generators and flags of the process are left alone."""
        with nothing_global_changes():
            built = self.build(tmp_path)
            contents_of(built.forget)

    def test_no_print(self) -> None:
        """A plugin tells the run what it does; it never writes to the terminal."""
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.plugin)))
        printed = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
        assert not printed, "the class prints"


def tables(data: ForgetRetain) -> list[tuple[str, Examples]]:
    """Return the four tables with the side that each must have."""
    return [
        ("forget", data.forget),
        ("retain", data.retain),
        ("forget", data.validation_forget),
        ("retain", data.validation_retain),
    ]


def contents_of(table: Examples) -> set[str]:
    """Return a hash per image of the table."""
    return set(hashes(table, range(len(table))))


def looked_at(table: Examples) -> Any:
    """Return captions, overwrites, labels and the pixels of a few rows, evenly spread."""
    few = min(len(table), FEW_ROWS)
    rows = [number * len(table) // few for number in range(few)]
    return table.captions, table.overwrites, dict(table.labels), hashes(table, rows)


def hashes(table: Examples, rows: Iterable[int]) -> list[str]:
    """Return a hash per image of these rows: of its shape and its numbers."""
    if table.load is None:
        return []
    load = table.load
    images = (load(row, torch.Generator().manual_seed(0)).contiguous() for row in rows)
    return [digest(str(tuple(image.shape)), image.numpy().tobytes()) for image in images]


def contents(evaluation: Evaluation) -> set[str]:
    """Return a hash per unseen image of an evaluation."""
    return {key for table in evaluation.examples or () for key in contents_of(table)}
