"""Peak memory of two real FADE steps on networks of Stable Diffusion 1.4's size, each candidate as its own process.

``python benchmarks/memory.py`` compares; ``python benchmarks/memory.py ours|reference`` is one of the processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

STEPS = 2


def peak_bytes() -> int:
    """Return the largest resident set this process has had, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the peak memory of a process")


def forget_peak() -> None:
    """Let the largest resident set be the present one (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def reference() -> Any:
    """Two steps of the straightforward formulation."""
    from reference import fade_step

    networks = fade_step.sd14()
    work = fade_step.make(*networks)
    for _ in range(STEPS):
        fade_step.step(work)
    return networks


def ours() -> Any:
    """Two steps of the project: images encoded, adapter attached, losses, `fit`, edit."""
    import sd14
    from reference import fade_step

    from vu_fade.fade import Fade, FadeConfig

    networks = fade_step.sd14()
    model = sd14.model_of(networks, twin=False)
    with tempfile.TemporaryDirectory() as folder:
        run = sd14.run_of(Path(folder) / "run", steps=STEPS)
        data = sd14.data_of().map(lambda table: model.prepare(table, run))
        edit = Fade(FadeConfig()).unlearn(model, data, run)
    if not edit.parts:
        raise RuntimeError("the benchmark trained nothing")
    return networks


def measured(candidate: str) -> dict[str, int]:
    """Run a candidate as a process and return its peak and the float32 bytes of the pipeline."""
    process = subprocess.run(
        [sys.executable, __file__, candidate], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    numbers: dict[str, int] = json.loads(process.stdout.splitlines()[-1])
    return numbers


def compare() -> list[tuple[str, str, list[float], float, float, str]]:
    """Return name, target, ratios, ours, other and unit of both bounds."""
    ours_, reference_ = measured("ours"), measured("reference")
    peak, other, pipeline = (n / 1e9 for n in (ours_["peak"], reference_["peak"], ours_["pipeline"]))
    return [
        ("SD 1.4 size: peak memory / the reference", "<=1.10", [peak / other], peak, other, "GB"),
        ("SD 1.4 size: peak memory / fp32 pipeline", "<=1.5", [peak / pipeline], peak, pipeline, "GB"),
    ]


def main() -> int:
    """Compare, or be one of the candidates."""
    if len(sys.argv) == 1:
        for name, target, (ratio,), ours_gb, other_gb, _ in compare():
            print(f"{name:<46} {ratio:5.2f}  target {target}  {ours_gb:.2f} GB against {other_gb:.2f} GB")
        return 0
    networks = {"ours": ours, "reference": reference}[sys.argv[1]]()
    pipeline = sum(4 * p.numel() for network in networks[:3] for p in network.parameters())
    print(json.dumps({"peak": peak_bytes(), "pipeline": pipeline}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
