"""The data plugin ``prompts``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vu_core import DataError, Manifest, Run
from vu_core.testing import DatasetTests
from vu_folders.plugin import vu_check_plan
from vu_folders.prompts import Config, Prompts


class TestPrompts(DatasetTests):
    plugin = Prompts
    settings = {"retain": ("dog", "fox")}
    forget = ("cat", "Siamese cat")
    other_forget = ("lion",)
    overwrite = ("horse",)
    other_values = {
        "templates": ("{}",),
        "evaluation_templates": ("{} in a garden",),
        "retain": ("dog",),
        "retain_file": "elsewhere",
    }


def parsed(forget: Sequence[str], overwrite: Sequence[str] = (), **settings: Any) -> tuple[Prompts, Any]:
    data = Prompts("", Config(**settings))
    return data, data.parse(forget, overwrite)


def manifest(forget: Sequence[str], overwrite: Sequence[str] = (), **settings: Any) -> Manifest:
    data, selection = parsed(forget, overwrite, **settings)
    return data.manifest(selection)


def test_every_template_makes_an_example_of_every_word(run: Run) -> None:
    data, selection = parsed(("cat", "lion"), ("dog", "horse"), templates=("a {}", "{}!"), retain=("fox",))
    built = data.build(selection, resolution=64, run=run)
    assert built.forget.captions == ("a cat", "cat!", "a lion", "lion!")
    assert built.forget.overwrites == ("a dog", "dog!", "a horse", "horse!")
    assert built.forget.labels["concept"] == ("cat", "cat", "lion", "lion")
    assert built.retain.captions == ("a fox", "fox!")
    assert built.retain.overwrites is None
    assert (len(built.validation_forget), len(built.validation_retain)) == (0, 0)


def test_without_overwrite_the_empty_prompt_takes_the_place(run: Run) -> None:
    data, selection = parsed(("cat",))
    assert selection.concepts[0].overwrite is None
    assert "empty prompt" in selection.notes[0]
    built = data.build(selection, resolution=64, run=run)
    assert built.forget.captions == ("a photo of cat", "cat")
    assert built.forget.overwrites == ("", "")
    assert len(built.retain) == 0


def test_measure_asks_other_prompts_than_the_method_sees(run: Run) -> None:
    data, selection = parsed(("cat",), ("dog",), retain=("fox",), evaluation_templates=("a {} at sea", "two {}s"))
    asked = data.evaluation(selection, split="held-out", seeds=(7, 8), samples=3, resolution=64, run=run)
    found = [(item.prompt, item.seed, item.forget) for item in asked.items]
    assert found == [
        (prompt, seed, forget)
        for word, forget in (("cat", True), ("fox", False))
        for prompt in (f"a {word} at sea", f"two {word}s")
        for seed in (7, 8)
    ]
    assert [item.prompt for item in asked.samples] == ["a cat at sea", "two cats", "a fox at sea"]
    assert asked.examples is None
    assert asked.judge is None


def test_words_to_retain_come_from_the_settings_and_from_a_file(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "kept.txt"
    path.write_text("fox\n\n  red   panda \r\n", encoding="utf-8")
    data, selection = parsed(("cat",), templates=("{}",), retain=("dog",), retain_file=str(path))
    assert data.build(selection, resolution=64, run=run).retain.captions == ("dog", "fox", "red panda")
    first = data.manifest(selection)
    assert first.counts["train/retain"] == 3
    path.write_text("fox\n", encoding="utf-8")
    assert manifest(("cat",), templates=("{}",), retain=("dog",), retain_file=str(path)).digest != first.digest


def test_the_digest_is_that_of_what_is_written_down() -> None:
    base = manifest(("cat",), ("dog",))
    changed = [
        manifest(("cat",), ("fox",)),
        manifest(("cat",)),
        manifest(("lion",), ("dog",)),
        manifest(("cat",), ("dog",), templates=("{}",)),
        manifest(("cat",), ("dog",), retain=("fox",)),
        manifest(("cat",), ("dog",), evaluation_templates=("{}",)),
    ]
    assert len({base.digest, *(each.digest for each in changed)}) == 7


@pytest.mark.parametrize(
    ("forget", "overwrite", "settings", "code", "said"),
    [
        ((), (), {}, "VU-D097", "not said"),
        (("cat", "Cat"), (), {}, "VU-D097", "named twice"),
        ((" ",), (), {}, "VU-D097", "empty"),
        (("class:cat",), (), {}, "VU-D097", "'class:cat'"),
        (("cat",), ("class:dog",), {}, "VU-D097", "'class:dog'"),
        (("cat", "lion", "lynx"), ("dog", "fox"), {}, "VU-D097", "3 concepts to forget and 2 overwrites"),
        (("cat", "dog"), ("Dog",), {}, "VU-D074", "'Dog'"),
        (("cat",), (), {"retain": ("CAT",)}, "VU-D097", "to be retained"),
        (("cat",), (), {"retain": ("dog", "dog")}, "VU-D097", "'dog' is named twice"),
        (("cat",), (), {"retain_file": "nowhere.txt"}, "VU-D070", "nowhere.txt"),
    ],
)
def test_what_cannot_be_used(
    forget: tuple[str, ...], overwrite: tuple[str, ...], settings: dict[str, Any], code: str, said: str
) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        manifest(forget, overwrite, **settings)
    assert caught.value.code == code
    assert caught.value.where.startswith("data.")


def test_a_colon_with_a_space_is_text() -> None:
    assert parsed(("Alien: Covenant",))[1].concepts[0].labels == {"concept": "Alien: Covenant"}


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError) as caught:
        manifest(("cat",), retain_file=str(path))
    assert caught.value.code == "VU-D071"
    path.write_text("fox\nclass:dog\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        manifest(("cat",), retain_file=str(path))
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("templates", [(), ("no gap",), ("{} and {}",), ("{word}",)])
def test_a_template_has_one_gap(templates: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must hold"):
        Config(templates=templates)
    with pytest.raises(ValueError, match="must hold"):
        Config(evaluation_templates=templates)


def test_prompts_take_no_place(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Prompts(str(tmp_path), Config())
    assert caught.value.code == "VU-D096"


class NeedsImages:
    """A method as most are."""


class WordsAlone:
    """A method that looks at captions."""

    uses_images = False


class NoExamples:
    """A method that looks at nothing."""

    uses_examples = False


def plan(method: type, data: type) -> Any:
    choices = {
        kind: SimpleNamespace(name=plugin.__name__, entry=SimpleNamespace(load=lambda plugin=plugin: plugin))
        for kind, plugin in (("unlearner", method), ("data", data))
    }
    return SimpleNamespace(config=SimpleNamespace(**choices))


def test_a_method_that_looks_at_images_is_refused_at_the_plan() -> None:
    with pytest.raises(DataError, match="'NeedsImages' looks at images") as caught:
        vu_check_plan(plan(NeedsImages, Prompts))
    assert caught.value.code == "VU-D098"


@pytest.mark.parametrize("method", [WordsAlone, NoExamples])
def test_a_method_that_looks_at_none_is_not(method: type) -> None:
    vu_check_plan(plan(method, Prompts))


def test_data_with_images_suit_every_method() -> None:
    vu_check_plan(plan(NeedsImages, SimpleNamespace))  # type: ignore[arg-type]
