"""`vu list-plugins` shows every state with its cause; commands of plugins run and fail like our own."""

import json

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
        (["fire", "text"], 1, "no way to show a str"),
        (["fire"], 2, "Missing argument"),
        (["fire", "--nonsense"], 2, "'--nonsense'"),
    ]:
        done = process(*line, path=site)
        assert done.returncode == status, (line, done.stderr)
        assert fragment in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
