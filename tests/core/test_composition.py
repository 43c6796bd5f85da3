"""The unlearner ``composition``: the conformance kit, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vu_core import Edit, EditError, LowRank, RecordError
from vu_core.adapters import combined, edit_digest, load_edit, save_edit
from vu_core.composition import Composition
from vu_core.testing import ToyPainter, UnlearnerTests
from vu_core.testing.toys import toy_forget_retain, toy_run

BASE = ToyPainter().facts.base_hash


def make_edit(seed: int, base: str = BASE) -> Edit:
    g = torch.Generator().manual_seed(seed)
    weights = {name: weight for name, weight in ToyPainter().network.named_parameters() if weight.dim() > 1}
    parts = {
        name: LowRank(torch.randn(1, weight[0].numel(), generator=g), torch.randn(len(weight), 1, generator=g), 1.0)
        for name, weight in weights.items()
    }
    return Edit(parts, base=base, method=f"toy-{seed}", facts={"seed": seed})


def stored(folder: Path, *edits: Edit) -> dict[str, Any]:
    """Write the edits as ``vu compose`` does and return the settings that name them."""
    for number, edit in enumerate(edits):
        save_edit(edit, folder / f"{number}.safetensors")
    return {
        "sources": str(folder),
        "digests": tuple(edit_digest(edit) for edit in edits),
        "weights": (1.0,) * len(edits),
    }


def unlearned(folder: Path, settings: dict[str, Any]) -> Edit:
    run = toy_run(folder)
    return Composition(Composition.Config(**settings)).unlearn(ToyPainter(), toy_forget_retain(run), run)


class TestComposition(UnlearnerTests):
    plugin = Composition
    axes = ()
    other_values = {"digests": ("0" * 64, "1" * 64), "weights": (1.0, 0.5), "sources": "nowhere"}

    @pytest.fixture(autouse=True)
    def sources(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.stored = stored(tmp_path_factory.mktemp("sources"), make_edit(0), make_edit(1))

    def config(self, **changes: Any) -> Any:
        return Composition.Config(**{**self.stored, **changes})


def test_it_adds_up_what_the_folder_holds(tmp_path: Path) -> None:
    edits = [make_edit(seed) for seed in range(3)]
    settings = {**stored(tmp_path / "edits", *edits), "weights": (1.0, 0.5, -1.0), "strategy": "orthogonal"}
    network = ToyPainter().network
    wanted = combined(edits, (1.0, 0.5, -1.0), strategy="orthogonal", network=network)
    assert edit_digest(unlearned(tmp_path, settings)) == edit_digest(wanted)


def test_more_than_ten_edits_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    edits = [make_edit(seed) for seed in range(11)]
    made = unlearned(tmp_path, stored(tmp_path / "edits", *edits))
    assert [each["method"] for each in made.facts["components"]] == [f"toy-{seed}" for seed in range(11)]


def test_copies_of_the_edits_lie_in_the_run(tmp_path: Path) -> None:
    settings = stored(tmp_path / "edits", make_edit(0), make_edit(1))
    (tmp_path / "edits" / "concepts.json").write_text("{}")
    unlearned(tmp_path, settings)
    copies = {path.name: path.read_bytes() for path in (tmp_path / "run" / "sources").iterdir()}
    assert copies == {path.name: path.read_bytes() for path in (tmp_path / "edits").iterdir()}
    assert sorted(copies) == ["0.safetensors", "1.safetensors", "concepts.json"]


def test_copies_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    settings = stored(tmp_path / "edits", make_edit(0))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sources").write_text("a file")
    with pytest.raises(RecordError) as caught:
        unlearned(tmp_path, settings)
    assert caught.value.code == "VU-R055"


def test_a_run_that_was_moved_finds_its_own_copies(tmp_path: Path) -> None:
    settings = stored(tmp_path / "run" / "sources", make_edit(0), make_edit(1))
    made = unlearned(tmp_path, {**settings, "sources": str(tmp_path / "gone")})
    assert edit_digest(made) == edit_digest(unlearned(tmp_path, settings))


def refused(code: str, act: Any) -> EditError:
    with pytest.raises(EditError) as caught:
        act()
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize("place", ["", "gone"])
def test_without_its_folder_it_says_what_makes_one(tmp_path: Path, place: str) -> None:
    settings = stored(tmp_path / "edits", make_edit(0))
    error = refused("VU-E065", lambda: unlearned(tmp_path, {**settings, "sources": place}))
    assert "vu compose" in error.remedy
    assert error.where == "unlearner.sources"
    assert not (tmp_path / "run" / "sources").exists()


def test_a_folder_with_other_edits_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    settings = stored(folder, make_edit(0), make_edit(1))
    fewer = {**settings, "digests": settings["digests"][:1], "weights": (1.0,)}
    assert "but holds 0.safetensors, 1.safetensors" in refused("VU-E065", lambda: unlearned(tmp_path, fewer)).problem
    (folder / "1.safetensors").rename(folder / "2.safetensors")
    assert "0.safetensors to 1.safetensors" in refused("VU-E065", lambda: unlearned(tmp_path, settings)).problem
    (folder / "2.safetensors").unlink()
    save_edit(make_edit(7), folder / "1.safetensors")
    error = refused("VU-E065", lambda: unlearned(tmp_path, settings))
    assert "1.safetensors is no longer" in error.problem
    (folder / "1.safetensors").write_bytes(b"torn")
    refused("VU-E031", lambda: unlearned(tmp_path, settings))


@pytest.mark.parametrize("base", ["other", ""])
def test_edits_of_another_model_are_refused(tmp_path: Path, base: str) -> None:
    settings = stored(tmp_path / "edits", make_edit(0), make_edit(1, base=base))
    error = refused("VU-E053", lambda: unlearned(tmp_path, settings))
    assert "1.safetensors" in error.problem
    assert (base or "not named") in error.problem


def test_the_configuration_needs_edits_and_as_many_weights() -> None:
    with pytest.raises(ValueError, match="vu compose"):
        Composition.Config(sources="x")
    with pytest.raises(ValueError, match=r"digests \(1\) and weights \(2\)"):
        Composition.Config(sources="x", digests=("a",), weights=(1.0, 2.0))
    with pytest.raises(TypeError, match="sources"):
        Composition.Config(digests=("a",), weights=(1.0,))  # type: ignore[call-arg]


def test_an_edit_that_is_taken_out_leaves_no_trace(tmp_path: Path) -> None:
    a, b, c = (make_edit(seed) for seed in range(3))
    whole = stored(tmp_path / "abc", a, b, c)
    unlearned(tmp_path / "whole", whole)
    kept = [load_edit(tmp_path / "whole" / "run" / "sources" / f"{number}.safetensors") for number in (0, 2)]
    made = [
        unlearned(tmp_path / name, stored(tmp_path / f"{name}-edits", *edits))
        for name, edits in (("revoked", kept), ("ac", (a, c)))
    ]
    for name, edit in zip(("revoked", "ac"), made, strict=True):
        save_edit(edit, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "revoked.safetensors").read_bytes() == (tmp_path / "ac.safetensors").read_bytes()
