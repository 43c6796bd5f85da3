"""The training loop that all stages share: seeded, resumable, with averaged weights.

Step ``s`` draws everything it needs from a generator seeded by ``(seed, s)``, so that a resumed run
continues exactly where it stopped and no generator state has to be stored. Generators live on the
processor whatever device trains, so that every device gets the same draws. A checkpoint is a
safetensors file with the weights, their running average and the optimizer's moments, and beside it a
JSON file with the settings; both are renamed into place.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

Loss = Callable[[int, torch.Generator], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
"""Step and generator to the loss and its parts, scalars that the progress line shows."""

Say = Callable[[str], None]
"""Where progress lines go."""


class TrainingError(Exception):
    """Something that the caller can put right: a missing stage, other settings, a folder that cannot be used."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    average: float = 0.999  # decay of the running average of the weights
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0
    save_every: int = 200
    horizon: int = 0  # steps after which the learning rate would reach its end; 0: `steps`

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then half a cosine to 1 % of the peak."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / (self.horizon or self.steps))))
        return self.learning_rate * warm * (0.01 + 0.99 * fall)


def generator_of(seed: int, step: int) -> torch.Generator:
    """Return the generator that a step draws from."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63 - 1))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file and rename it into place."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file and rename it into place."""
    part = path.with_suffix(path.suffix + ".part")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, str(part))
    part.chmod(0o644)
    part.replace(path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file. Raises: TrainingError when it is damaged."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(str(path))
        return tensors
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path} cannot be read: {error}; remove it and train this stage again") from error


class Trainer:
    """Train one module and keep its checkpoint.

    Args:
        module: What to train, on the device that trains it.
        schedule: How long and how fast.
        folder: Where the checkpoint of this stage lives; made if missing.
        name: File name of the checkpoint without its suffix.
        say: Where progress lines go.
        inputs: What else the result depends on, such as the hash of an earlier stage.

    Raises:
        TrainingError: The folder cannot be made.
    """

    def __init__(
        self, module: nn.Module, schedule: Schedule, folder: Path, name: str, say: Say, inputs: str = ""
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.schedule = schedule
        self.weights = folder / f"{name}.safetensors"
        self.record = folder / f"{name}.json"
        self.say = say
        self.parameters = [(key, value) for key, value in module.named_parameters() if value.requires_grad]
        self.average = {key: value.detach().clone() for key, value in self.parameters}
        self.optimizer = torch.optim.AdamW(
            [value for _, value in self.parameters],
            lr=schedule.learning_rate,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
        )
        self.step = 0
        self.seconds = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"the folder {folder} cannot be made: {error}") from error

    def resume(self) -> None:
        """Continue from the checkpoint if there is one.

        Raises:
            TrainingError: The checkpoint was made with other settings or from another earlier stage, or is damaged.
        """
        if not self.record.is_file():
            return
        record = read_record(self.record)
        if record["schedule"] != json.loads(json.dumps(asdict(self.schedule))):
            raise TrainingError(f"{self.record} was made with other settings; remove it or choose another folder")
        if record.get("inputs", "") != self.inputs:
            raise TrainingError(
                f"{self.record} was made from another checkpoint of an earlier stage; remove it or use another folder"
            )
        tensors = read_tensors(self.weights)
        state = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        if {key: value.shape for key, value in state.items()} != shapes(self.module):
            raise TrainingError(f"{self.weights} belongs to another architecture; remove it or choose another folder")
        self.step, self.seconds = int(tensors["step"].item()), float(record["seconds"])
        self.module.load_state_dict(state)
        for key, value in self.parameters:
            self.average[key] = tensors[f"average.{key}"].to(value.device)
            if self.step:
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(self.step)),  # AdamW keeps it on the processor
                    "exp_avg": tensors[f"first.{key}"].to(value.device),
                    "exp_avg_sq": tensors[f"second.{key}"].to(value.device),
                }
        self.say(f"resumed at step {self.step}")

    def save(self) -> None:
        """Write the checkpoint."""
        tensors = {f"model.{key}": value for key, value in self.module.state_dict().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.items()}
        tensors["step"] = torch.tensor(self.step)
        for key, value in self.parameters:
            state = self.optimizer.state.get(value)
            if state:
                tensors[f"first.{key}"], tensors[f"second.{key}"] = state["exp_avg"], state["exp_avg_sq"]
        write_tensors(self.weights, tensors)
        record = {"schedule": asdict(self.schedule), "step": self.step, "seconds": round(self.seconds, 1)}
        write_json(self.record, record | ({"inputs": self.inputs} if self.inputs else {}))

    def run(self, loss: Loss, report_every: int = 50) -> None:
        """Train until the last step of the schedule.

        Args:
            loss: Step and generator to the loss of that step.
            report_every: Steps between two progress lines.
        """
        self.module.train()
        total, since = 0.0, 0
        while self.step < self.schedule.steps:
            start = time.perf_counter()
            value, parts = self._update(loss)
            self.seconds += time.perf_counter() - start
            total, since = total + value, since + 1
            if self.step % report_every == 0 or self.step == self.schedule.steps:
                pace = self.seconds / self.step
                left = (self.schedule.steps - self.step) * pace / 60
                words = [f"step {self.step}/{self.schedule.steps} loss {total / since:.4f}"]
                words += [f"{part} {float(number):.4f}" for part, number in parts.items()]
                self.say(f"{' '.join(words)} {pace:.3f} s/step, {left:.1f} min left")
                total, since = 0.0, 0
            if self.step % self.schedule.save_every == 0:
                self.save()
        self.save()

    def _update(self, loss: Loss) -> tuple[float, Mapping[str, torch.Tensor]]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        value, parts = loss(self.step, generator_of(self.schedule.seed, self.step))
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([parameter for _, parameter in self.parameters], self.schedule.clip)
        self.optimizer.step()
        self.step += 1
        decay = min(self.schedule.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(  # one call for all tensors
                list(self.average.values()), [parameter for _, parameter in self.parameters], 1 - decay
            )
        return float(value.detach()), {part: number.detach() for part, number in parts.items()}

    def averaged(self) -> dict[str, torch.Tensor]:
        """Return the module's state with the averaged weights in place of the trained ones."""
        return {**{k: v.detach().clone() for k, v in self.module.state_dict().items()}, **self.average}


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a module by name."""
    return {key: value.shape for key, value in module.state_dict().items()}


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON record of a checkpoint. Raises: TrainingError when it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        complete = isinstance(record["schedule"], dict) and float(record["seconds"]) >= 0 and int(record["step"]) >= 0
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise TrainingError(f"{path} is damaged ({error!r}); remove it and train this stage again") from error
    if not complete:
        raise TrainingError(f"{path} is damaged; remove it and train this stage again")
    return dict(record)


def checkpoint(folder: Path, name: str) -> Path:
    """Return the weights file of a stage. Raises: TrainingError when the stage has not been trained."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        stage = name.partition("-")[0]  # the stage `diffusion` has two checkpoints
        raise TrainingError(f"there is no checkpoint {path}; train this stage first: python -m vu_canvas.train {stage}")
    return path


def trained_weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the weights of a stage's checkpoint as they were at its last step, not averaged.

    Raises:
        TrainingError: The stage has not been trained yet, or its checkpoint is damaged.
    """
    tensors = read_tensors(checkpoint(folder, name))
    return {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}


def averaged_weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the averaged weights of a stage's checkpoint.

    Raises:
        TrainingError: The stage has not been trained yet, or its checkpoint is damaged.
    """
    tensors = read_tensors(checkpoint(folder, name))
    state = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
    return state | {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
