"""Training a face transformer from scratch: seeded, with checkpoints, and the same result when it was interrupted.

Epoch e goes through the images in an order drawn from ``(seed, e)``, and step s draws its dropout from ``(seed, s)``,
so that a resumed training continues where it stopped without any generator state. A checkpoint is a safetensors file
with the weights, the moments of AdamW and the step, and beside it a JSON file with what the training depends on; both
are renamed into place.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vu_classifiers.architecture import ARCHITECTURE, CLASSES, WEIGHTS, Architecture
from vu_classifiers.face_network import FaceTransformer
from vu_classifiers.image_classifier import ImageClassifier, Normalisation
from vu_core import Examples, ModelError, ModelFacts, Run, digest, write_text
from vu_core.training import Training, learning_rate

CHECKPOINT = "checkpoint.safetensors"
SETTINGS = "checkpoint.json"

Say = Callable[[str], None]
"""Where progress lines go."""


@attrs.frozen
class Schedule:
    """How long and how fast to train; the defaults are the published ones.

    Args:
        epochs: passes over the images; warmup: of them, with a rising learning rate; batch: images per step.
        lr: peak learning rate of AdamW; min_lr: what a half cosine brings it to.
        weight_decay: of matrices; biases, norms and the like are not decayed.
        seed: of the first weights, the order of the images and dropout.
    """

    epochs: int = 1200
    warmup: int = 10
    batch: int = 480
    lr: float = 3e-4
    min_lr: float = 1e-5
    weight_decay: float = 0.05
    seed: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, where an epoch has ``steps``."""
        training = Training(epochs=self.epochs, lr=self.lr, min_lr=self.min_lr, warmup_steps=self.warmup * steps)
        return learning_rate(training, step, self.epochs * steps)


@attrs.frozen(eq=False)
class Faces:
    """The training images in memory.

    Args:
        classes: names of the identities; digest: hash of the data.
        images: uint8 or float32 ``(N, 3, H, W)``; labels: int64 ``(N,)``.
    """

    classes: tuple[str, ...]
    digest: str
    images: Tensor
    labels: Tensor

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images in [-1, 1] and labels of these rows."""
        pixels = self.images[rows]
        seen = pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels
        return seen.to(device), self.labels[rows].to(device)


def network_for(architecture: Architecture, seed: int) -> FaceTransformer:
    """Return an untrained network whose weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FaceTransformer(architecture)


def model_of(network: nn.Module, architecture: Architecture, classes: tuple[str, ...]) -> ImageClassifier:
    """Return the network as a classifier that reads tables of examples; in evaluation mode."""
    count = sum(parameter.numel() for parameter in network.parameters())
    facts = ModelFacts("face-transformer", "", "", frozenset(), count, 4 * count, architecture.size)
    pixels = Normalisation((0.0,), (1.0,))
    return ImageClassifier(network, facts, classes=classes, head="head", normalisation=pixels)


def in_memory(model: ImageClassifier, tables: tuple[Examples, ...], hashed: str, run: Run) -> Faces:
    """Read the images of tables once. Raises: ModelError (``VU-M118``) where they are not to be kept."""
    read = [model.prepare(table, run).tensors for table in tables if len(table)]
    if not read or any("pixels" not in tensors for tensors in read):
        raise ModelError(
            "VU-M118",
            "These data have no images that can be kept in memory.",
            "Use data with images, and no crop that is drawn anew at every step.",
            where="--data",
        )
    pixels = [tensors["pixels"] for tensors in read]
    if len({column.dtype for column in pixels}) > 1:
        pixels = [c.float() / 127.5 - 1 if c.dtype == torch.uint8 else c for c in pixels]
    return Faces(model.classes, hashed, torch.cat(pixels), torch.cat([tensors["label"] for tensors in read]))


class Pretraining:
    """One training of a face transformer in a folder.

    Args:
        architecture: of the network; its ``classes`` must be those of the faces.
        schedule: how long and how fast; faces: what to train on; folder: where checkpoint and result go.
        device: ``cpu``, ``cuda``, ...; save_every: seconds between two checkpoints; say: takes progress lines.

    Raises:
        ModelError: ``VU-M117`` when the folder holds a finished network, or the checkpoint of another training.
    """

    def __init__(
        self,
        architecture: Architecture,
        schedule: Schedule,
        faces: Faces,
        folder: Path,
        *,
        device: str = "cpu",
        save_every: float = 60.0,
        say: Say,
    ) -> None:
        self.architecture, self.schedule, self.faces, self.folder = architecture, schedule, faces, folder
        self.device, self.save_every, self.say = torch.device(device), save_every, say
        self.network = network_for(architecture, schedule.seed).to(self.device)
        self.steps = math.ceil(len(faces.labels) / schedule.batch)
        self.step = 0
        self.parameters = dict(self.network.named_parameters())
        decayed = [p for p in self.parameters.values() if p.dim() > 1]
        others = [p for p in self.parameters.values() if p.dim() < 2]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.lr, weight_decay=schedule.weight_decay)
        self._resume()

    def run(self) -> None:
        """Train to the last epoch and write the result; continue from a checkpoint."""
        saved = time.monotonic()
        total, batch = self.schedule.epochs * self.steps, self.schedule.batch
        self.network.train()
        while self.step < total:
            began, epoch = time.monotonic(), self.step // self.steps
            order = torch.randperm(len(self.faces.labels), generator=_generator(self.schedule.seed, "order", epoch))
            loss = right = count = 0.0
            for first in range(self.step % self.steps * batch, len(order), batch):
                rows = order[first : first + batch]
                value, correct = self._update(rows)
                loss, right, count = loss + value * len(rows), right + correct, count + len(rows)
                if time.monotonic() - saved >= self.save_every:
                    self.save()
                    saved = time.monotonic()
            passed = time.monotonic() - began
            told = f"loss {loss / count:.4f}, {100 * right / count:.1f} % right, {passed:.1f} s"
            self.say(f"epoch {epoch + 1}/{self.schedule.epochs}: {told}")
        self.save()
        self._finish()

    def save(self) -> None:
        """Write the checkpoint."""
        tensors = {f"weight.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}
        # One that another training left before its first checkpoint is replaced.
        write_text(self.folder / SETTINGS, json.dumps(self._settings(), indent=2) + "\n")
        _write(self.folder / CHECKPOINT, {**tensors, "step": torch.tensor(self.step)})

    def _update(self, rows: Tensor) -> tuple[float, float]:
        """Take one step on these images; return its loss and how many were right without the margin."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step, self.steps)
        images, labels = self.faces.batch(rows, self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(_seed(self.schedule.seed, "dropout", self.step))
            features = self.network.features((images + 1) / 2)  # (B, d), of pixels in [0, 1]
        head: Any = self.network.head
        trained = getattr(head, "with_margin", None)
        logits = head(features)  # (B, K)
        loss = functional.cross_entropy(logits if trained is None else trained(features, labels), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        return float(loss.detach()), float((logits.detach().argmax(1) == labels).sum())

    def _settings(self) -> dict[str, Any]:
        """Return what the result depends on."""
        architecture, schedule = attrs.asdict(self.architecture), attrs.asdict(self.schedule)
        told = {"architecture": architecture, "schedule": schedule, "data": self.faces.digest}
        return {"format": 1, **told, "classes": list(self.faces.classes)}

    def _resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        if not (self.folder / CHECKPOINT).is_file():
            if (self.folder / WEIGHTS).is_file():
                raise _other("holds a finished network")
            return
        try:
            told = dict(json.loads((self.folder / SETTINGS).read_text(encoding="utf-8")))
            tensors = load_file(self.folder / CHECKPOINT)
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise _other(f"holds a damaged checkpoint ({str(error).splitlines()[0]})") from error
        changed = sorted(key for key, value in self._settings().items() if told.get(key) != value)
        if changed:
            raise _other(f"holds the checkpoint of another training: {', '.join(changed)} differ")
        self.step = int(tensors["step"])
        self.network.load_state_dict(_under(tensors, "weight."))
        moments = {key: _under(tensors, f"{key}.") for key in ("exp_avg", "exp_avg_sq")}
        for name, parameter in self.parameters.items():
            if self.step:
                state = {key: values[name].to(self.device) for key, values in moments.items()}
                # AdamW keeps its step on the processor.
                self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **state}
        self.say(f"resumed at step {self.step}")

    def _finish(self) -> None:
        """Write what the model plugin loads, then remove the checkpoint."""
        write_text(self.folder / CLASSES, json.dumps(list(self.faces.classes), indent=1, ensure_ascii=False) + "\n")
        write_text(self.folder / ARCHITECTURE, json.dumps(attrs.asdict(self.architecture), indent=2) + "\n")
        _write(self.folder / WEIGHTS, self.network.state_dict())
        for name in (CHECKPOINT, SETTINGS):
            (self.folder / name).unlink()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _seed(seed: int, *keys: object) -> int:
    return int(digest("face-transformer", str(seed), *map(str, keys))[:15], 16)


def _generator(seed: int, *keys: object) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, *keys))


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part)
    part.chmod(0o644)
    part.replace(path)


def _other(what: str) -> ModelError:
    remedy = "Choose another folder with --out, or repeat the command that began it to continue."
    return ModelError("VU-M117", f"The folder {what}.", remedy, where="--out")
