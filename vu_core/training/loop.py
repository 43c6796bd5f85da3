"""The one training loop."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from vu_core.contracts import Theta
from vu_core.data import Examples, ForgetRetain, Side
from vu_core.errors import RecordError, UnlearnError
from vu_core.ops.norms import clip_to_norm
from vu_core.run import Run
from vu_core.training import checkpoint as checkpoints
from vu_core.training.checkpoint import Checkpoint
from vu_core.training.gradients import SIDES, Combined, Gradients, Losses, constant_coefficients, needed_sides
from vu_core.training.order import Order, sides_of
from vu_core.training.processes import Processes, process_group
from vu_core.training.scale import LossScale
from vu_core.training.settings import Training, check_warmup, epoch_steps, learning_rate, planned_steps

ROUNDING = 1e-12
"""A sum of two gradients whose square is at most this share of their squares is nothing but rounding."""


def fit(
    theta: Theta,
    losses: Losses,
    data: ForgetRetain,
    run: Run,
    name: str = "main",
    regularizer_data: ForgetRetain | None = None,
) -> None:
    """Train ``theta`` on the losses of a method, as ``run.training`` says.

    Each optimiser step draws one batch per side, computes ``g = a_retain g_retain + a_forget g_forget`` with the
    weighting of the run, adds the penalties of its regularizers, scales ``g`` down to ``max_grad_norm`` and takes one
    step of AdamW or SGD. Progress is emitted at every step, a checkpoint is written every ``checkpoint_every`` seconds,
    at the end and when the user interrupts. When the run is resuming, the newest whole checkpoint of the phase is
    continued; a finished phase is skipped. On one machine with the same settings a resumed run ends bitwise as an
    uninterrupted one.

    Args:
        theta: what is trained; attached to a model that is in eval mode and stays in it.
        losses: called with the batches ``forget``, ``retain`` or both; returns one scalar per key it was handed, the
            mean over the batch, computed in float32. With a linear weighting it gets both keys at once. Its random
            numbers come from the batches; PyTorch's global generator is seeded per step.
        data: train examples of both sides; an empty side is left out.
        run: settings, randomness, folder, events.
        name: of the phase; a method with several calls of `fit` names each, in lower-case words.
        regularizer_data: what regularizers are prepared on, when ``data`` holds tables that the method made for itself
            (a bank of answers has no latents and repeats rows); ``data`` when absent.

    Raises:
        ConfigError: ``VU-C030`` warm-up too long; ``VU-C031`` not exactly one of steps and epochs.
        UnlearnError: ``VU-U030`` nothing to train; ``VU-U031`` a loss or gradient that is not finite; ``VU-U032``
            losses that do not fit the batches; ``VU-U033`` no gradient arrives; ``VU-U034`` no examples; ``VU-U035`` a
            phase name used twice; ``VU-U037`` a phase name that cannot be part of a file name.
        RecordError: ``VU-R030`` the checkpoint belongs to other parameters.

    Example:
        A whole method::

            theta = run.parameterise(model)
            fit(theta, lambda batches: {side: loss_of(model, batch) for side, batch in batches.items()}, data, run)
            return theta.edit()

    Source:
        AdamW: Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101.
    """
    phase = _Phase.begin(theta, losses, data, run, name)
    phase.resume_or_prepare(data if regularizer_data is None else regularizer_data)
    devices = [theta.parameters()[0].device] if theta.parameters()[0].is_cuda else []
    # Once around all steps: every step seeds the global generators itself, and what the caller had comes back at the
    # end.
    with torch.random.fork_rng(devices=devices):
        phase.train()


def total_steps(data: ForgetRetain, run: Run) -> int:
    """Return the number of optimiser steps that `fit` would take on the data.

    Counts only the sides that the run's weighting uses, and all processes that share a batch; asking starts their
    group, so every process must ask. For methods that hand `fit` other tables than they were handed, such as a bank. A
    regularizer that asks while it is prepared hears the steps of that `fit`, whatever the data.

    Raises:
        ConfigError: ``VU-C031`` not exactly one of steps and epochs. UnlearnError: ``VU-U034`` no examples.
    """
    if run.fitting is not None:
        return run.fitting[0]
    if run.training is None:
        raise RuntimeError("total_steps needs run.training: the method's Config has no field 'training'")
    sides = sides_of(data, needed_sides(_joint_coefficients(run)))
    return _steps(run.training, sides, process_group(torch.device(run.device)))


def steps_per_epoch(data: ForgetRetain, run: Run) -> int:
    """Return the number of optimiser steps of an epoch of `fit` on the data, for what changes from epoch to epoch.

    A regularizer that asks while it is prepared hears the epoch of that `fit`, whatever the data.

    Raises:
        UnlearnError: ``VU-U034`` no examples.
    """
    if run.fitting is not None:
        return run.fitting[1]
    if run.training is None:
        raise RuntimeError("steps_per_epoch needs run.training: the method's Config has no field 'training'")
    sides = sides_of(data, needed_sides(_joint_coefficients(run)))
    return _per_epoch(run.training, sides, process_group(torch.device(run.device)))


def calls_per_step(data: ForgetRetain, run: Run) -> tuple[tuple[Side, ...], ...]:
    """Return the sides that `fit` hands to the losses in each of its calls for one portion of a step.

    One call with all sides under a linear weighting, one call per side under any other. Sides that have no examples or
    that the weighting leaves out are not among them; a step on retain examples alone (``training.exhausted``) has no
    forget side. For methods that compute ahead what a step will need.

    Raises:
        UnlearnError: ``VU-U034`` no examples.

    Example:
        FADE under ``simple``: ``(("forget", "retain"),)``; under ``none``: ``(("forget",),)``; under a weighting that
        looks at the Gram matrix: ``(("forget",), ("retain",))``.
    """
    constant = _joint_coefficients(run)
    sides = tuple(sides_of(data, needed_sides(constant)))
    return (sides,) if constant is not None else tuple((side,) for side in sides)


def _joint_coefficients(run: Run) -> dict[Side, float] | None:
    """Return the coefficients with which both sides are differentiated at once, ``None`` when they are not."""
    apart = run.training is not None and run.training.gradient_conflict
    return None if apart else constant_coefficients(run.weighting, {})


def is_finished(run: Run, name: str = "main") -> bool:
    """Tell whether `fit` will skip a phase, since the run is being resumed and the phase has come to its end.

    For methods whose preparation of a phase is expensive.

    Args:
        run: the run.
        name: of the phase.
    """
    if not run.resuming:
        return False
    # A damaged checkpoint is told about by `fit`, which reads them again.
    saved = checkpoints.newest(_folder(run), name, lambda text: None)
    return saved is not None and saved.step == saved.total


def _folder(run: Run) -> Path:
    return run.folder / "checkpoints"


def _steps(training: Training, sides: Mapping[Side, Examples], group: Processes) -> int:
    """Return the steps of a phase; without forget examples an epoch is a pass over the retain ones."""
    forget, retain = _counts(sides)
    return planned_steps(training, forget, group.count, retain)


def _per_epoch(training: Training, sides: Mapping[Side, Examples], group: Processes) -> int:
    forget, retain = _counts(sides)
    return epoch_steps(training, forget, group.count, retain)


def _counts(sides: Mapping[Side, Examples]) -> tuple[int, int | None]:
    counts = {side: len(examples) for side, examples in sides.items()}
    return counts.get("forget", counts.get("retain", 0)), counts.get("retain")


@attrs.define(eq=False)
class _Phase:
    """One call of `fit`."""

    theta: Theta
    run: Run
    name: str
    training: Training
    total: int
    per_epoch: int
    order: Order
    gradients: Gradients
    optimizer: torch.optim.Optimizer
    group: Processes
    step: int = 0
    whole: bool = True
    """The tensors are those after ``step`` finished steps; false while an update changes them."""
    values: dict[str, Any] = attrs.field(factory=dict)
    """JSON state after ``step`` finished steps: of the weighting, and of the loss scale."""

    @classmethod
    def begin(cls, theta: Theta, losses: Losses, data: ForgetRetain, run: Run, name: str) -> _Phase:
        training, parameters = run.training, theta.parameters()
        if training is None:
            raise RuntimeError("fit needs run.training: the method's Config has no field 'training'")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]*", name):
            raise UnlearnError(
                "VU-U037",
                f"The phase name {name!r} cannot be part of a file name.",
                "Report to the author of the method: fit takes names of letters, digits, spaces, '-', '_' and '.'.",
            )
        if not parameters:
            raise UnlearnError(
                "VU-U030",
                "There is no trainable tensor to optimise.",
                "Choose other targets.",
                where="unlearner.parameters",
            )
        device = parameters[0].device
        group = process_group(device)
        scale = LossScale(active=run.precision == "fp16")
        gradients = Gradients(
            theta,
            losses,
            run.weighting,
            run.regularizers,
            {},
            run.precision,
            group,
            scale,
            apart=training.gradient_conflict,
        )
        sides = sides_of(data, gradients.needed())
        total, per_epoch = _steps(training, sides, group), _per_epoch(training, sides, group)
        check_warmup(training, total)
        portions = training.accumulation * group.count
        order = Order(sides, run, name, training.batch_size, portions, device, training.exhausted)
        optimizer = _optimizer(training, parameters)
        phase = cls(theta, run, name, training, total, per_epoch, order, gradients, optimizer, group)
        phase._remember_values()
        return phase

    @property
    def folder(self) -> Path:
        return _folder(self.run)

    def resume_or_prepare(self, data: ForgetRetain) -> None:
        saved = None
        if checkpoints.exists(self.folder, self.name):
            if not self.run.resuming:
                raise UnlearnError(
                    "VU-U035",
                    f"The phase {self.name!r} has checkpoints already, but the run is not being resumed.",
                    "Report to the author of the method: each call of fit in a run needs its own name.",
                    where=str(self.folder),
                )
            saved = checkpoints.newest(self.folder, self.name, lambda text: self.run.emit("warning", text=text))
        if saved is None:
            run = attrs.evolve(self.run, fitting=(self.total, self.per_epoch))
            for regularizer in self.run.regularizers:
                with self.theta.base():
                    regularizer.prepare(self.theta.model, self.theta, data, run)
            return
        self._restore(saved)
        if self.group.first:
            self.run.emit("resume", phase=self.name, step=self.step, total=self.total)

    def _restore(self, saved: Checkpoint) -> None:
        if saved.total != self.total:
            raise RecordError(
                "VU-R030",
                f"The checkpoint of phase {self.name!r} is of a run with {saved.total} steps, but this one "
                f"has {self.total}.",
                "Resume with the settings of the run, or start a new one.",
            )
        part = _by_prefix(saved.tensors)
        for index, regularizer in enumerate(self.run.regularizers):
            regularizer.load_state(part.get(f"regularizer{index}", {}), self.theta)
        self.theta.load_state(part.get("theta", {}))
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in part.get("optimizer", {}).items():
            place, _, field = key.partition(".")
            state.setdefault(int(place), {})[field] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.gradients.weighting_state.update(saved.values["weighting"])
        self.gradients.scale.value, self.gradients.scale.good = saved.values["scale"]
        self.step = saved.step
        self._remember_values()

    def _remember_values(self) -> None:
        scale = self.gradients.scale
        self.values = {"weighting": copy.deepcopy(self.gradients.weighting_state), "scale": [scale.value, scale.good]}

    def save(self) -> None:
        """Write a checkpoint of the state after ``step`` steps; only the first process does."""
        if not self.group.first:
            return
        tensors = {f"theta.{key}": tensor for key, tensor in self.theta.state().items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
        for index, regularizer in enumerate(self.run.regularizers):
            tensors |= {f"regularizer{index}.{key}": value for key, value in regularizer.state().items()}
        path = checkpoints.write(self.folder, self.name, Checkpoint(self.step, self.total, tensors, self.values))
        file = path.relative_to(self.run.folder).as_posix()
        self.run.emit("checkpoint", phase=self.name, step=self.step, total=self.total, file=file)

    def train(self) -> None:
        saved_at, saved_step = time.monotonic(), self.step
        try:
            while self.step < self.total:
                self._one_step()
                due = time.monotonic() - saved_at >= self.training.checkpoint_every
                if due or self.step == self.total:
                    self.save()
                    saved_at, saved_step = time.monotonic(), self.step
        except KeyboardInterrupt:
            # In the middle of an update the state belongs to no step; the last checkpoint is continued then.
            if self.whole and self.step != saved_step:
                self.save()
            raise

    def _one_step(self) -> None:
        seed = self.run.draw_seed("global", self.name, self.step, self.group.index)
        _seed_global(seed, self.gradients.parameters[0].device)
        passes = self.theta.passes(self.step, self.name)
        portions = list(self.order.step(self.step, self.group.index, self.group.count))
        combined = self.gradients.compute(portions, self.step, passes)
        rate = learning_rate(self.training, self.step, self.total)
        self.whole = False
        numbers = {}
        if combined is not None:
            numbers = self._leave_out(combined) if combined.left_out else self._update(combined, rate)
        self.step += 1
        self._remember_values()
        self.whole = True
        self._tell(numbers, rate)

    def _update(self, combined: Combined, rate: float) -> dict[str, float]:
        present = [p.grad for p in self.gradients.parameters if p.grad is not None]
        if not present:
            raise UnlearnError(
                "VU-U033",
                f"No trainable tensor got a gradient at step {self.step}.",
                "Choose targets that the losses of the method depend on.",
                where="unlearner.parameters",
            )
        norm = clip_to_norm(present, self.training.max_grad_norm)
        numbers = _on_host(combined, norm)
        self._check_finite(numbers)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for regularizer in self.run.regularizers:
            regularizer.after_step(self.optimizer)
        self._tell_conflict(combined, numbers)
        return {key: value for key, value in numbers.items() if key.startswith("loss_") or key == "grad_norm"}

    def _leave_out(self, combined: Combined) -> dict[str, float]:
        """Change nothing, as the weighting asks; tell of the gradients all the same."""
        nothing = torch.zeros((), device=self.gradients.parameters[0].device)
        self._tell_conflict(combined, _on_host(combined, nothing))
        return {}

    def _tell_conflict(self, combined: Combined, numbers: Mapping[str, float]) -> None:
        if combined.gram is not None and self.group.first:
            flags = list(self.gradients.weighting_state.get("flags", []))
            values: dict[str, Any] = {"phase": self.name, "step": self.step + 1, "flags": flags, **_conflict(numbers)}
            self.run.emit("gradient_conflict", **values)

    def _check_finite(self, numbers: Mapping[str, float]) -> None:
        bad = [key for key, value in numbers.items() if not math.isfinite(value)]
        if bad:
            what = {"loss_forget": "The forget loss", "loss_retain": "The retain loss"}.get(bad[0], "The gradient")
            raise UnlearnError(
                "VU-U031",
                f"{what} is not finite at step {self.step} of {self.total} (phase {self.name!r}); "
                "nothing was changed by this step.",
                "Use a smaller learning rate, or precision fp32; look at the data of this side.",
                where="unlearner.training.lr",
            )

    def _tell(self, numbers: Mapping[str, float], rate: float) -> None:
        if not self.group.first:
            return
        what = "training" if self.name == "main" else f"training ({self.name})"
        durable = self.step == self.total or self.step % max(1, self.total // 100) == 0
        values = {"what": what, "step": self.step, "total": self.total, "lr": rate, **numbers}
        self.run.emit("progress", durable=durable, **values)


def _optimizer(training: Training, parameters: list[Tensor]) -> torch.optim.Optimizer:
    fused = parameters[0].device.type in ("cpu", "cuda", "mps")
    lr, decay = training.lr, training.weight_decay
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not training.decay_vectors:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=training.momentum, weight_decay=decay, fused=fused)
    return torch.optim.AdamW(groups, lr=lr, weight_decay=decay, fused=fused)


def _seed_global(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):  # the generator of this device, not of the first one
            torch.cuda.manual_seed(seed)


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        prefix, _, rest = key.partition(".")
        parts.setdefault(prefix, {})[rest] = tensor
    return parts


def _on_host(combined: Combined, norm: Tensor) -> dict[str, float]:
    """Fetch every number of a step by one copy from the device."""
    named: dict[str, Tensor | float] = {
        f"loss_{side}": combined.losses[side] for side in SIDES if side in combined.losses
    }
    named["grad_norm"] = norm
    if combined.gram is not None:
        named |= {"rr": combined.gram[0, 0], "rf": combined.gram[0, 1], "ff": combined.gram[1, 1]}
        named |= {"a_r": combined.coefficients[0], "a_f": combined.coefficients[1]}
    wide = torch.float32 if norm.device.type == "mps" else torch.float64
    fetched = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    values = torch.stack([value.detach().to(norm.device, wide).reshape(()) for value in fetched.values()]).tolist()
    return {**{k: float(v) for k, v in named.items() if k not in fetched}, **dict(zip(fetched, values, strict=True))}


def _conflict(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Return norms and cosines of the gradients from the Gram matrix; what is undefined or not finite is ``None``."""
    rr, rf, ff = numbers["rr"], numbers["rf"], numbers["ff"]
    a_r, a_f = numbers["a_r"], numbers["a_f"]
    squared = a_r * a_r * rr + 2 * a_r * a_f * rf + a_f * a_f * ff
    if squared <= ROUNDING * (a_r * a_r * rr + a_f * a_f * ff):
        squared = 0.0  # the two sides cancel: what is left has no direction

    def cosine(product: float, x: float, y: float) -> float | None:
        if not (0 < x < math.inf and 0 < y < math.inf and math.isfinite(product)):
            return None
        return max(-1.0, min(1.0, product / math.sqrt(x) / math.sqrt(y)))

    return {
        "cos_rf": cosine(rf, rr, ff),
        "norm_r": math.sqrt(rr) if math.isfinite(rr) else None,
        "norm_f": math.sqrt(ff) if math.isfinite(ff) else None,
        "a_r": a_r,
        "a_f": a_f,
        "cos_g_r": cosine(a_r * rr + a_f * rf, squared, rr),
        "cos_g_f": cosine(a_r * rf + a_f * ff, squared, ff),
    }
