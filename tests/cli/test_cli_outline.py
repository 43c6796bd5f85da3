"""Long names in narrow tables."""

import io

import pytest
from rich.console import Console

from vu_cli import outline, render
from vu_core import Table

BLOCK = "unet.mid_block.attentions.0.attn1"
NAMES = ["unet.conv_in", f"{BLOCK}.to_k", f"{BLOCK}.to_out.0", f"{BLOCK}.to_q"]


def lines(table: Table, width: int) -> list[str]:
    stream = io.StringIO()
    render._print(Console(file=stream, width=width), render._renderable(table, width))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_names_that_fit_stay_whole():
    assert outline.split(NAMES, 100) == [("", name) for name in NAMES]


def test_headings_take_no_more_words_than_needed():
    assert outline.split(NAMES, 28) == [
        ("unet", "conv_in"),
        ("unet.mid_block", "attentions.0.attn1.to_k"),
        ("unet.mid_block", "attentions.0.attn1.to_out.0"),
        ("unet.mid_block", "attentions.0.attn1.to_q"),
    ]


def test_a_number_alone_is_never_what_is_left():
    assert outline.split(NAMES, 8) == [
        ("unet", "conv_in"),
        (BLOCK, "to_k"),
        (BLOCK, "to_out.0"),
        (BLOCK, "to_q"),
    ]


@pytest.mark.parametrize("room", [-5, 0, 3])
def test_names_whose_ends_do_not_fit_stay_whole(room):
    assert outline.split(NAMES, room) == [("", name) for name in NAMES]


def test_underscores_separate_where_there_are_no_dots():
    assert outline.split(["lora_unet_mid_to_q", "lora_unet_up"], 4) == [("lora_unet_mid", "to_q"), ("lora_unet", "up")]


def test_sentences_are_no_names():
    names = ["It is large. It is red.", "unet.conv"]
    assert outline.split(names, 6) == [("", name) for name in names]


def test_a_narrow_table_is_an_outline_with_one_head_and_aligned_columns():
    rows = tuple((name, number, None) for number, name in enumerate(NAMES, 1))
    assert lines(Table("Modules", ("module", "rank", "density"), rows, ("a note",)), 34) == [
        "Modules",
        "module              rank  density",
        "─────────────────────────────────",
        "unet",
        "  conv_in              1",
        "unet.mid_block.attentions",
        "  0.attn1.to_k         2",
        "  0.attn1.to_out.0     3",
        "  0.attn1.to_q         4",
        "  a note",
    ]


def test_heads_are_folded_before_names_are():
    table = Table("", ("module", "zero_percent"), (("unet.mid_block", 1), ("unet.conv_in", 2)))
    assert lines(table, 24)[:3] == ["                  zero_", "module          percent", "─" * 23]
    assert lines(table, 28)[0] == "module          zero_percent"


def test_a_wide_table_shows_whole_names():
    rows = tuple((name, number) for number, name in enumerate(NAMES, 1))
    shown = lines(Table("", ("module", "rank"), rows), 60)
    assert [line.split()[0] for line in shown[-len(NAMES) :]] == NAMES


def test_a_table_without_rows_shows_its_head():
    assert lines(Table("", ("module", "rank"), ()), 20)[0] == "module  rank"
