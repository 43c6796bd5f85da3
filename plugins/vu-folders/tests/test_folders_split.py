"""How data is separated into train, validation and held-out."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vu_core import DataError
from vu_folders.rows import Row, divide
from vu_folders.settings import ImageSettings


def rows(side: str, contents: list[str]) -> tuple[Row, ...]:
    return tuple(
        Row(Path(f"{side}{i}.png"), f"{side}{i}.png", f"caption {i}", "", {}, "", content)
        for i, content in enumerate(contents)
    )


def numbered(side: str, count: int) -> tuple[Row, ...]:
    import hashlib

    return rows(side, [hashlib.sha256(f"{side}{i}".encode()).hexdigest() for i in range(count)])


@settings(deadline=None)
@given(st.integers(3, 60), st.integers(3, 60), st.floats(0.01, 0.3), st.floats(0.01, 0.3))
def test_parts_are_disjoint_and_cover(forget: int, retain: int, validation: float, held_out: float) -> None:
    fractions = ImageSettings(validation=validation, held_out=held_out)
    sides = divide(numbered("f", forget), numbered("r", retain), fractions)
    for side, count in (("forget", forget), ("retain", retain)):
        parts = {split: {row.name for row in sides.parts[split, side]} for split in ("train", "validation", "held-out")}
        assert sum(map(len, parts.values())) == count
        assert len(set.union(*parts.values())) == count
        assert len(parts["held-out"]) == max(1, int(held_out * count + 1e-9))
        assert len(parts["validation"]) == max(1, int(validation * count + 1e-9))


def test_it_is_decided_by_content_not_by_name_or_order() -> None:
    before = numbered("f", 20)
    renamed = tuple(attrs.evolve(row, name=f"other{i}") for i, row in enumerate(reversed(before)))
    held = {row.content for row in divide(before, (), ImageSettings()).parts["held-out", "forget"]}
    assert held == {row.content for row in divide(renamed, (), ImageSettings()).parts["held-out", "forget"]}


def test_equal_images_stay_together() -> None:
    contents = [f"{i // 4:064d}" for i in range(40)]  # ten images, four copies each
    sides = divide(rows("f", contents), (), ImageSettings(validation=0.2, held_out=0.2))
    parts = [{row.content for row in sides.parts[split, "forget"]} for split in ("train", "validation", "held-out")]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert len(set.union(*parts)) == 10


def test_an_image_on_both_sides_is_trained_on() -> None:
    shared = f"{0:064d}"  # would be first, hence held out
    usual = ImageSettings()
    sides = divide((*numbered("f", 9), *rows("x", [shared])), (*numbered("r", 9), *rows("y", [shared])), usual)
    for side in ("forget", "retain"):
        assert shared in {row.content for row in sides.parts["train", side]}


@pytest.mark.parametrize(
    ("count", "settings", "fits"),
    [
        (2, ImageSettings(), False),
        (3, ImageSettings(), True),
        (2, ImageSettings(validation=0), True),
        (1, ImageSettings(validation=0), False),
        (1, ImageSettings(validation=0, held_out=0), True),
        (10, ImageSettings(validation=0.6, held_out=0.6), False),
        (10, ImageSettings(validation=0.5, held_out=0.5), False),
    ],
)
def test_few_images(count: int, settings: ImageSettings, fits: bool) -> None:
    if fits:
        sides = divide(numbered("f", count), (), settings)
        assert len(sides.parts["train", "forget"]) >= 1
        return
    with pytest.raises(DataError) as caught:
        divide(numbered("f", count), (), settings)
    assert caught.value.code == "VU-D076"
    assert "held_out" in caught.value.remedy


def test_limits_are_for_training_only() -> None:
    whole = divide(numbered("f", 30), numbered("r", 30), ImageSettings())
    less = divide(numbered("f", 30), numbered("r", 30), ImageSettings(max_forget=5, max_retain=7))
    assert len(less.parts["train", "forget"]) == 5
    assert len(less.parts["train", "retain"]) == 7
    assert less.parts["held-out", "forget"] == whole.parts["held-out", "forget"]
    assert less.parts["train", "forget"] == whole.parts["train", "forget"][:5]
    assert less.digest != whole.digest


def test_digest_sees_everything() -> None:
    settings = ImageSettings()
    base = numbered("f", 5)
    digests = {divide(base, numbered("r", 5), settings).digest}
    for change in ({"caption": "other"}, {"overwrite": "other"}, {"content": "0" * 64}, {"name": "other"}):
        changed = (attrs.evolve(base[0], **change), *base[1:])
        digests.add(divide(changed, numbered("r", 5), settings).digest)
    digests.add(divide(numbered("r", 5), base, settings).digest)
    assert len(digests) == 6
