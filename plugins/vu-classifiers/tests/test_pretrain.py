"""Training a face transformer from scratch: the same when interrupted, and a folder that the plugin loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from vu_classifiers import pretrain
from vu_classifiers.architecture import Architecture
from vu_classifiers.face_transformer import FaceTransformer, FaceTransformerConfig
from vu_classifiers.pretraining import Faces, Pretraining, Schedule, in_memory, model_of, network_for
from vu_core import Examples, ModelError
from vu_core.testing import toy_run

TINY = Architecture(classes=3, size=8, width=8, depth=1, heads=1, head_width=8, hidden=16)
SHORT = Schedule(epochs=3, warmup=1, batch=4, lr=1e-2)


def faces(**changes: Any) -> Faces:
    """Ten images of noise, brighter in one channel by class: three steps per epoch."""
    labels = torch.arange(10) % 3
    images = torch.randint(0, 100, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[torch.arange(10), labels] += 150
    return attrs.evolve(Faces(("a", "b", "c"), "digest", images, labels), **changes)


def training(folder: Path, schedule: Schedule = SHORT, **changes: Any) -> Pretraining:
    settings = {"architecture": TINY, "faces": faces(), "say": lambda line: None, **changes}
    return Pretraining(schedule=schedule, folder=folder, **settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_published_schedule() -> None:
    s = Schedule()
    assert (s.epochs, s.warmup, s.batch, s.lr) == (1200, 10, 480, 3e-4)
    rates = [s.rate(step, 5) for step in range(1200 * 5)]
    assert rates[:50] == sorted(rates[:50])
    assert rates[50] == pytest.approx(3e-4)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-3)


def test_it_learns_and_is_what_the_plugin_loads(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "faces"
    training(folder, attrs.evolve(SHORT, epochs=30, lr=3e-2), say=said.append).run()
    assert len(said) == 30
    assert said[0].startswith("epoch 1/30: loss ")
    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.json",
        "face_transformer.json",
        "model.safetensors",
    ]
    model = FaceTransformer(str(folder), FaceTransformerConfig()).load(device="cpu", precision="fp32")
    assert model.classes == ("a", "b", "c")
    data = faces()
    images, labels = data.batch(torch.arange(10), torch.device("cpu"))
    assert torch.equal(model.logits(images).argmax(1), labels)


def interrupted(folder: Path, after: int, **changes: Any) -> None:
    """Train until a number of steps is done, then stop as when the process is killed after a checkpoint."""

    class Stop(Exception):
        pass

    begun = training(folder, save_every=0.0, **changes)
    saved = begun.save

    def save() -> None:
        saved()
        if begun.step == after:
            raise Stop

    begun.save = save  # type: ignore[method-assign]
    with pytest.raises(Stop):
        begun.run()


@pytest.mark.parametrize("after", [1, 3, 8, 9])
def test_an_interrupted_training_ends_in_the_same_weights(after: int, tmp_path: Path) -> None:
    training(tmp_path / "whole").run()
    interrupted(tmp_path / "parts", after)
    said: list[str] = []
    training(tmp_path / "parts", say=said.append).run()
    assert said[0] == f"resumed at step {after}"
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": attrs.evolve(SHORT, seed=1)},
        {"schedule": attrs.evolve(SHORT, batch=5)},
        {"schedule": attrs.evolve(SHORT, lr=2e-2)},
        {"schedule": attrs.evolve(SHORT, min_lr=1e-3)},
        {"schedule": attrs.evolve(SHORT, warmup=0)},
        {"schedule": attrs.evolve(SHORT, weight_decay=0.5)},
        {"schedule": attrs.evolve(SHORT, epochs=4)},
        {"architecture": attrs.evolve(TINY, margin=0.1)},
        {"architecture": attrs.evolve(TINY, scale=30.0)},
        {"architecture": attrs.evolve(TINY, dropout=0.5)},
        {"architecture": attrs.evolve(TINY, head="softmax", margin=0.0)},
        {"architecture": attrs.evolve(TINY, head="arcface", margin=0.35)},
    ],
    ids=lambda changes: str(next(iter(changes.values())))[:40],
)
def test_every_setting_changes_the_weights(changes: dict[str, Any], tmp_path: Path) -> None:
    training(tmp_path / "usual").run()
    training(tmp_path / "other", **changes).run()
    assert not equal(weights(tmp_path / "usual"), weights(tmp_path / "other"))


def test_the_process_keeps_its_random_numbers(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    training(tmp_path).run()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": attrs.evolve(SHORT, lr=2e-2)}, "schedule differ"),
        ({"architecture": attrs.evolve(TINY, hidden=24)}, "architecture differ"),
        ({"faces": faces(digest="other")}, "data differ"),
        ({"faces": faces(classes=("a", "b", "x"))}, "classes differ"),
    ],
)
def test_the_checkpoint_of_another_training(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    interrupted(tmp_path, 2)
    with pytest.raises(ModelError, match=words) as caught:
        training(tmp_path, **changes)
    assert caught.value.code == "VU-M117"


def test_folders_that_cannot_be_continued(tmp_path: Path) -> None:
    training(tmp_path / "done").run()
    interrupted(tmp_path / "damaged", 2)
    (tmp_path / "damaged" / "checkpoint.safetensors").write_bytes(b"half")
    interrupted(tmp_path / "strange", 2)
    (tmp_path / "strange" / "checkpoint.json").write_text("7")
    for folder, words in (
        ("done", "holds a finished network"),
        ("damaged", "damaged checkpoint"),
        ("strange", "damaged checkpoint"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            training(tmp_path / folder)
        assert caught.value.code == "VU-M117"


def test_settings_without_a_checkpoint_are_replaced(tmp_path: Path) -> None:
    interrupted(tmp_path, 2, schedule=attrs.evolve(SHORT, lr=2e-2))
    (tmp_path / "checkpoint.safetensors").unlink()
    interrupted(tmp_path, 2)
    assert training(tmp_path).step == 2


def test_images_are_kept_as_bytes_where_they_all_are(tmp_path: Path) -> None:
    model, run = model_of(network_for(TINY, 0), TINY, ("a", "b", "c")), toy_run(tmp_path)

    def table(shift: float) -> Examples:
        return Examples("forget", ("",) * 2, labels={"class": ("a", "c")}, load=lambda row, _: _grey(row) + shift)

    read = in_memory(model, (table(0.0), table(0.0)), "digest", run)
    assert (read.images.dtype, read.labels.tolist()) == (torch.uint8, [0, 2, 0, 2])
    mixed = in_memory(model, (table(0.0), table(1e-6)), "digest", run)
    assert mixed.images.dtype == torch.float32
    assert torch.allclose(mixed.images[:2], mixed.images[2:], atol=1e-5)
    for tables in ((), (Examples("forget", ("",), labels={"class": ("a",)}),)):
        with pytest.raises(ModelError, match="no images") as caught:
            in_memory(model, tables, "digest", run)
        assert caught.value.code == "VU-M118"


def _grey(row: int) -> torch.Tensor:
    return torch.full((3, 8, 8), row / 127.5 - 1)


# ---- Command line ----------------------------------------------------------------------------------------------------

SMALL = ["--size", "16", "--depth", "1", "--dim", "16", "--epochs", "1", "--batch", "100", "--threads", "1"]


def ask(*words: str) -> Any:
    return CliRunner().invoke(pretrain.main, list(words))


def test_on_the_drawings_of_canvas(tmp_path: Path) -> None:
    out, drawings = tmp_path / "faces", ["--set", "forget_per_pair=1", "--set", "retain_per_pair=1"]
    answer = ask("--data", "canvas", "--out", str(out), *drawings, *SMALL)
    assert answer.exit_code == 0, answer.output
    assert f"--model face-transformer={out}" in answer.output
    model = FaceTransformer(str(out), FaceTransformerConfig(axis="identity")).load(device="cpu", precision="fp32")
    assert len(model.classes) == 100
    assert "star-neon" in model.classes
    told = json.loads((out / "face_transformer.json").read_text())
    assert (told["hidden"], told["heads"], told["head_width"], told["head"]) == (64, 1, 16, "cosface")
    again = ask("--data", "canvas", "--out", str(out), *drawings, *SMALL)
    assert again.exit_code == 2
    assert "finished network" in again.output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data", "canvsa"], "VU-M118", "No data are called 'canvsa'. Did you mean 'canvas'?"),
        (["--data", "canvas", "--set", "forget_per_pair"], "VU-M118", "is no KEY=VALUE"),
        (["--data", "canvas", "--set", "forget_per_pair=0"], "VU-M118", "refuse a setting"),
        (["--data", "canvas", "--set", "nonsense=1"], "VU-M118", "refuse a setting"),
        (["--data", "digits", "--set", "validation=half"], "VU-M118", "'half' is none of the kind float"),
        (["--data", "digits", "--set", "random_seed=true"], "VU-M118", "True is none of the kind int"),
        (["--data", "imagefolder=there", "--set", "classes=[1]"], "VU-M118", "1 is none of the kind str"),
        (["--data", "canvas=there"], "VU-D091", "takes no place"),
        (["--data", "metafile=there"], "VU-M118", "have no list of classes"),
        (["--data", "canvas", "--size", "4"], "VU-M118", "smaller than patch 8"),
        (["--data", "canvas", "--epochs", "5", "--warmup", "5"], "VU-M118", "5 of 5 epochs are warm-up"),
        (["--data", "canvas", "--device", "abacus"], "VU-M078", "no device 'abacus'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(words: list[str], code: str, said: str, tmp_path: Path) -> None:
    answer = ask("--out", str(tmp_path / "out"), *words)
    assert answer.exit_code == 2
    assert said in answer.output
    assert code in answer.output
    assert "Traceback" not in answer.output
    assert not list((tmp_path / "out").glob("*"))


def test_settings_of_the_data_have_their_types(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "1.png")
    data = pretrain.dataset(f"imagefolder={tmp_path}", ('classes=["c", "a"]', "resize=16", "held_out=0"))
    assert data.config.classes == ("c", "a")
    assert list(data.classes()) == ["c", "a"]
    assert data.config.resize == 16


def test_options_describe_the_architecture() -> None:
    options = {"dim": 128, "size": 112, "depth": 2, "head": "arcface", "overlap": True}
    wanted = Architecture(
        classes=7, width=128, depth=2, heads=2, head_width=64, hidden=512, head="arcface", patch=12, pad=4
    )
    assert pretrain.architecture_of(7, options) == wanted
    published = {"dim": 512, "size": 112, "depth": 6, "head": "cosface", "overlap": False}
    assert pretrain.architecture_of(100, published) == Architecture()
