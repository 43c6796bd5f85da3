"""Exports: written, read again, judged, and in place only when everything is right."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import torch

from vu_core import ConfigError, EditError, PlanError, PluginError, RecordError, UnlearnError, VuError
from vu_core.adapters import edit_digest, load_edit, save_edit
from vu_core.config import Override
from vu_core.exporting import Export, export, told
from vu_core.pipeline import execute
from vu_core.plugins import discover
from vu_core.stages.load import with_settings
from vu_core.stages.read import read

TOYS = Path(__file__).parent / "toys"
SETTINGS = {
    "model.name": "toy",
    "data.name": "toy",
    "data.forget": ("colour:red",),
    "unlearner.method": "toy-distillation",
    "unlearner.training.steps": 3,
    "unlearner.parameters.alpha": 4.0,
    "run.seed": 3,
    "run.threads": 1,
    "measure.seeds": 1,
    "measure.samples": 0,
}


@pytest.fixture(scope="module")
def host():
    """The toys of the conformance kit with the toy exporters."""
    sys.path.insert(0, str(TOYS))
    try:
        import vu_toy_export.plugin as exporters

        from vu_core.testing import toy_plugin
    finally:
        sys.path.remove(str(TOYS))
    found = discover(extra=[("vu-toys", "1.0", toy_plugin), ("vu-toy-export", "1.0", exporters)], installed=False)
    return SimpleNamespace(plugins=found)


@pytest.fixture
def right(host):
    """The class behind ``toy-right``, which remembers what it was handed."""
    target = host.plugins.registry.get("exporter", "toy-right").load()
    target.handed.clear()
    return target


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(TOYS))


def make_run(host, out, **changes):
    values = {**SETTINGS, "run.out": str(out), **changes}
    return execute(read(None, [Override(key, value, "--set") for key, value in values.items()]), plugins=host.plugins)


@pytest.fixture(scope="module")
def run(host, tmp_path_factory):
    """One finished run for all tests; none of them changes it."""
    root = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VU_CACHE", str(root / "cache"))
        patch.syspath_prepend(str(TOYS))
        make_run(host, root / "run")
    return root / "run"


@pytest.fixture
def room(tmp_path):
    """An empty folder to export into."""
    folder = tmp_path / "room"
    folder.mkdir()
    return folder


@pytest.fixture
def to(host, run, room):
    """Export the run into a new folder; events are kept in ``events``."""
    events = []

    def make(name="toy-right", out=None, **changes):
        return export(run, name, out or room / "out", host, events.append, **changes)

    make.events = events
    return make


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# What is made


def test_an_export_is_written_read_again_and_described(to, right, run, room):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    made = to()
    folder = room / "out"
    assert everything(room) == ["out", "out/README.md", "out/weights", "out/weights/edit-0.safetensors"]
    assert made.files == {name: (folder / name).stat().st_size for name in ("weights/edit-0.safetensors", "README.md")}
    assert list(made.files)[-1] == "README.md"
    assert (made.folder, made.format, made.title, made.facts) == (folder, "toy-right", "toy without colour:red", {})
    assert [(check.what, check.error, check.limit) for check in made.checks] == [
        ("denoiser", 0.0, 1e-4),
        ("image", 0.0, 0.5),
    ]
    assert made.changes == ()
    trained = load_edit(run / "edit.safetensors")
    assert edit_digest(load_edit(folder / "weights/edit-0.safetensors")) == edit_digest(trained)
    assert [step for step, _ in right.handed] == ["export", "verify"]
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    stages = [(e.stage, e.values["state"]) for e in to.events if e.type == "stage"]
    assert stages == [(name, state) for name in ("load", "export", "verify") for state in ("begin", "end")]


def test_an_alias_is_recorded_under_the_canonical_name(to):
    assert to("right").format == "toy-right"


def test_settings_reach_the_exporter(to):
    assert list(to(settings={"stem": "mine", "parts": 2}).files) == [
        "weights/mine-0.safetensors",
        "weights/mine-1.safetensors",
        "README.md",
    ]


def test_equal_exports_have_equal_bytes(to, room):
    first, second = (to(out=room / name, scale=0.5, refit_rank=1).folder for name in ("one", "two"))
    assert everything(first) == everything(second)
    for name in ("README.md", "weights/edit-0.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


# Scaled, densified, refitted


def test_the_edit_is_scaled_then_densified_then_refitted(to, right, run, monkeypatch):
    import vu_core.adapters as adapters

    called = []

    def spy(name, function):
        def replaced(*arguments):
            called.append((name, arguments))
            return function(*arguments)

        monkeypatch.setattr(adapters, name, replaced)

    spy("scaled", adapters.scaled)
    spy("densified", lambda edit, *_: SimpleNamespace(parts={}, same=edit) and adapters.scaled(edit, 2.0))
    spy("refit", adapters.refit)
    made = to(scale=0.5, densify=0.1, refit_rank=1)
    names = [name for name, _ in called]
    assert names == ["scaled", "densified", "scaled", "refit"]  # the second one stands for the noise
    (first, factor, _), (second, strength, generator, network), _, (third, rank) = (each for _, each in called)
    trained = load_edit(run / "edit.safetensors")
    assert (edit_digest(first), factor) == (edit_digest(trained), 0.5)
    assert next(iter(second.parts.values())).alpha == 0.5 * next(iter(trained.parts.values())).alpha
    assert (strength, rank) == (0.1, 1)
    assert isinstance(generator, torch.Generator)
    assert {name for name, _ in network.named_parameters()} >= set(trained.parts)
    assert next(iter(third.parts.values())).alpha == next(iter(trained.parts.values())).alpha
    assert {part.rank for _, edit in right.handed for _, part in edit} == {1}
    assert list(made.facts) == ["scale", "densify", "refit_rank", "refit_error", "refit_denoiser_error"]


def test_a_scaled_export_is_compared_with_the_scaled_edit(to, right, run):
    made = to(scale=0.5)
    trained = load_edit(run / "edit.safetensors")
    for _, edit in right.handed:
        assert all(part.alpha == 0.5 * trained.parts[name].alpha for name, part in edit)
    assert made.facts == {"scale": 0.5}
    assert made.changes == ("It was scaled: its strength is 0.5 of the trained one.",)


def test_the_noise_comes_from_the_run(host, room):
    """Equal runs give equal noise; inside the mask nothing changes."""
    folder = make_run(host, room / "run").folder
    edit = load_edit(folder / "edit.safetensors")
    name, part = next(iter(edit))
    mask = torch.zeros(part.B.shape[0], part.A.shape[1], dtype=torch.bool)
    mask[0] = True
    save_edit(attrs.evolve(edit, parts={name: attrs.evolve(part, mask=mask)}), folder / "edit.safetensors")
    for number in range(2):
        made = export(folder, "toy-right", room / str(number), host, lambda _: None, densify=0.5)
        assert made.facts == {"densify": 0.5}
    one, two = (load_edit(room / str(n) / "weights/edit-0.safetensors").parts[name].delta() for n in range(2))
    assert torch.equal(one, two)
    assert bool((one[1:] != 0).all())
    assert torch.allclose(one[0], part.delta()[0])
    expected = run_generator(SETTINGS["run.seed"])
    noise = torch.randn(one.shape, generator=expected, dtype=torch.float64)[1:]
    assert torch.allclose(one[1:].double() / one[1:].double().norm(), noise / noise.norm(), atol=1e-6)


def run_generator(seed):
    from vu_core import Run

    return Run(seed=seed, device="cpu", precision="fp32", folder=Path(), cache=Path()).generator("densify")


def test_densifying_an_edit_that_is_dense_already_is_refused(to, room):
    with pytest.raises(ConfigError, match="nothing to do") as caught:
        to(densify=0.5)
    assert caught.value.code == "VU-C126"
    assert everything(room) == []


def test_the_refit_is_told_with_its_errors(to, right, run, room):
    made = to(refit_rank=1)
    trained = load_edit(run / "edit.safetensors")
    missed = whole = 0.0
    for name, part in right.handed[1][1]:
        missed += float((part.delta().double() - trained.parts[name].delta().double()).square().sum())
        whole += float(trained.parts[name].delta().double().square().sum())
    assert made.facts["refit_rank"] == 1
    assert made.facts["refit_error"] == pytest.approx((missed / whole) ** 0.5, rel=1e-5)
    assert 0 < made.facts["refit_denoiser_error"] < 1
    card = (room / "out/README.md").read_text()
    assert made.changes[0] in card
    assert f"{100 * made.facts['refit_error']:.2g} % (relative Frobenius error)" in card
    assert f"by {100 * made.facts['refit_denoiser_error']:.2g} % of what the edit changes there" in card
    assert "They are scores of the edit as it was trained, not of these files." in card


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_refit_to_the_rank_of_the_edit_is_exact(to, scale):
    made = to(refit_rank=2, scale=scale)
    assert made.facts["refit_error"] < 1e-6
    assert made.facts["refit_denoiser_error"] < 1e-4


def test_a_refit_that_loses_everything_is_off_by_the_whole_effect(to, monkeypatch):
    def lost(edit, rank):
        return attrs.evolve(edit, parts={name: attrs.evolve(part, A=0 * part.A) for name, part in edit}), 1.0

    monkeypatch.setattr("vu_core.adapters.refit", lost)
    assert to(refit_rank=1).facts["refit_denoiser_error"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"scale": 0.0}, "--scale"),
        ({"scale": float("nan")}, "--scale"),
        ({"scale": float("inf")}, "--scale"),
        ({"densify": 0.0}, "--densify"),
        ({"densify": -1.0}, "--densify"),
        ({"densify": float("nan")}, "--densify"),
        ({"refit_rank": 0}, "--refit-rank"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_at_once(to, changes, flag):
    with pytest.raises(ConfigError, match=flag) as caught:
        to(**changes)
    assert (caught.value.code, caught.value.where) == ("VU-C126", flag)
    assert to.events == []


# What fails leaves nothing


@pytest.mark.parametrize(
    ("name", "kind", "code", "said"),
    [
        ("half", EditError, "VU-E055", "denoiser: error 0.031, limit 0.0001 (too large)\nimage: error 0.25, limit 0.5"),
        (
            "notanumber",
            EditError,
            "VU-E055",
            "denoiser: error 0, limit 0.0001\nimage: error nan, limit 0.5 (too large)",
        ),
        ("nolimit", EditError, "VU-E055", "denoiser: error inf, limit inf (too large)"),
        ("raises", PluginError, "VU-P009", "half of it is written"),
        ("raiseslater", PluginError, "VU-P009", "cannot compare"),
        ("diskfull", RecordError, "VU-R125", "No space left on device"),
        ("refuses", EditError, "VU-E070", "masked weight by weight"),
        ("link", PluginError, "VU-P005", "link.safetensors"),
        ("unnamed", PluginError, "VU-P005", "'left.over', but does not name it"),
        ("litter", PluginError, "VU-P005", "'weights/cache', but does not name it"),
        ("nothing", PluginError, "VU-P005", "wrote no file"),
        ("silent", PluginError, "VU-P005", "compared nothing"),
        ("number", PluginError, "VU-P005", "compared nothing"),
        ("nopython", PluginError, "VU-P005", "no Python"),
        ("dirty", UnlearnError, "VU-U050", "toy-dirty"),
    ],
)
def test_of_an_export_that_fails_nothing_is_left(to, room, name, kind, code, said):
    out = room / "a/b/out"
    with pytest.raises(kind) as caught:
        to(f"toy-{name}", out=out)
    assert caught.value.code == code
    assert said in caught.value.problem
    assert everything(room) == []


def test_a_failed_check_names_every_number_and_the_exporter(to, room):
    (room / "out").mkdir()
    with pytest.raises(EditError) as caught:
        to("toy-half")
    assert "toy-half" in caught.value.problem.splitlines()[0]
    assert "vu-toy-export 1.0" in caught.value.where
    assert everything(room) == ["out"]  # the empty folder of the user stays


def test_a_refusal_reaches_the_user_with_what_to_do(to):
    with pytest.raises(EditError) as caught:
        to("toy-refuses")
    assert "--refit-rank 8" in caught.value.remedy


def test_a_file_outside_is_named_and_the_rest_taken_away(to, room):
    with pytest.raises(PluginError, match=re.escape("outside.safetensors")) as caught:
        to("toy-outside")
    assert caught.value.code == "VU-P005"
    assert everything(room) == ["outside.safetensors"]  # nothing outside the folder is ever deleted


def test_ctrl_c_leaves_nothing(to, room):
    with pytest.raises(KeyboardInterrupt):
        to("toy-stopped")
    assert everything(room) == []


def test_a_bug_while_the_card_is_written_leaves_nothing(to, room, monkeypatch):
    def fails(*_):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("vu_core.exporting.write_text", fails)
    with pytest.raises(RecordError, match="Permission denied") as caught:
        to()
    assert caught.value.code == "VU-R125"
    assert everything(room) == []


# The folder


@pytest.mark.parametrize("kind", ["full", "hidden", "file", "dangling", "here"])
def test_a_folder_that_is_taken_is_refused_before_anything_is_loaded(to, room, monkeypatch, kind):
    out = room / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "dangling":
        out.symlink_to(room / "absent")
    else:
        out.mkdir()
    if kind in ("full", "hidden"):
        (out / ("mine" if kind == "full" else ".mine")).write_text("mine")
    if kind == "here":
        monkeypatch.chdir(out)
    there = everything(room)
    with pytest.raises(RecordError) as caught:
        to(out=Path() if kind == "here" else out)
    assert caught.value.code == "VU-R124"
    assert everything(room) == there
    assert to.events == []


def test_an_empty_folder_is_used_also_behind_a_link(to, room):
    real = room / "real"
    real.mkdir(mode=0o750)
    (room / "out").symlink_to(real)
    to()
    assert (room / "out").is_symlink()
    assert everything(real) == ["README.md", "weights", "weights/edit-0.safetensors"]
    assert real.stat().st_mode & 0o777 == 0o750


def test_missing_parents_are_made(to, room):
    to(out=room / "a/b/out")
    assert (room / "a/b/out/README.md").is_file()
    assert [path.name for path in (room / "a/b").iterdir()] == ["out"]


def test_a_folder_that_fills_up_meanwhile_is_not_touched(to, room, monkeypatch):
    import vu_core.exporting as exporting

    def late(export_, record, bench):
        (room / "out").mkdir()
        (room / "out/mine").write_text("mine")
        return "card"

    monkeypatch.setattr(exporting, "export_card", late)
    with pytest.raises(RecordError) as caught:
        to()
    assert caught.value.code == "VU-R124"
    assert everything(room) == ["out", "out/mine"]


def test_a_parent_that_is_a_file_is_told(to, room):
    (room / "file").write_text("")
    with pytest.raises(RecordError, match="below 'file', which is no folder") as caught:
        to(out=room / "file/a/out")
    assert caught.value.code == "VU-R124"
    assert everything(room) == ["file"]
    assert to.events == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_without_permission_is_told(to, room):
    (room / "locked").mkdir(mode=0o500)
    with pytest.raises(RecordError) as caught:
        to(out=room / "locked/out")
    assert caught.value.code == "VU-R125"
    assert to.events == []


# Who cannot export


def test_unknown_settings_and_wrong_types_are_errors(host, to, room):
    for settings, said in (
        ({"stm": "x"}, "stm"),
        ({"parts": "two"}, "parts"),
        ({"parts": 0}, ">= 1"),
        ({"stem": 3}, "stem"),
        ({"a.b": 3}, "a.b"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)) as caught:
            to(settings=settings)
        assert caught.value.code == "VU-C126"
        assert "vu describe toy-right" in caught.value.remedy
    assert everything(room) == []
    right = host.plugins.registry.get("exporter", "right")
    assert with_settings(right, {"parts": 3}, code="VU-C126", what="exporter").config.parts == 3


def test_settings_of_a_command_line():
    assert told(["stem=a", "parts=2", "stem=b=c"]) == {"stem": "b=c", "parts": 2}
    with pytest.raises(ConfigError, match="no setting"):
        told(["stem"])


def test_an_unknown_format_has_near_misses(to):
    with pytest.raises(PluginError, match="toy-right"):
        to("toy-rigth")


def test_a_model_without_what_the_format_needs_is_refused(to, room):
    with pytest.raises(PlanError, match="needs 'classify', which the model 'toy' lacks") as caught:
        to("toy-picky")
    assert caught.value.code == "VU-L002"
    assert everything(room) == []


def test_one_of_two_abilities_is_enough_for_a_format(to):
    assert to("toy-either").format == "toy-either"


def test_an_edit_of_other_weights_is_refused(host, room):
    folder = make_run(host, room / "run").folder
    save_edit(attrs.evolve(load_edit(folder / "edit.safetensors"), base="0" * 64), folder / "edit.safetensors")
    with pytest.raises(EditError) as caught:
        export(folder, "toy-right", room / "out", host, lambda _: None)
    assert caught.value.code == "VU-E053"
    assert not (room / "out").exists()


def test_a_folder_without_run_is_told(host, room):
    with pytest.raises(VuError) as caught:
        export(room / "absent", "toy-right", room / "out", host, lambda _: None)
    assert caught.value.code == "VU-R052"
    assert everything(room) == []


# The card


@pytest.fixture
def card(to, room):
    to()
    return (room / "out/README.md").read_text(encoding="utf-8")


def test_the_card_says_what_was_done_and_how_to_load_it(card, run):
    scores = json.loads((run / "scores.json").read_text())["scores"]
    assert "# toy without colour:red" in card
    loading = "from toylib import load\nload('path/to/toy', '.', 'weights/edit-0.safetensors')\n"
    assert f"## How to load it\n\nIn the folder of these files:\n\n```python\n{loading}```\n" in card
    for line in (
        "| forgotten | colour:red |",
        "| shown in its place | colour:green |",
        "| method | toy-distillation (vu-toys 1.0) |",
        "| `unlearner.training.steps` | `3` |",
        "| `unlearner.parameters.alpha` | `4.0` |",
        "| `weighting.forget_weight` | `1.0` |",
        "| `run.seed` | `3` |",
        "| denoiser | 0 | 0.0001 |",
        "| image | 0 | 0.5 |",
        "| licence of the base | not stated in its files |",
    ):
        assert line in card
    assert f"| brightness | {100 * scores[0]['before']:.1f} % | {100 * scores[0]['after']:.1f} % |" in card
    assert "Measured on the held-out split. vu lets no method see these seeds.\n" in card
    assert "They do not show that the concept cannot be brought\nback" in card
    assert "measure.seeds" not in card
    assert "$" not in card


def test_the_card_names_no_place_of_this_machine(card, run, room):
    for place in (str(room), str(run), str(run.parent), str(Path.home()), str(Path.cwd()), sys.prefix):
        assert place not in card


def test_the_hub_can_read_the_front_matter(to, room):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    to()
    data = huggingface_hub.ModelCard.load(room / "out/README.md").data
    assert data.library_name == "toylib"
    assert data.tags == ["machine-unlearning", "concept-erasure", "toy-distillation"]
    assert data.pipeline_tag == "text-to-image"
    assert data.base_model is None  # a model without address on the hub
    assert data.license is None


def test_base_model_and_licence_come_from_the_model(to, room, monkeypatch):
    import vu_core.testing.toys as toys

    facts = toys.toy_facts
    monkeypatch.setattr(toys, "toy_facts", lambda seed: attrs.evolve(facts(seed), licence="creativeml-openrail-m"))
    monkeypatch.setattr("vu_core.exporting.hub_id", lambda model: "owner/name")
    monkeypatch.setattr("vu_core.export_card.hub_id", lambda model: "owner/name")
    made = to()
    card = (room / "out/README.md").read_text()
    assert 'base_model: "owner/name"\nlicense: "creativeml-openrail-m"\n' in card
    assert "| licence of the base | creativeml-openrail-m |" in card
    assert "(creativeml-openrail-m) applies to this edit of it too." in card
    assert "load('owner/name'" in made.usage


def test_with_an_address_the_lines_load_from_there(to, room):
    made = to(address="someone/without-red")
    assert made.usage.endswith("""load('path/to/toy', "someone/without-red", 'weights/edit-0.safetensors')""")
    card = (room / "out/README.md").read_text()
    assert f"## How to load it\n\n```python\n{made.usage}\n```\n" in card


def test_a_run_that_was_not_measured_has_a_card(host, room):
    folder = make_run(host, room / "run").folder
    (folder / "scores.json").unlink()
    export(folder, "toy-right", room / "out", host, lambda _: None)
    assert "Nothing was measured." in (room / "out/README.md").read_text()


def test_an_export_is_a_noun(to):
    made = to()
    assert isinstance(made, Export)
    with pytest.raises(AttributeError):
        made.format = "another"


def test_importing_the_module_imports_no_torch():
    code = "import sys, vu_core.exporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
