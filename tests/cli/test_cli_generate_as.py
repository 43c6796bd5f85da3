"""`vu generate --as ... --scale ...`: the models that an edit gives, each in a column of its own."""

import json
from pathlib import Path

import pytest
from PIL import Image

ORIGINAL, UNLEARNED, LEARNED = 100, 20, 180
"""Grey values of a slot that loses 0.8 of its light."""


def greys(file: str = "x.png") -> list[int]:
    """Return the grey value in the middle of each column, and the size of a column is 64."""
    with Image.open(file) as image:
        assert image.height in (64, 64 + 14)
        columns = (image.width + 8) // (64 + 8)
        assert image.width == columns * (64 + 8) - 8
        return [image.getpixel((place * 72 + 2, image.height - 2))[0] for place in range(columns)]


def generate(vu, slots, *words):
    done = vu("generate", "0", "slot 0", "--out", "x.png", *words, plugins=slots)
    assert done.status == 0, done.err
    return done


@pytest.mark.parametrize("kind", ["sparse", "low-rank", "replace"])
def test_every_kind_of_part_gives_all_three_models(vu, slots, erased, kind):
    erased("0", strength=0.8, kind=kind)
    generate(vu, slots, "--as", "original", "--as", "unlearned", "--as", "learned")
    assert greys() == [ORIGINAL, UNLEARNED, LEARNED]


def test_without_as_it_is_before_and_after(vu, slots, erased):
    erased("0", strength=0.8)
    done = generate(vu, slots)
    assert greys() == [ORIGINAL, UNLEARNED]
    assert done.out == "Before (left) and after (right) written to x.png\n"
    with Image.open("x.png") as image:
        assert image.text == {"prompt": "slot 0", "seed": "0"}


def test_a_single_model_is_an_image_and_nothing_else(vu, slots, erased):
    erased("0", strength=0.8)
    done = generate(vu, slots, "--as", "learned", "--seed", "3")
    with Image.open("x.png") as image:
        assert image.size == (64, 64)
        assert image.text == {"prompt": "slot 0", "seed": "3", "as": "learned"}
    assert greys() == [LEARNED + 3]
    assert done.out == "Learned written to x.png\n"


def test_columns_stand_in_the_order_in_which_they_were_named(vu, slots, erased):
    erased("0", strength=0.8)
    done = generate(vu, slots, "--as", "learned", "--as", "original", "--json")
    assert greys() == [LEARNED, ORIGINAL]
    document = json.loads(done.out)
    assert (document["as"], document["scale"], document["width"]) == (["learned", "original"], 1.0, 136)
    assert document["file"] == "x.png"


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("0.5", [100, 60, 140]), ("-1", [100, 180, 20]), ("0", [100, 100, 100]), ("1.25", [100, 0, 200])],
)
def test_the_scale_multiplies_the_edit(vu, slots, erased, scale, expected):
    erased("0", strength=0.8)
    generate(vu, slots, "--as", "original", "--as", "unlearned", "--as", "learned", "--scale", scale)
    assert greys() == expected
    generate(vu, slots, "--scale", scale)
    assert greys() == expected[:2]
    with Image.open("x.png") as image:
        assert image.text == {"prompt": "slot 0", "seed": "0", "scale": repr(float(scale))}


def test_the_words_stand_above_their_images(vu, slots, erased):
    erased("0")
    labels = []
    for words in (["original", "learned"], ["original", "unlearned"]):
        generate(vu, slots, *(word for each in words for word in ("--as", each)))
        with Image.open("x.png") as image:
            labels.append([image.crop((left, 0, left + 64, 14)).tobytes() for left in (0, 72)])
    assert labels[0][0] == labels[1][0]
    assert labels[0][1] != labels[1][1]
    assert len(set(labels[0])) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--as", "forgotten"],
        ["--as", "learned", "--as", "learned"],
        ["--scale", "nan"],
        ["--scale", "-inf"],
        ["--scale", "much"],
    ],
)
def test_wrong_usage_writes_nothing(vu, slots, erased, words):
    erased("0")
    done = vu("generate", "0", "slot 0", "--out", "x.png", *words, plugins=slots)
    assert (done.status, "VU-C120" in done.err) == (2, True)
    assert not Path("x.png").exists()


def test_the_help_shows_no_range_where_there_is_none(vu, slots):
    text = " ".join(vu("generate", "--help", plugins=slots).out.split())
    assert "0 is none, 1 what was trained, -1 its opposite. --seed N" in text
