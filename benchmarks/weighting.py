"""Time and memory of combining two gradients of 100 million numbers with ``munba``.

``python benchmarks/weighting.py ours|reference`` combines once in a process of its own and prints the extra memory.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from memory import peak_bytes
from reference import munba_combine
from torch import Tensor

from vu_core.ops import gram
from vu_core.training.gradients import combine
from vu_munba.bargain import BargainConfig
from vu_munba.munba import Munba

WARM_UP = 1
TOLERANCE = 0.05
"""Of the distance between both: the reference adds up 100 million products in float32, which costs it 1 %."""


def ours(retain: Sequence[Tensor], forget: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Combine as `fit` does it: Gram matrix, coefficients, in place."""
    a_retain, a_forget = Munba(BargainConfig()).coefficients(gram(retain, forget), {}, {})
    return combine(retain, forget, a_retain, a_forget)


def distance(found: Sequence[Tensor | None], expected: Sequence[Tensor]) -> float:
    """Return ``||found - expected|| / ||expected||``."""
    apart = sum(float((g - e).norm()) ** 2 for g, e in zip(found, expected, strict=True) if g is not None)
    return math.sqrt(apart / sum(float(e.norm()) ** 2 for e in expected))


def times(pairs: int) -> tuple[list[float], list[float]]:
    """Let both take turns on the same gradients and return the seconds of each.

    Raises:
        RuntimeError: when the two results differ.
    """
    retain, forget = munba_combine.make()
    untouched = [g.clone() for g in retain]
    mine, other = [], []
    for _ in range(pairs + WARM_UP):
        start = time.perf_counter()
        expected = munba_combine.combine(retain, forget)
        other.append(time.perf_counter() - start)
        start = time.perf_counter()
        found = ours(retain, forget)
        mine.append(time.perf_counter() - start)
        if not mine[WARM_UP:] and distance(found, expected) > TOLERANCE:
            raise RuntimeError("the two combinations differ")
        del expected
        for g, before in zip(retain, untouched, strict=True):
            g.copy_(before)
    return mine[WARM_UP:], other[WARM_UP:]


def extra(candidate: str) -> float:
    """Run a candidate as a process and return by how many bytes one combination raises its peak."""
    process = subprocess.run(
        [sys.executable, __file__, candidate], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return float(json.loads(process.stdout.splitlines()[-1])["extra"])


def compare(pairs: int) -> list[tuple[str, str, list[float], float, float, str]]:
    """Return name, target, ratios, ours, other and unit of both bounds."""
    mine, other = times(pairs)
    ratios = [o / m for m, o in zip(mine, other, strict=True)]
    mine_s, other_s = statistics.median(mine), statistics.median(other)
    mine_gb, other_gb = (extra(candidate) / 1e9 for candidate in ("ours", "reference"))
    return [
        ("100 M numbers: combining with munba, speed-up", ">=2.0", ratios, mine_s, other_s, "s"),
        ("100 M numbers: extra memory / the reference", "<=0.5", [mine_gb / other_gb], mine_gb, other_gb, "GB"),
    ]


def main() -> int:
    """Be one of the candidates."""
    retain, forget = munba_combine.make()
    before = peak_bytes()
    combined = {"ours": ours, "reference": munba_combine.combine}[sys.argv[1]](retain, forget)
    print(json.dumps({"extra": peak_bytes() - before, "tensors": len(combined)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
