"""What a run will cost, estimated from facts that need no weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vu_core.atomic import write_text
from vu_core.blame import asked
from vu_core.cache import cache_root
from vu_core.config import RunConfig
from vu_core.data import Manifest
from vu_core.plan import Capability, Cost, ModelFacts, Plan

if TYPE_CHECKING:
    from vu_core.training import Training

# Passes through the network per example and optimiser step, in units of one forward pass: that of the teacher, that of
# the student, and a backward pass that costs twice a forward pass.
TRAINING_PASSES = 4.0
ATTRIBUTION_PASSES = 3.0
# Activations kept for the backward pass, bytes per multiply-add of a forward pass in fp32: a rough figure for U-Nets.
ACTIVATION_BYTES = 0.02
RUNTIME_BYTES = 600 * 2**20
# A shorter training shows how long a start takes, not how fast the machine is.
TELLING_SECONDS, TELLING_STEPS = 20.0, 20
START_SECONDS = 8.0
# 10^9 multiply-adds per second before a machine has been measured: per thread of a CPU, and of a GPU.
CPU_SPEED, GPU_SPEED = 12.0, 3000.0
ADAPTER_SHARE = 0.02
BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2}


def estimate(config: RunConfig, facts: ModelFacts, manifest: Manifest) -> Cost:
    """Estimate time, memory, disk, images and downloads of a run.

    Time is (multiply-adds of attribution, training and measuring) / (speed of the machine), where the speed is what
    earlier runs on this device reached (`remember_speed`), else a default. ``before`` is counted although it may come
    from the cache: the estimate is an upper one.

    Args:
        config: what is run.
        facts: what the model's files tell.
        manifest: what the data counts.

    Returns:
        seconds, peak bytes of memory, bytes on disk, number of images, bytes to download.
    """
    work = training_work(config, facts, manifest)
    images = count_images(config, facts, manifest)
    work += images * _image_work(config, facts)
    return Cost(
        seconds=START_SECONDS + work / speed_of(config.run.device, config.run.threads),
        memory=_memory(config, facts),
        disk=_disk(config, facts),
        images=images,
        downloads=facts.downloads,
    )


def steps_of(config: RunConfig, manifest: Manifest) -> int | None:
    """Return the optimiser steps of a run of one process; ``None`` for a method that is not trained.

    Counts as `vu_core.training.fit` does: only the sides that the weighting uses, both where their conflict is told.
    """
    from vu_core.training import planned_steps
    from vu_core.training.gradients import constant_coefficients, needed_sides

    training = training_of(config)
    if training is None:
        return None
    needed = needed_sides(constant_coefficients(None, {}))
    if training.gradient_conflict:
        needed = needed_sides(None)
    elif config.weighting is not None:
        plugin = config.weighting.entry.load()
        with asked(config.weighting.entry):
            needed = needed_sides(constant_coefficients(plugin(config.weighting.config), {}))
    forget = manifest.counts.get("train/forget", 1) * needed["forget"]
    retain = manifest.counts.get("train/retain", 0) * needed["retain"]
    return planned_steps(training, forget or retain or 1, n_retain=retain)


def training_of(config: RunConfig) -> Training | None:
    """Return the settings of `fit`; ``None`` for a method that is not trained."""
    from vu_core.training import Training

    training = getattr(config.unlearner.config, "training", None)
    return training if isinstance(training, Training) else None


def training_work(config: RunConfig, facts: ModelFacts, manifest: Manifest) -> float:
    """Return the 10^9 multiply-adds of the method, its attribution included."""
    forget = manifest.counts.get("train/forget", 1)
    retain = manifest.counts.get("train/retain", forget)
    work = facts.forward_gflops * ATTRIBUTION_PASSES * forget if config.attribution is not None else 0.0
    training, steps = training_of(config), steps_of(config, manifest)
    if not getattr(config.unlearner.entry.load(), "uses_examples", True):
        return work
    if training is None or steps is None:
        return work + facts.forward_gflops * ATTRIBUTION_PASSES * (forget + retain)
    examples = 2 * training.batch_size * training.accumulation * steps
    return work + facts.forward_gflops * TRAINING_PASSES * examples


def count_images(config: RunConfig, facts: ModelFacts, manifest: Manifest) -> int:
    """Return how many images measuring draws, before and after together."""
    if Capability.GENERATE not in facts.capabilities:
        return 0
    drawing = any("generate" in choice.entry.needs for choice in config.metrics)
    items = manifest.counts.get("evaluation/items")
    if items is None:
        items = math.prod(len(values) for values in manifest.axes.values()) if manifest.axes else 0
    return 2 * (items * config.measure.seeds * drawing + config.measure.samples)


def speed_of(device: str, threads: int | None) -> float:
    """Return 10^9 multiply-adds per second: remembered from earlier runs, else a default."""
    kind, count = _machine(device, threads)
    remembered = _remembered().get(f"{kind}/{count}")
    if isinstance(remembered, int | float) and remembered > 0:
        return float(remembered)
    return CPU_SPEED * count if kind == "cpu" else GPU_SPEED


def remember_speed(plan: Plan, seconds: float) -> None:
    """Keep the speed that the method of a finished run reached, for the next estimate.

    Only a training of at least `TELLING_STEPS` steps and `TELLING_SECONDS` is kept: in a shorter one, and in a method
    without steps, the time goes into what happens once (encoding, compiling, checking), which no step repeats.

    Args:
        plan: what was run.
        seconds: wall time of its stage ``unlearn``, in which all of the planned work was done: nothing came from the
            cache or from an earlier sitting.
    """
    config: RunConfig = plan.config
    work = training_work(config, plan.model, plan.manifest)
    if seconds < TELLING_SECONDS or (steps_of(config, plan.manifest) or 0) < TELLING_STEPS or work <= 0:
        return
    kind, count = _machine(config.run.device, config.run.threads)
    known = {**_remembered(), f"{kind}/{count}": work / seconds}
    write_text(_speed_file(), json.dumps(known, sort_keys=True))


def _machine(device: str, threads: int | None) -> tuple[str, int]:
    """Return the kind of device and how many threads really compute at a time: no more than there are cores."""
    kind, cores = device.partition(":")[0], os.cpu_count() or 1
    return kind, min(threads or cores, cores) if kind == "cpu" else 1


def _speed_file() -> Path:
    return cache_root() / "speed.json"


def _remembered() -> Mapping[str, Any]:
    try:
        known = json.loads(_speed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # an estimate needs no file: the default speed is used
    return known if isinstance(known, dict) else {}


def _image_work(config: RunConfig, facts: ModelFacts) -> float:
    generation = facts.generation
    steps = config.measure.steps if config.measure.steps is not None else generation.get("steps", 50)
    guidance = config.measure.guidance if config.measure.guidance is not None else generation.get("guidance", 7.5)
    return float(facts.forward_gflops * steps * (1 if guidance == 1 else 2))


def _memory(config: RunConfig, facts: ModelFacts) -> int:
    width = BYTES_OF[config.run.precision]
    network = facts.parameters * width
    training = training_of(config)
    batch = training.batch_size if training is not None else 1
    trained = _trained(config, facts)
    # Gradients of both sides and two moments of the optimiser, in fp32.
    state = trained * 4 * (4 if training is not None else 1)
    activations = facts.forward_gflops * 1e9 * ACTIVATION_BYTES * 2 * batch * width / 4
    return int(RUNTIME_BYTES + network + state + activations)


def _disk(config: RunConfig, facts: ModelFacts) -> int:
    trained = _trained(config, facts)
    images = 2 * config.measure.samples * facts.resolution**2 * 3
    # The edit, and for what is trained two checkpoints of weights and two moments.
    copies = 1 if training_of(config) is None else 1 + 2 * 3
    return int(trained * 4 * copies + 2 * images + 2**20)


def _trained(config: RunConfig, facts: ModelFacts) -> int:
    """Return about how many numbers are trained."""
    if config.parameters is None or config.parameters.name == "full":
        return facts.parameters
    rank = getattr(config.parameters.config, "rank", 4)
    return int(facts.parameters * min(1.0, ADAPTER_SHARE * rank / 4))
