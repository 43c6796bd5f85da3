"""`vu list-plugins` shows every state with its cause; commands of plugins run and fail like our own."""

import json
import sys
import types

import click

from vu_core import Event, Table, hookimpl
from vu_core.plugins import discover

GOOD = """
from vu_core import hookimpl

@hookimpl
def vu_register_unlearners(register):
    register("zebra", "zebra_method:Zebra", summary="a striped method", aliases=("quagga",), default=False)

@hookimpl
def vu_register_commands(register):
    register("zoo", "zebra_method:zoo", summary="show the animals")
    register("cage", "zebra_method:NOT_A_COMMAND", summary="is no command")
    register("fire", "zebra_method:fire", summary="fails")
    register("unlearn", "zebra_method:zoo", summary="wants the name of a command of vu")
"""
METHOD = """
import click, logging, sys, warnings
from vu_core import DataError, Table

class Zebra: ...

NOT_A_COMMAND = 3

@click.command()
@click.option("--count", type=int, default=1)
def zoo(count):
    "Show the animals."
    print("a library speaks", file=sys.stderr)
    warnings.warn("and warns")
    logging.getLogger("library").warning("and logs")
    return Table("Zoo", ("animal", "count"), (("zebra", count),))

@click.command()
@click.argument("how")
def fire(how):
    if how == "error":
        raise DataError("VU-D999", "The zoo burns.", "Call for help.")
    if how == "bug":
        return 1 / 0
    if how == "number":
        return 3
    if how == "table":
        return Table("", ("x", "y"), ((float("nan"), 1.5), (float("-inf"), None)))
    if how == "abort":
        raise click.Abort
    if how.startswith("click-"):
        click.get_current_context().exit(int(how.removeprefix("click-")))
    if how.startswith("exit-"):
        code = how.removeprefix("exit-")
        sys.exit(int(code) if code.isdigit() else code)
    return how
"""
RIVAL = """
from vu_core import hookimpl

@hookimpl
def vu_register_unlearners(register):
    register("quagga", "rival:Quagga", summary="another striped method")
"""
SLOW = """
import numpy
from vu_core import hookimpl

@hookimpl
def vu_register_metrics(register):
    register("sloth", "sloths:Sloth", summary="takes its time")
"""


def install(distribution):
    site = distribution("zebras", "zebras", GOOD)
    (site / "zebra_method.py").write_text(METHOD)
    distribution("rivals", "rivals", RIVAL, "3.0")
    distribution("sloths", "sloths", SLOW)
    distribution("wrecks", "wrecks", "import nothing_of_this_name\n", "0.9")
    distribution("banned", "banned", "raise RuntimeError('must not be imported')\n")
    return site


def test_every_state_is_shown_with_its_cause(distribution, process):
    site = install(distribution)
    done = process("list-plugins", "--json", path=site, VU_DISABLE_PLUGINS="banned")
    assert done.returncode == 0, done.stderr
    rows = {(row["kind"], row["name"]): row for row in json.loads(done.stdout)}
    assert rows["unlearner", "zebra"]["state"] == "conflict"
    assert "rivals 3.0" in rows["unlearner", "zebra"]["cause"]
    assert "zebras 1.2" in rows["unlearner", "quagga"]["cause"]
    assert rows["metric", "sloth"]["state"] == "slow"
    assert "numpy" in rows["metric", "sloth"]["cause"]
    assert rows["distribution", "wrecks"]["state"] == "broken"
    assert "nothing_of_this_name" in rows["distribution", "wrecks"]["cause"]
    assert rows["distribution", "banned"]["state"] == "blocked"
    assert rows["command", "zoo"]["state"] == "ready"

    table = process("list-plugins", path=site, VU_DISABLE_PLUGINS="banned", COLUMNS="100").stdout
    for word in ("zebra", "zebras 1.2", "conflict", "sloth", "slow", "wrecks 0.9", "broken", "blocked"):
        assert word in table
    assert max(map(len, table.splitlines())) <= 100
    assert "\x1b" not in table


def test_a_kind_can_be_chosen_and_unknown_kinds_are_refused(distribution, process):
    site = install(distribution)
    done = process("list-plugins", "--kind", "metric", "--json", path=site)
    assert {row["kind"] for row in json.loads(done.stdout)} == {"metric"}
    refused = process("list-plugins", "--kind", "metrc")
    assert refused.returncode == 2
    assert "metric" in refused.stderr


def test_check_imports_every_target_and_exits_with_3_when_one_is_broken(distribution, process):
    site = distribution("zebras", "zebras", GOOD)  # without the module of its targets
    done = process("list-plugins", "--check", "--kind", "unlearner", "--json", path=site)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["zebra"]["state"] == "broken"
    assert "zebra_method" in rows["zebra"]["cause"]
    assert done.returncode == 3
    assert "VU-P121" in done.stderr
    assert "ModuleNotFoundError: " in done.stderr

    (site / "zebra_method.py").write_text(
        "from vu_core import PluginError\nraise PluginError('VU-P999', 'No oats.', 'Buy some.', where='stable')\n"
    )
    rows = json.loads(process("list-plugins", "--check", "--kind", "unlearner", "--json", path=site).stdout)
    assert next(row for row in rows if row["name"] == "zebra")["cause"] == "PluginError: No oats."
    assert "Traceback" not in done.stderr

    (site / "zebra_method.py").write_text(METHOD)
    assert process("list-plugins", "--check", "--kind", "unlearner", path=site).returncode == 0


def test_commands_of_plugins_print_nouns_as_table_or_json_and_nothing_else(distribution, process):
    site = install(distribution)
    assert "zoo" in process("--help", path=site).stdout
    done = process("zoo", "--count", "3", path=site)
    assert (done.returncode, done.stderr) == (0, "")
    assert "zebra" in done.stdout
    done = process("zoo", "--count", "3", "--json", path=site)
    assert json.loads(done.stdout)["rows"] == [{"animal": "zebra", "count": 3}]


def test_every_command_of_a_plugin_can_be_quiet_and_keeps_its_own_short_options(vu, monkeypatch):
    module = types.ModuleType("lions_of_the_tests")

    @click.command()
    @click.pass_obj
    def lions(host):
        with host.watching() as watch:
            watch(Event("note", "lions", {"text": "They roar."}))

    @click.command()
    @click.option("-q", "--queen", is_flag=True)
    def bees(queen):
        return Table("", ("queen",), ((str(queen),),))

    class Plugin:
        @hookimpl
        def vu_register_commands(self, register):
            for name in ("lions", "bees"):
                register(name, f"lions_of_the_tests:{name}", summary="animals")

    module.lions, module.bees = lions, bees
    monkeypatch.setitem(sys.modules, "lions_of_the_tests", module)
    plugins = discover(extra=[("lions", "1.0", Plugin())], installed=False)
    assert "They roar." in vu("lions", plugins=plugins).err
    for flag in ("--quiet", "-q"):
        done = vu("lions", flag, plugins=plugins)
        assert (done.status, done.err) == (0, "")
    assert "True" in vu("bees", "-q", "--quiet", plugins=plugins).out


def test_a_plugin_cannot_take_the_name_of_a_command_of_vu(distribution, process):
    site = install(distribution)
    assert "--method" in process("unlearn", "--help", path=site).stdout
    rows = json.loads(process("list-plugins", "--kind", "command", "--json", path=site).stdout)
    shadowed = next(row for row in rows if row["name"] == "unlearn")
    assert shadowed["state"] == "conflict"
    assert "command of vu itself" in shadowed["cause"]


def test_failing_commands_of_plugins_fail_in_plain_words(distribution, process):
    site = install(distribution)
    for line, status, fragment in [
        (["cage"], 3, "VU-P120"),
        (["fire", "error"], 5, "The zoo burns."),
        (["fire", "bug"], 1, "ZeroDivisionError"),
        (["fire", "text"], 3, "VU-P123: The command 'fire' returned a value of type str"),
        (["fire", "number"], 3, "type int"),
        (["fire", "exit-4"], 4, "VU-P122: The command 'fire' ended itself with status 4."),
        (["fire", "exit-700"], 1, "VU-P122"),
        (["fire", "exit-out of oil"], 1, "out of oil"),
        (["fire", "click-5"], 5, "VU-P122"),
        (["fire", "abort"], 130, "interrupted"),
        (["fire"], 2, "Missing argument"),
        (["fire", "--nonsense"], 2, "'--nonsense'"),
    ]:
        done = process(*line, path=site)
        assert done.returncode == status, (line, done.stderr)
        assert fragment in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        done = process(*line, "--json", path=site)
        assert done.returncode == status
        assert json.loads(done.stdout)["error"]["exit_status"] == status


def test_a_plugins_command_may_end_itself_well_or_return_what_json_has_no_word_for(distribution, process):
    site = install(distribution)
    for how in ("exit-0", "click-0"):
        done = process("fire", how, path=site)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(process("fire", "exit-0", "--json", path=site).stdout) is None
    rows = json.loads(process("fire", "table", "--json", path=site).stdout)["rows"]
    assert rows == [{"x": None, "y": 1.5}, {"x": None, "y": None}]


def test_a_plugin_that_ends_the_program_in_a_command_of_vu_does_not_choose_the_status(vu, monkeypatch):
    from vu_core import pipeline

    for code in (0, 42, "bye"):
        monkeypatch.setattr(pipeline, "dry_run", lambda *_args, _code=code, **_settings: sys.exit(_code))
        done = vu("unlearn", "--dry-run", "--json")
        assert done.status == 3
        assert json.loads(done.out)["error"]["code"] == "VU-P122"
        assert f"vu unlearn`: {code!r}" in done.err


def test_check_says_in_conflict_and_describe_knows_distributions(distribution, process):
    site = install(distribution)
    done = process("list-plugins", "--check", path=site)
    assert "unlearner 'zebra' of zebras is in conflict: rivals 3.0" in done.stderr
    described = process("describe", "zebras", path=site)
    assert described.returncode == 3
    assert "'zebras' is a distribution" in described.stderr
    assert "zoo (command)" in described.stderr
    broken = process("describe", "wrecks", path=site)
    assert "nothing_of_this_name" in broken.stderr
