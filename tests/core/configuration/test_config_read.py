"""Values, and the line each of them stands on."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vu_core import ConfigError
from vu_core.config import Override, dotted, lines_of_keys, parse_set, toml_value
from vu_core.stages.read import read

DOCUMENT = '''# a comment = 1
title = "a [table] # no comment"
a.b.c = 1
"quoted key" = 'x'

[run]  # comment
seed = 42
text = """
[not.a.table]
key = 1
"""
raw = \'\'\'
also = "not"\'\'\'\'
list = [ # comment ]
  1, [2, "]"],
  { x = 1, y = { z = 2 } },
]
last = 1979-05-27 07:32:00

[ unlearner . "training" ]
lr=1e-3
[[tasks]]
forget = ["a"]
[tasks.inner]
x = 1
[[tasks.more]]
y = 1
[[tasks]]
forget = ["b"]
[[tasks.more]]
y = 2
'''


def test_lines_of_every_kind_of_key():
    lines = lines_of_keys(DOCUMENT)
    tomllib.loads(DOCUMENT)
    expected = {
        "title": 2,
        "a.b.c": 3,
        '"quoted key"': 4,
        "run": 6,
        "run.seed": 7,
        "run.text": 8,
        "run.raw": 12,
        "run.list": 14,
        "run.list.0": 15,
        "run.list.1.1": 15,
        "run.list.2.x": 16,
        "run.list.2.y.z": 16,
        "run.last": 18,
        "unlearner.training": 20,
        "unlearner.training.lr": 21,
        "tasks.0": 22,
        "tasks.0.forget": 23,
        "tasks.0.inner.x": 25,
        "tasks.0.more.0.y": 27,
        "tasks.1.forget": 29,
        "tasks.1.more.0.y": 31,
    }
    assert {key: lines.get(key) for key in expected} == expected
    assert not any("not" in key or key.endswith(".key") for key in lines)


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        yield dotted(path)
        for index, item in enumerate(value):
            yield from leaves(item, (*path, str(index)))
    else:
        yield dotted(path)


# No test of this file depends on the clock of the machine.
steady = settings(deadline=None, max_examples=80, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
scalars = st.one_of(texts, st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False))
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3))
)


@steady
@given(st.dictionaries(texts, values, max_size=5))
def test_what_is_written_is_read_back_and_every_key_has_its_line(tables):
    text = "".join(f"{dotted((key,))} = {toml_value(value)}\n" for key, value in tables.items())
    assert tomllib.loads(text) == tables
    lines = lines_of_keys(text)
    for line, (key, value) in enumerate(tables.items(), start=1):
        assert lines[dotted((key,))] == line
        assert {lines[leaf] for leaf in leaves(value, (key,))} <= {line}


@steady
@given(st.dictionaries(texts, st.dictionaries(texts, scalars, max_size=3), max_size=4))
def test_tables_with_headers(tables):
    rows: list[str] = []
    expected = {}
    for name, inner in tables.items():
        rows.append(f"[{dotted((name,))}]")
        expected[dotted((name,))] = len(rows)
        for key, value in inner.items():
            rows.append(f"{dotted((key,))} = {toml_value(value)}  # {len(rows)}")
            expected[dotted((name, key))] = len(rows)
    text = "\n".join(rows)
    assert tomllib.loads(text) == tables
    lines = lines_of_keys(text)
    assert {key: lines[key] for key in expected} == expected


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_file_lines_and_marks(tmp_path, newline):
    path = tmp_path / "run.toml"
    path.write_bytes(("\ufeff" + newline.join(["[run]", "", "seed = 1", ""])).encode())
    raw = read(path)
    assert raw.values == {"run": {"seed": 1}}
    assert raw.origins["run.seed"] == f"{path}:3"


def test_flags_win_over_set_and_set_over_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[run]\nseed = 1\ndevice = 'cpu'\nthreads = 1\n")
    overrides = [Override("run.seed", 3, "--seed"), Override("run.seed", 2, "--set"), parse_set("run.threads=2")]
    raw = read(path, overrides)
    assert raw.values == {"run": {"seed": 3, "device": "cpu", "threads": 2}}
    assert (raw.origins["run.seed"], raw.origins["run.threads"]) == ("--seed", "--set")
    assert raw.origins["run.device"] == f"{path}:3"
    assert raw.replaced == {"run.seed": 1, "run.threads": 1}


def test_a_whole_table_can_be_set():
    raw = read(None, [parse_set("unlearner.training={lr = 1e-3}"), parse_set("unlearner.training.steps=5")])
    assert raw.values == {"unlearner": {"training": {"lr": 1e-3, "steps": 5}}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1e-3", 1e-3),
        ("a=1", 1),
        ("a=true", True),
        ("a=True", "True"),
        ("a=cpu", "cpu"),
        ("a=style:neon", "style:neon"),
        ("a=[1, 2]", [1, 2]),
        ('a="7"', "7"),
        ("a=", ""),
        ("a=x=y", "x=y"),
        ("a= spaced text ", "spaced text"),
        ("a=1\nb = 2", "1\nb = 2"),
        ("a=1 # no comment", 1),
    ],
)
def test_set_takes_a_toml_value_or_text(text, value):
    override = parse_set(text)
    assert override.value == value
    assert type(override.value) is type(value)
    assert override.origin == "--set"


def test_the_flag_says_which_regularizers_and_the_file_how(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[regularizer.pull]\nforce = 2\n[regularizer.push]\nforce = 3\n")
    raw = read(path, [Override("regularizer", ("pull", "drag"), "--regularizer")])
    assert raw.values["regularizer"] == {"pull": {"force": 2}, "drag": {}}
    assert raw.origins["regularizer.pull.force"] == f"{path}:2"
    assert raw.origins["regularizer.drag"] == "--regularizer"
    assert not any("push" in key for key in raw.origins)


def test_a_syntax_error_has_line_and_column(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[run]\nseed = 1 2\n")
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert caught.value.where == f"{path}:2:10"
