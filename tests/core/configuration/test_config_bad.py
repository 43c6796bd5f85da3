"""Bad configurations, flags, files and plugins: each is refused with its code, its message and its exit status."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from vu_core import PlanError, VuError, hookimpl
from vu_core.config import Override, parse_set
from vu_core.plugins import discover
from vu_core.stages.plan import plan
from vu_core.stages.read import read
from vu_core.stages.structure import structure

FILES = Path(__file__).parent / "bad_configurations"
PARTS = "vu_config_toys.parts"


@attrs.frozen
class Bad:
    """One row: what is wrong, and what must be said about it."""

    name: str
    code: str
    status: int
    said: tuple[str, ...]
    toml: str | None = None
    file: str | None = None
    sets: tuple[str, ...] = ()
    flags: tuple[tuple[str, object], ...] = ()
    plugins: tuple[object, ...] = ()
    blocked: str = "vu-core"
    limits: tuple[tuple[str, float], ...] = ()
    toys: bool = True


def named(distribution, **hooks):
    """Return a distribution made of hook functions."""
    return (distribution, "0.3", SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()}))


def claims_fade(register):
    register("fade", f"{PARTS}:ToyMethod", summary="mine")


def ascends(register):
    register("ascending", f"{PARTS}:Ascending", summary="up", needs=("denoise",), axes=("weighting",))
    register("silent", f"{PARTS}:Silent", summary="says nothing", needs=("denoise",), axes=("weighting",))


def claims_toy_method(register):
    register("toy-method", f"{PARTS}:ToyMethod", summary="mine too")


def claims_alias(register):
    register("my-weighting", f"{PARTS}:Even", summary="mine", aliases=("leaning",))


def claims_default(register):
    register("best-model", f"{PARTS}:ToyModel", summary="better", default=True)


def second_recipe(register):
    register("second-recipe", "vu_config_toys:recipe.toml", summary="for the same pair")


def objects(plan):
    raise PlanError("VU-L090", "Not on a Sunday.", "Come back on Monday.")


def objects_too(plan):
    raise PlanError("VU-L091", "Not in winter.", "Come back in spring.")


def stumbles(plan):
    raise ZeroDivisionError("of no interest")


ROWS = (
    # Files
    Bad("no file", "VU-C003", 2, ("cannot be read", "No such file"), file="absent.toml"),
    Bad("a folder", "VU-C003", 2, ("cannot be read",), file="."),
    Bad("syntax", "VU-C002", 2, ("not valid TOML", "syntax.toml:4:"), file="syntax.toml"),
    Bad("unclosed text", "VU-C002", 2, ("not valid TOML", "unclosed.toml:2:"), file="unclosed.toml"),
    Bad("key twice", "VU-C002", 2, ("Cannot overwrite", "twice.toml:3:"), file="twice.toml"),
    Bad("not UTF-8", "VU-C003", 2, ("not UTF-8", "latin.toml:2"), file="latin.toml"),
    Bad("ends early", "VU-C002", 2, ("not valid TOML", "run.toml:1:8"), toml="seed = "),
    # Tables
    Bad(
        "unknown table",
        "VU-C001",
        2,
        ("unlern is unknown", "'unlearner'", "run.toml:1"),
        toml="[unlern]\nmethod = 'tm'",
    ),
    Bad("value for a table", "VU-C001", 2, ("run must be a table", "run.toml:1"), toml="run = 3"),
    Bad("value for model", "VU-C001", 2, ("model must be a table",), toml="model = 'toy-model'"),
    Bad("sequence", "VU-C005", 2, ("sequence of runs",), toml="[sequence]\nname = 'x'"),
    Bad("tasks", "VU-C005", 2, ("sequence of runs", "tasks (run.toml:1)"), toml="[[tasks]]\nforget = ['style:neon']"),
    Bad("top-level key", "VU-C001", 2, ("seed is unknown",), toml="seed = 1"),
    # Table run
    Bad("unknown key", "VU-C001", 2, ("run.sed is unknown", "'seed'", "run.toml:2"), toml="[run]\nsed = 1"),
    Bad("negative seed", "VU-C001", 2, ("run.seed must be >= 0, but is -1", "run.toml:2"), toml="[run]\nseed = -1"),
    Bad("huge seed", "VU-C001", 2, ("run.seed must be <",), toml="[run]\nseed = 9223372036854775808"),
    Bad(
        "seed as text", "VU-C001", 2, ("run.seed must be a whole number, but is '7' (text)",), toml="[run]\nseed = '7'"
    ),
    Bad("seed as float", "VU-C001", 2, ("whole number, but is 1.9",), toml="[run]\nseed = 1.9"),
    Bad("seed as truth", "VU-C001", 2, ("whole number, but is True",), toml="[run]\nseed = true"),
    Bad("seed as date", "VU-C001", 2, ("whole number",), toml="[run]\nseed = 2026-01-01"),
    Bad("device", "VU-C001", 2, ("run.device must be 'cpu'", "'gpu'"), toml="[run]\ndevice = 'gpu'"),
    Bad("device of a set", "VU-C001", 2, ("run.device", "--set"), sets=("run.device=tpu",)),
    Bad("precision", "VU-C001", 2, ("run.precision must be one of 'fp32'",), flags=(("run.precision", "fp64"),)),
    Bad("no threads", "VU-C001", 2, ("run.threads must be >= 1",), sets=("run.threads=0",)),
    Bad("out as number", "VU-C001", 2, ("run.out must be text", '"5"'), sets=("run.out=5",)),
    # --set and flags
    Bad("set without value", "VU-C004", 2, ("'run.seed' is no setting", "--set"), sets=("run.seed",)),
    Bad("set without key", "VU-C004", 2, ("is no setting",), sets=("=3",)),
    Bad("set through a value", "VU-C004", 2, ("run.seed is no table",), toml="[run]\nseed = 1", sets=("run.seed.x=2",)),
    Bad("set a table away", "VU-C001", 2, ("unlearner.training must be a table",), sets=("unlearner.training=3",)),
    Bad("bad flag", "VU-C001", 2, ("run.seed must be >= 0", "--seed"), flags=(("--seed", -3),)),
    # Method
    Bad("unknown method", "VU-P001", 3, ("no method 'toy-methd'", "'toy-method'"), flags=(("--method", "toy-methd"),)),
    Bad("published method", "VU-P001", 3, ("no method 'fade'", "pip install vu-fade"), flags=(("--method", "fade"),)),
    Bad("a weighting as method", "VU-P001", 3, ("name of a weighting",), flags=(("--method", "tilted"),)),
    Bad("method as number", "VU-C001", 2, ("unlearner.method must be text",), toml="[unlearner]\nmethod = 3"),
    Bad("empty method", "VU-C001", 2, ("unlearner.method must be text",), flags=(("--method", ""),)),
    Bad("unknown field", "VU-C001", 2, ("unlearner.strenth", "'strength'"), toml="[unlearner]\nstrenth = 1"),
    Bad("zero strength", "VU-C001", 2, ("unlearner.strength must be > 0",), sets=("unlearner.strength=0",)),
    Bad("too strong", "VU-C001", 2, ("must be <= 1, but is 1.5",), sets=("unlearner.strength=1.5",)),
    Bad("infinite", "VU-C001", 2, ("finite number",), sets=("unlearner.strength=inf",)),
    Bad("not a number", "VU-C001", 2, ("finite number",), sets=("unlearner.strength=nan",)),
    Bad("text for a list", "VU-C001", 2, ("list of texts", '["to_q"]'), sets=("unlearner.modules=to_q",)),
    Bad("number in a list", "VU-C001", 2, ("unlearner.modules[1] must be text",), sets=('unlearner.modules=["a", 1]',)),
    Bad("text for truth", "VU-C001", 2, ("must be true or false, but is 'yes'",), sets=("unlearner.careful=yes",)),
    Bad("one for truth", "VU-C001", 2, ("must be true or false, but is 1",), sets=("unlearner.careful=1",)),
    Bad("rule over two fields", "VU-C001", 2, ("low must be less than high",), sets=("unlearner.low=10",)),
    Bad("required field", "VU-C001", 2, ("unlearner.target is required",), flags=(("--method", "demanding"),)),
    Bad("missing class", "VU-P003", 3, ("has no attribute 'Nowhere'",), flags=(("--method", "missing-target"),)),
    Bad("leaves on import", "VU-P003", 3, ("SystemExit",), flags=(("--method", "exploding"),)),
    Bad("no Config", "VU-P005", 3, ("no attrs class named Config",), flags=(("--method", "no-config"),)),
    Bad("greedy Config", "VU-P005", 3, ("field 'parameters'",), flags=(("--method", "greedy"),)),
    Bad("odd Config", "VU-P005", 3, ("NoSuchType",), flags=(("--method", "odd-config"),)),
    # Training
    Bad("no steps", "VU-C001", 2, ("unlearner.training.steps must be >= 1",), sets=("unlearner.training.steps=0",)),
    Bad("learning rate", "VU-C001", 2, ("unlearner.training.lr must be > 0",), sets=("unlearner.training.lr=-1e-3",)),
    Bad("schedule", "VU-C001", 2, ("must be one of 'constant'",), sets=("unlearner.training.schedule=cos",)),
    Bad(
        "field of training",
        "VU-C001",
        2,
        ("unlearner.training.learning_rate is unknown",),
        sets=("unlearner.training.learning_rate=1",),
    ),
    Bad("steps and epochs", "VU-C001", 2, ("both are",), toml="[unlearner.training]\nsteps = 5\nepochs = 2"),
    Bad("neither", "VU-C001", 2, ("neither is",), flags=(("--method", "endless"),)),
    Bad("long warm-up", "VU-C030", 2, ("40 steps", "only 40"), sets=("unlearner.training.warmup_steps=40",)),
    Bad(
        "warm-up of epochs",
        "VU-C030",
        2,
        ("warm-up takes 9 steps", "only 5"),
        sets=("unlearner.training.epochs=1", "unlearner.training.warmup_steps=9"),
    ),
    # Axes
    Bad(
        "axis not honoured",
        "VU-L001",
        4,
        ("'closed-form' does not use weighting", "--weighting"),
        flags=(("--method", "closed-form"), ("--weighting", "even")),
    ),
    Bad(
        "parameters not honoured",
        "VU-L001",
        4,
        ("does not use parameters",),
        flags=(("--method", "closed-form"), ("--parameters", "small")),
    ),
    Bad(
        "regularizer not honoured",
        "VU-L001",
        4,
        ("does not use regularizer",),
        flags=(("--method", "closed-form"), ("--regularizer", ("pull",))),
    ),
    Bad(
        "attribution not honoured",
        "VU-L001",
        4,
        ("does not use attribution",),
        flags=(("--method", "closed-form"),),
        toml="[unlearner.attribution]\nname = 'guess'",
    ),
    Bad("unknown weighting", "VU-P001", 3, ("no weighting 'tiltd'", "'tilted'"), flags=(("--weighting", "tiltd"),)),
    Bad(
        "field of another weighting",
        "VU-C001",
        2,
        ("weighting.forget is unknown", "nothing to set"),
        flags=(("--weighting", "even"),),
        sets=("weighting.forget=1",),
    ),
    Bad(
        "unknown parameters", "VU-P001", 3, ("no parameters 'elastic-lora'",), flags=(("--parameters", "elastic-lora"),)
    ),
    Bad(
        "text for an axis",
        "VU-C001",
        2,
        ("unlearner.parameters must be a table",),
        toml="[unlearner]\nparameters = 'small'",
    ),
    Bad("unknown regularizer", "VU-P001", 3, ("no regularizer 'pul'", "'pull'"), flags=(("--regularizer", ("pul",)),)),
    Bad(
        "regularizer twice",
        "VU-C001",
        2,
        ("regularizer.tug is another name of 'pull'",),
        flags=(("--regularizer", ("pull", "tug")),),
    ),
    Bad(
        "field of a regularizer",
        "VU-C001",
        2,
        ("regularizer.pull.force must be >= 0",),
        sets=("regularizer.pull.force=-1",),
    ),
    Bad("list of regularizers", "VU-C001", 2, ("regularizer must be a table",), toml="regularizer = ['pull']"),
    # Model and data
    Bad("unknown model", "VU-P001", 3, ("no model 'toy-modl'", "'toy-model'"), flags=(("--model", "toy-modl"),)),
    Bad("no such path", "VU-C006", 2, ("no file or folder './nowhere'",), flags=(("--model", "./nowhere"),)),
    Bad(
        "nobody recognises it",
        "VU-C006",
        2,
        ("No installed model plugin recognises",),
        flags=(("--model", str(FILES)),),
    ),
    Bad(
        "two recognise it",
        "VU-C006",
        2,
        ("More than one", "other-model", "toy-model"),
        flags=(("--model", str(FILES / "both")),),
    ),
    Bad(
        "near path",
        "VU-C006",
        2,
        ("no file or folder", f"Did you mean '{FILES}'?"),
        flags=(("--model", f"{FILES.parent}/bad_configuration/both"),),
    ),
    Bad("nobody's home", "VU-C006", 2, ("no file or folder '~nobody-'",), flags=(("--model", "~nobody-"),)),
    Bad("a very long path", "VU-C006", 2, ("no file or folder './mmm",), flags=(("--model", "./" + 400 * "m"),)),
    Bad("unknown NAME of NAME=REF", "VU-P001", 3, ("no model 'nobody'",), flags=(("--model", "nobody=x"),)),
    Bad(
        "two refs",
        "VU-C001",
        2,
        ("model.ref is 'b', but model.name says 'a'",),
        toml="[model]\nname = 'toy=a'\nref = 'b'",
    ),
    Bad("model field", "VU-C001", 2, ("model.width must be <= 64",), sets=("model.width=65",)),
    Bad(
        "other model, no data",
        "VU-C001",
        2,
        ("data.name is required", "--data", "toy-data"),
        flags=(("--model", "other-model"),),
    ),
    Bad("half a model", "VU-M070", 8, ("Half a model",), flags=(("--model", "toy-model=half"),)),
    Bad(
        "model plugin fails",
        "VU-P009",
        3,
        ("model 'failing-model' of ", " failed: KeyError"),
        flags=(("--model", "failing-model"), ("--data", "toy-data")),
    ),
    Bad(
        "model cannot do it",
        "VU-L002",
        4,
        ("'toy-method' needs 'denoise'", "'mute-model' lacks"),
        flags=(("--model", "mute-model"), ("--data", "toy-data")),
    ),
    Bad(
        "no judge",
        "VU-L002",
        4,
        ("needs 'judge'", "'plain-data' lacks"),
        flags=(("--data", "plain-data"),),
        sets=('measure.metrics=["verdict"]',),
    ),
    Bad(
        "unknown concept",
        "VU-D070",
        5,
        ("'style:nen'", "'neon'", "where: data.forget (--forget)"),
        flags=(("--forget", ("style:nen",)),),
    ),
    Bad(
        "several unknown concepts",
        "VU-D070",
        5,
        ("2 problems", "data.forget: There", "data.overwrite: There", "(run.toml:2), data.overwrite (run.toml:4)"),
        toml="[data]\nforget = ['style:nen',\n'style:dots']\noverwrite = ['style:fat']",
    ),
    Bad(
        "forget as text",
        "VU-C001",
        2,
        ("data.forget must be a list of texts", '["style:neon"]'),
        toml="[data]\nforget = 'style:neon'",
    ),
    Bad("empty concept", "VU-C001", 2, ("data.forget[0] is empty",), flags=(("--forget", ("",)),)),
    Bad(
        "data choice",
        "VU-C001",
        2,
        ("data.crop must be one of 'center', 'random', but is 'left'",),
        sets=("data.crop=left",),
    ),
    Bad("negative in a list", "VU-C001", 2, ("data.limits must be >= 0",), sets=("data.limits=[1, -1]",)),
    Bad("table of texts", "VU-C001", 2, ("data.shares.a must be a number",), sets=("data.shares={a = 'x'}",)),
    Bad("unknown data", "VU-P001", 3, ("pip install vu-folders",), flags=(("--data", "imagefolder"),)),
    # Measuring
    Bad(
        "split", "VU-C001", 2, ("measure.split must be one of 'validation', 'held-out'",), sets=("measure.split=train",)
    ),
    Bad("unknown metric", "VU-P001", 3, ("no metric 'sizes'", "'size'"), sets=('measure.metrics=["sizes"]',)),
    Bad("metric twice", "VU-C001", 2, ("more than once",), sets=('measure.metrics=["size", "size"]',)),
    Bad(
        "metric not measured",
        "VU-C001",
        2,
        ("metric.verdict is not measured",),
        sets=('measure.metrics=["size"]', "metric.verdict.threshold=1"),
    ),
    Bad(
        "field of a metric",
        "VU-C001",
        2,
        ("metric.verdict.threshold must be <= 1",),
        sets=("metric.verdict.threshold=2",),
    ),
    # Plugins
    Bad(
        "name in conflict",
        "VU-P002",
        3,
        ("claimed more than once", "vu-config-toys 1.2", "thief 0.3"),
        plugins=(named("thief", vu_register_unlearners=claims_toy_method),),
        flags=(("--method", "toy-method"),),
    ),
    Bad(
        "alias in conflict",
        "VU-P002",
        3,
        ("'leaning' is claimed more than once",),
        plugins=(named("thief", vu_register_weightings=claims_alias),),
        flags=(("--weighting", "leaning"),),
    ),
    Bad(
        "two defaults",
        "VU-P006",
        3,
        ("default model", "'best-model' (thief 0.3)"),
        plugins=(named("thief", vu_register_models=claims_default),),
    ),
    Bad(
        "two recipes",
        "VU-P008",
        3,
        ("'second-recipe' (thief)",),
        plugins=(named("thief", vu_register_recipes=second_recipe),),
    ),
    Bad(
        "blocked",
        "VU-P004",
        3,
        ("vu-fade is blocked", "VU_DISABLE_PLUGINS"),
        plugins=(named("vu-fade", vu_register_unlearners=claims_fade),),
        blocked="vu-core, VU_Fade",
        flags=(("--method", "fade"),),
    ),
    Bad(
        "sign of a loss",
        "VU-C053",
        2,
        ("'ascending' honours a weighting", "descends is ('retain',)", 'descends = ("retain", "forget")'),
        plugins=(named("rising", vu_register_unlearners=ascends),),
        flags=(("--method", "ascending"),),
    ),
    Bad(
        "no sign of a loss",
        "VU-C053",
        2,
        ("'silent' honours a weighting", "descends is None"),
        plugins=(named("rising", vu_register_unlearners=ascends),),
        flags=(("--method", "silent"),),
    ),
    Bad(
        "sign of a loss of the base method",
        "VU-C053",
        2,
        ("'ascending' honours a weighting",),
        plugins=(named("rising", vu_register_unlearners=ascends),),
        flags=(("--method", "wrapper"),),
        sets=("unlearner.base_method=ascending",),
    ),
    Bad(
        "broken",
        "VU-P003",
        3,
        ("vu-fade is broken", "ZeroDivisionError"),
        plugins=(named("vu-fade", vu_register_unlearners=lambda register: 1 / 0),),
        flags=(("--method", "fade"),),
    ),
    Bad("plugin objects", "VU-L090", 4, ("Not on a Sunday",), plugins=(named("calendar", vu_check_plan=objects),)),
    Bad(
        "two objections",
        "VU-L004",
        4,
        ("Sunday", "winter", "Monday", "spring"),
        plugins=(named("calendar", vu_check_plan=objects), named("almanac", vu_check_plan=objects_too)),
    ),
    Bad(
        "check of the plan fails",
        "VU-P007",
        3,
        ("calendar failed", "ZeroDivisionError"),
        plugins=(named("calendar", vu_check_plan=stumbles),),
    ),
    Bad(
        "nothing installed",
        "VU-P001",
        3,
        ("No model is installed", "pip install"),
        toys=False,
        flags=(("--method", "x"),),
        plugins=(
            named(
                "m",
                vu_register_unlearners=lambda register: register("x", f"{PARTS}:ClosedForm", summary="x"),
                vu_register_datasets=lambda register: register("d", f"{PARTS}:PlainData", summary="d", default=True),
                vu_register_metrics=lambda register: register("size", f"{PARTS}:Size", summary="s"),
            ),
        ),
    ),
    Bad(
        "default switched off",
        "VU-C001",
        2,
        ("model.name", "vu-canvas is blocked", "--model", "plain-model"),
        plugins=(
            named("vu-canvas", vu_register_models=lambda register: None),
            named(
                "m",
                vu_register_models=lambda register: register("plain-model", f"{PARTS}:ToyModel", summary="m"),
                vu_register_unlearners=lambda register: register("x", f"{PARTS}:ClosedForm", summary="x"),
                vu_register_datasets=lambda register: register("d", f"{PARTS}:PlainData", summary="d", default=True),
                vu_register_metrics=lambda register: register("size", f"{PARTS}:Size", summary="s"),
            ),
        ),
        flags=(("--method", "x"),),
        blocked="vu-core,vu-canvas",
        toys=False,
    ),
    # Budget
    Bad("too long", "VU-L003", 4, ("minutes (allowed: 0.01)", "--max-minutes"), limits=(("max_minutes", 0.01),)),
    Bad("too large", "VU-L003", 4, ("GB of memory (allowed: 0.001)",), limits=(("max_gb", 0.001),)),
    Bad(
        "too much to download",
        "VU-L003",
        4,
        ("disk and downloads",),
        limits=(("max_gb", 1.5),),
        flags=(("--model", "some/model"), ("--data", "toy-data")),
    ),
)


def provoke(bad: Bad, folder: Path):
    """Run the first three stages."""
    from vu_config_toys import plugin

    toys = [("vu-config-toys", "1.2", plugin)] if bad.toys else []
    plugins = discover(extra=[*toys, *bad.plugins], installed=False)
    path = None
    if bad.toml is not None:
        path = Path("run.toml")
        path.write_text(bad.toml, encoding="utf-8")
    elif bad.file is not None:
        path = FILES / bad.file
    from vu_core.config import FLAG_KEYS

    flags = [Override(FLAG_KEYS.get(flag, flag), value, flag) for flag, value in bad.flags]
    raw = read(path, [*flags, *map(parse_set, bad.sets)])
    return plan(structure(raw, plugins), plugins, **dict(bad.limits))


@pytest.fixture
def leaver(monkeypatch, tmp_path_factory):
    """Write a module that leaves the program when it is imported."""
    folder = tmp_path_factory.mktemp("leaver")
    (folder / "vu_leaver.py").write_text("raise SystemExit('gone')\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.usefixtures("leaver")
@pytest.mark.parametrize("bad", ROWS, ids=lambda bad: bad.name.replace(" ", "-"))
def test_it_is_refused(bad, tmp_path, monkeypatch):
    monkeypatch.setenv("VU_DISABLE_PLUGINS", bad.blocked)
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(VuError) as caught:
        provoke(bad, tmp_path)

    error = caught.value
    assert (error.code, error.exit_status) == (bad.code, bad.status), str(error)
    for fragment in bad.said:
        assert fragment in str(error), str(error)
    assert error.remedy
    assert [path.name for path in tmp_path.iterdir()] in ([], ["run.toml"]), "something was left behind"


def test_the_table_is_long_enough_and_its_good_twin_passes(toys, tmp_path, monkeypatch):
    assert len(ROWS) >= 60
    assert len({bad.name for bad in ROWS}) == len(ROWS)
    planned = plan(structure(read(), toys), toys)
    assert planned.config.unlearner.name == "toy-method"


def test_all_problems_are_told_at_once(toys, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        "[run]\nsed = 1\ndevice = 'gpu'\n\n[unlearner]\nmethod = 'tm'\nstrength = 'x'\nstrenth = 1\n"
        "[unlearner.training]\nlr = 0\nbatch_size = 0\n[weighting]\nname = 'tiltd'\n[measure]\nseeds = 0\n",
        encoding="utf-8",
    )
    with pytest.raises(VuError) as caught:
        structure(read(path, [Override("data.crop", "left", "--set")]), toys)
    text = str(caught.value)
    assert caught.value.code == "VU-C001"
    assert "has 9 problems" in text
    for key, line in (
        ("run.sed", 2),
        ("run.device", 3),
        ("unlearner.strength", 7),
        ("unlearner.strenth", 8),
        ("unlearner.training.lr", 10),
        ("unlearner.training.batch_size", 11),
        ("weighting.name", 13),
        ("measure.seeds", 15),
    ):
        assert any(row.startswith(f"  {key}") and row.endswith(f"run.toml:{line})") for row in text.splitlines()), text
    assert any(row.startswith("  data.crop ") and row.endswith("(--set)") for row in text.splitlines()), text


def test_plugin_errors_keep_their_kind_only_when_alone(toys):
    with pytest.raises(VuError) as caught:
        structure(
            read(None, [Override("unlearner.method", "tn", "--method"), Override("run.seed", -1, "--seed")]), toys
        )
    assert caught.value.exit_status == 2
    assert "There is no method 'tn'" in str(caught.value)
    assert "run.seed must be >= 0" in str(caught.value)


def test_what_the_data_objects_to_is_told_with_everything_else(toys, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        "[unlearner]\nmethod = 'tn'\n[data]\n"
        "forget = ['style:neon', 'style:nen', 'objct:x']\noverwrite = ['style:fat']\n"
    )
    with pytest.raises(VuError) as caught:
        structure(read(path), toys)
    assert caught.value.code == "VU-C001"
    rows = str(caught.value).splitlines()
    assert "has 4 problems" in rows[0]
    for key, said, line in (
        ("unlearner.method", "'tn'", 2),
        ("data.forget", "'style:nen'. Did you mean 'neon'?", 4),
        ("data.forget", "'objct:x'", 4),
        ("data.overwrite", "'style:fat'. Did you mean 'flat'?", 5),
    ):
        assert any(row.startswith(f"  {key}: ") and said in row and row.endswith(f"run.toml:{line})") for row in rows)


def test_data_that_fails_while_it_looks_is_told_with_everything_else(toys, monkeypatch):
    from vu_config_toys import parts

    def parse(self, forget, overwrite):
        raise KeyError("boom")

    monkeypatch.setattr(parts.ToyData, "parse", parse)
    with pytest.raises(VuError) as caught:
        structure(read(None, [Override("run.seed", -1, "--seed")]), toys)
    assert "has 2 problems" in str(caught.value)
    assert "'toy-data' of vu-config-toys 1.2 failed: KeyError: 'boom'" in str(caught.value)


def test_data_is_looked_through_once_when_all_is_well(toys, monkeypatch):
    from vu_config_toys import parts

    seen, parse = [], parts.ToyData.parse
    monkeypatch.setattr(parts.ToyData, "parse", lambda *asked: seen.append(asked) or parse(*asked))
    plan(structure(read(), toys), toys)
    assert len(seen) == 1
