"""The renderer: deterministic, independent of the order of calls, disjoint splits, helpful errors."""

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from vu_canvas.render import OBJECTS, SIZE, SPLITS, STYLES, prompt, render

PAIRS = list(itertools.product(OBJECTS, STYLES))

GOLDENS = {
    "flat": "3822c22fb258b245",
    "outline": "95ef7d72ba7a3c1d",
    "stripes": "c35befdd089c0eb5",
    "dots": "10fa5fc2e11528c9",
    "checker": "d2b94435e60e418c",
    "gradient": "7f18bd0ad913de5a",
    "neon": "a5ae9fe49036d9b4",
    "pixel": "41274fa93dd73f62",
    "shadow": "462844da54364206",
    "sketch": "87292e6ed375f03b",
}


def test_words() -> None:
    assert OBJECTS == ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon", "arrow", "flower")
    assert STYLES == (
        "flat", "outline", "stripes", "dots", "checker", "gradient", "neon", "pixel", "shadow", "sketch",
    )  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_goldens(style: str) -> None:
    digest = hashlib.sha256()
    for word, index in itertools.product(OBJECTS, (0, 1_000_000, 2_000_000)):
        digest.update(render(word, style, index).tobytes())
    assert digest.hexdigest()[:16] == GOLDENS[style]


@pytest.mark.parametrize(("word", "style"), PAIRS)
def test_shape_type_and_contrast(word: str, style: str) -> None:
    image = render(word, style, 5)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert image.mean(axis=2).std() > 8 or image.std(axis=(0, 1)).max() > 25


def test_order_of_calls_does_not_matter() -> None:
    forwards = [render(word, style, 3) for word, style in PAIRS]
    backwards = [render(word, style, 3) for word, style in reversed(PAIRS)]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, other)


def test_global_random_state_is_neither_read_nor_written() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    one = render("heart", "sketch", 9)
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    np.random.seed(2)
    np.testing.assert_array_equal(one, render("heart", "sketch", 9))


@pytest.mark.parametrize("change", [{"object": "ring"}, {"style": "dots"}, {"index": 8}, {"seed": 1}])
def test_every_argument_changes_the_image(change: dict[str, object]) -> None:
    base: dict[str, object] = {"object": "star", "style": "stripes", "index": 7, "seed": 0}
    assert (render(**base) != render(**(base | change))).any()  # type: ignore[arg-type]


def test_no_image_repeats() -> None:
    seen = {render("circle", "flat", index).tobytes() for index in range(300)}
    assert len(seen) == 300


def test_splits_are_disjoint() -> None:
    assert set(SPLITS) == {"train", "validation", "held-out"}
    for one, other in itertools.combinations(SPLITS.values(), 2):
        assert one.stop <= other.start or other.stop <= one.start


def test_object_stays_on_the_canvas() -> None:
    for word, index in itertools.product(OBJECTS, range(40)):
        image = render(word, "flat", index).astype(int)
        ground = image[0, 0]
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (np.abs(border - ground).max(axis=1) > 40).mean() < 0.05, (word, index)


def test_prompt() -> None:
    assert prompt("arrow", "outline") == "A arrow image in outline style."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stern", "neon", 0), "unknown object 'stern'; objects are: circle, square"),
        (("star", "neno", 0), "unknown style 'neno'; styles are: flat, outline"),
        (("star", "neon", -1), "index and seed must be at least 0"),
        (("star", "neon", 0, -1), "index and seed must be at least 0"),
    ],
)
def test_errors(arguments: tuple[str, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(*arguments)


def test_package_and_renderer_import_nothing_heavy() -> None:
    code = (
        "import sys, vu_canvas; light = 'numpy' not in sys.modules; import vu_canvas.render;"
        "print(light, not {'torch', 'diffusers', 'transformers', 'PIL'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "True"]
