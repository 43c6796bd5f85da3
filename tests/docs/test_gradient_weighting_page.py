"""The numbers of the page on gradient weighting are those of the weightings."""

import math
import re
from pathlib import Path

import pytest
import torch

from vu_core.testing.unlearner_tests import make_axis

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "gradient-weighting.md"


def rows(mark: str) -> list[tuple[float, ...]]:
    """Return the numbers of the table between two comments of the page."""
    (table,) = re.findall(rf"<!-- {mark} -->(.*?)<!-- /{mark} -->", PAGE.read_text(encoding="utf-8"), re.S)
    found = [tuple(map(float, re.findall(r"-?\d+(?:\.\d+)?", line))) for line in table.splitlines()]
    return [row for row in found if len(row) >= 4]


def lengths(weighting: str, c: float) -> tuple[float, float]:
    """Return ``a_r |g_r|`` and ``a_f |g_f|`` for gradients of the norms 2 and 0.5."""
    gram = torch.tensor([[4.0, c], [c, 0.25]], dtype=torch.float64)
    a_r, a_f = make_axis("weighting", {"name": weighting}).coefficients(gram, {}, {})
    return 2 * float(a_r), 0.5 * float(a_f)


@pytest.mark.parametrize("row", rows("nash"), ids=str)
def test_the_table_of_the_nash_solution(row: tuple[float, ...]) -> None:
    c, length, gain, cosine = row
    x, y = lengths("munba", c)
    assert x == pytest.approx(length, abs=5e-5)
    assert y == pytest.approx(length, abs=5e-5)
    assert x + c * y == pytest.approx(gain, abs=5e-5)
    assert (x + c * y) / math.sqrt(2) == pytest.approx(cosine, abs=5e-5)


@pytest.mark.parametrize("row", rows("v1"), ids=str)
def test_the_table_of_the_early_implementation(row: tuple[float, ...]) -> None:
    c, nash, x, y = row
    assert lengths("munba", c)[0] == pytest.approx(nash, abs=5e-5)
    assert lengths("munba-v1-compat", c) == pytest.approx((x, y), abs=5e-5)


def test_there_are_tables() -> None:
    assert (len(rows("nash")), len(rows("v1"))) == (10, 6)
