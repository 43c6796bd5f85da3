"""Time the project's code against straightforward formulations, in one process, taking turns: ``make bench``.

Each pair is one step of `fit` and one step of what it is compared with, on the same work, one after the other; the
ratio of a pair cancels what else the machine does. Printed: the median of the ratios, the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch

sys.path.insert(0, str(Path(__file__).parent))

import sd14
from reference import fade_step

from vu_core import Edit, Event, ForgetRetain, Model, Run
from vu_diffusers.quiet import quiet
from vu_fade.fade import Fade, FadeConfig

WARM_UP = 1


@attrs.frozen
class Comparison:
    """What was measured.

    Args:
        name: what is compared; target: bound on the median, ``>=`` for speed-ups and ``<=`` for overheads.
        ratios: one per pair; ours, other: median of both sides; unit: what these two are in.
        notes: further numbers.
    """

    name: str
    target: str
    ratios: list[float]
    ours: float
    other: float
    unit: str = "s"
    notes: str = ""

    @property
    def median(self) -> float:
        """Median ratio."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        """Whether the median keeps the bound."""
        bound = float(self.target[2:])
        return self.median >= bound if self.target.startswith(">=") else self.median <= bound

    def line(self) -> str:
        """One line for people."""
        spread = f"({min(self.ratios):.2f} .. {max(self.ratios):.2f}, n = {len(self.ratios)})"
        verdict = "met" if self.met else "MISSED"
        sides = f"{self.ours:.3f} {self.unit} against {self.other:.3f} {self.unit}"
        columns = f"{self.name:<46} {self.median:5.2f} {spread:<24} {self.target:<7} {verdict:<7} {sides}"
        return f"{columns}  {self.notes}".rstrip()


class TakingTurns:
    """A listener of a run that lets the other side do one step after each step of `fit`, and times both."""

    def __init__(self, other: Callable[[], Any]) -> None:
        self.other = other
        self.ours: list[float] = []
        self.others: list[float] = []
        self.before_training: float | None = None
        self.began = self.last = time.perf_counter()

    def __call__(self, event: Event) -> None:
        """Look at progress events of training steps; everything else passes."""
        if event.type != "progress" or "loss_forget" not in event.values:
            return
        if self.before_training is None:
            self.before_training = self.last - self.began
        self.ours.append(time.perf_counter() - self.last)
        start = time.perf_counter()
        self.other()
        self.others.append(time.perf_counter() - start)
        self.last = time.perf_counter()

    def ratios(self, *, speed_up: bool) -> list[float]:
        """Return one ratio per pair, without the warm-up."""
        pairs = list(zip(self.ours, self.others, strict=True))[WARM_UP:]
        return [other / ours if speed_up else ours / other for ours, other in pairs]


def compare(
    name: str,
    target: str,
    config: FadeConfig,
    work: tuple[Model, ForgetRetain, Run],
    other: Callable[[], Any],
) -> Comparison:
    """Run FADE with `fit` while ``other`` takes turns with its steps.

    The first step is a warm-up: it also contains what happens once (with a bank, its answers).
    """
    model, data, run = work
    turns = TakingTurns(other)
    run.emit_event = turns
    edit: Edit = Fade(config).unlearn(model, data, run)
    if not edit.parts:
        raise RuntimeError("the benchmark trained nothing")
    return Comparison(
        name,
        target,
        turns.ratios(speed_up=target.startswith(">=")),
        statistics.median(turns.ours[WARM_UP:]),
        statistics.median(turns.others[WARM_UP:]),
        notes=f"(first step, with the bank: {turns.ours[0]:.1f} s)" if config.teacher_bank else "",
    )


def stable_diffusion(pairs: int, bank: int, folder: Path) -> list[Comparison]:
    """FADE on networks of Stable Diffusion 1.4's size against the reference and against the bare passes."""
    with quiet():
        networks = fade_step.sd14()
    model = sd14.model_of(networks, twin=True)
    bare_model = sd14.model_of(networks, twin=True)
    work = fade_step.make(*networks)
    steps = pairs + WARM_UP
    run = sd14.run_of(folder / "fresh", steps=steps)
    data = sd14.data_of().map(lambda table: model.prepare(table, run))

    def reference() -> None:
        fade_step.step(work)

    bare = sd14.BareLoop(bare_model, data, sd14.run_of(folder / "bare", steps=steps), FadeConfig())
    return [
        compare("SD 1.4 size: FADE, fresh teacher, speed-up", ">=1.3", FadeConfig(), (model, data, run), reference),
        compare(
            f"SD 1.4 size: FADE, teacher bank of {bank}, speed-up",
            ">=1.8",
            FadeConfig(teacher_bank=bank),
            (model, data, sd14.run_of(folder / "bank", steps=steps)),
            reference,
        ),
        compare(
            "SD 1.4 size: a step of fit / the bare passes",
            "<=1.10",
            FadeConfig(),
            (model, data, sd14.run_of(folder / "fit", steps=steps)),
            bare.step,
        ),
    ]


def canvas(pairs: int, folder: Path) -> list[Comparison]:
    """A step of `fit` on the embedded default against the bare passes, batches of 8 + 8."""
    from vu_canvas.model import CanvasDiffusion

    plugin = CanvasDiffusion("", CanvasDiffusion.Config())
    model, twin = (plugin.load(device="cpu", precision="fp32") for _ in range(2))
    steps = pairs + WARM_UP
    run = sd14.run_of(folder / "canvas", steps=steps, batch=8)
    side = model.facts.resolution

    def smaller(table: Any) -> Any:
        return attrs.evolve(table, load=lambda row, g: torch.randn(3, side, side, generator=g))

    data = sd14.data_of(8).map(smaller).map(lambda table: model.prepare(table, run))
    bare = sd14.BareLoop(twin, data, sd14.run_of(folder / "canvas-bare", steps=steps, batch=8), FadeConfig())
    return [compare("canvas: a step of fit / the bare passes", "<=1.15", FadeConfig(), (model, data, run), bare.step)]


def main() -> int:
    """Measure, print, and say with the exit status whether every target was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pairs", type=int, default=7, help="interleaved pairs per comparison, at least 7 for a statement"
    )
    parser.add_argument(
        "--bank",
        type=int,
        default=4,
        help="draws per side in the teacher bank; the time of a step does not depend on it",
    )
    parser.add_argument(
        "--only", choices=("sd14", "canvas", "memory", "munba", "uce", "gs-lora"), help="one group of comparisons"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    found: list[Comparison] = []
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; ratio of the medians of interleaved steps\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "canvas"):
            found += canvas(max(options.pairs, 15), folder)
        if options.only in (None, "sd14"):
            found += stable_diffusion(options.pairs, options.bank, folder)
    if options.only in (None, "memory"):
        import memory

        found += [Comparison(*row) for row in memory.compare()]
    if options.only in (None, "munba"):
        import weighting

        found += [Comparison(*row) for row in weighting.compare(options.pairs)]
    if options.only in (None, "uce"):
        import uce

        found += [Comparison(*row) for row in uce.compare(max(options.pairs, 7))]
    if options.only in (None, "gs-lora"):
        import gs_lora

        with tempfile.TemporaryDirectory() as name:
            found += [Comparison(*row) for row in gs_lora.compare(max(options.pairs, 7), Path(name), TakingTurns)]
    for comparison in found:
        print(comparison.line(), flush=True)
    if options.json:
        rows = [{**attrs.asdict(c), "median": c.median, "met": c.met} for c in found]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(comparison.met for comparison in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
