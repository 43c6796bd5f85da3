"""LIRF: empty the lower half of a network of what is forgotten, below an upper half that stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_baselines.relabelled import (
    DEFAULTS,
    Relabelled,
    RelabelledConfig,
    as_classifier,
    published,
    retained_loss,
    sided,
    trained,
    with_facts,
    without_retain,
)
from vu_baselines.scrub import divergence
from vu_baselines.teacher import TEACHERS, Teacher
from vu_core import (
    Batch,
    Blocks,
    Classifier,
    Edit,
    Examples,
    ForgetRetain,
    Model,
    PlanError,
    Run,
    Source,
    Theta,
    UnlearnError,
    setting,
)
from vu_core.adapters import save_edit
from vu_core.training import Training, fit

SMALLEST = 0.005
"""Entries of an attention map below it count as 0."""
DEPOSIT = "deposit.safetensors"
"""The file in the run folder."""


@attrs.frozen
class LirfConfig(RelabelledConfig):
    """Settings of `Lirf`."""

    training: Training = setting(published(1e-4), help="settings of the training loop")
    alpha: float = setting(0.1, help="balance of wrong labels (1 - alpha) and the teacher's other logits", ge=0, le=1)
    temperature: float = setting(10.0, help="T: logits are divided by it before the softmax", gt=0)
    attention: float = setting(300.0, help="factor on the distance of attention maps, which is driven up", ge=0)
    attention_cap: float = setting(1.0, help="distance of attention maps, times its factor, that is enough", ge=0)
    other_logits: float = setting(10.0, help="factor on the distance to the teacher's other logits", ge=0)
    retained: float = setting(5.0, help="factor on the cross entropy of retain examples", ge=0)
    deposit: bool = setting(
        False, help=f"afterwards train a second lower half that knows what was forgotten, {DEPOSIT} in the run folder"
    )
    teacher: str = setting("pretrained", help=TEACHERS, choices=("pretrained", "task-start"))


class Lirf:
    """Teach the lower half of a network wrong labels, other attention, and the teacher's view of all other classes.

    The first ``depth // 2`` blocks and all that goes before them are the student's; the blocks after are the
    teacher's and stay. With y' a wrong label, z the logits and z_t those of the teacher, ``O`` the classes that are not
    forgotten, and ``AT`` the distance of the attention maps between the halves::

        A(x)     = mean over channels of squared activations, of length 1; entries < 0.005 are 0         (B, tokens)
        AT       = mean (A_student(x_f) - A_teacher(x_f))^2
        L_forget = (1 - alpha) CE(x_f, y') + max(0, cap - 300 AT)
                   + 10 alpha T^2 KL(softmax(z_t[O] / T) || softmax(z[O] / T))
        L_retain = 5 CE(x_r, y_r)

    With ``deposit`` a second lower half is trained from the student's afterwards, ``CE(x_f, y_f) + 300 AT``: an edit of
    its own that holds what the student has lost.

    Args:
        config: see `LirfConfig`.

    Example:
        >>> Lirf(LirfConfig(temperature=4.0)).config.temperature
        4.0

    Source:
        Learning with recoverable forgetting, Ye et al. 2022, arXiv 2207.08224, with the numbers of GS-LoRA, Zhao et al.
        2024, arXiv 2403.11530.

    Deviates:
        Classes are told apart by a list (released code of GS-LoRA: by their number). ``AT`` is bounded (there: falls
        without end). The deposit is trained, apart from the student, with which it shares no weight (there: it is
        random); by default there is none, since taking the edit off brings back what was forgotten. The norm behind
        the last block is trained, as there; the head is not, unless ``train_head``.
    """

    Config: ClassVar[type[LirfConfig]] = LirfConfig
    source: ClassVar[Source] = Source(
        "Learning with recoverable forgetting, Ye et al. 2022", "https://arxiv.org/abs/2207.08224", "paper+fixes"
    )
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = DEFAULTS

    def __init__(self, config: LirfConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train and return what came of it.

        Raises:
            PlanError: ``VU-L095`` when there is no other label; ``VU-L115``, ``VU-L120`` about the head;
                ``VU-L123`` when the network has no halves; ``VU-L124`` when a deposit is asked for on a model with
                earlier edits.
            UnlearnError: ``VU-U138`` when every class is forgotten.
        """
        config, classifier = self.config, as_classifier(model)
        middle, targets = halves(model, run, config.train_head)
        if config.deposit and run.earlier:
            raise PlanError(
                "VU-L124",
                "A deposit holds what the weights of the files lose, but the model carries earlier edits.",
                "Leave unlearner.deposit out, or leave model.edits out.",
                where="unlearner.deposit",
            )
        losses = LirfLosses.of(classifier, data, run, config, middle)
        seen = attrs.evolve(data, forget=losses.taught(data.forget))
        theta = run.parameterise(model, targets=targets)
        try:
            fit(theta, attrs.evolve(losses, theta=theta), seen, run)
            edit = with_facts(theta.edit(), theta)
            student = {name: tensor.clone() for name, tensor in theta.state().items()}
        finally:
            theta.detach()
        if not config.deposit:
            return edit
        deposit = train_deposit(model, seen, run, losses, targets, student)
        save_edit(attrs.evolve(deposit, base=model.facts.base_hash, method="lirf"), run.folder / DEPOSIT)
        return attrs.evolve(edit, facts={**edit.facts, "deposit": DEPOSIT})


def train_deposit(
    model: Model,
    data: ForgetRetain,
    run: Run,
    losses: LirfLosses,
    targets: list[str],
    student: Mapping[str, Tensor],
) -> Edit:
    """Train a lower half that knows what was forgotten, beginning with the student's, and return it as an edit.

    Args:
        model: the classifier, with nothing attached.
        data: with the answers of the teacher.
        run: the run.
        losses: of the student.
        targets: weights of the lower half.
        student: what was trained, as `Theta.state` returns it.
    """
    theta = run.parameterise(model, targets=targets)
    try:
        theta.load_state(student)
        deposit = attrs.evolve(losses, theta=theta)
        fit(theta, lambda batches: {"forget": deposit.deposit(batches["forget"])}, without_retain(data), run, "deposit")
        return theta.edit()
    finally:
        theta.detach()


def halves(model: Model, run: Run, train_head: bool) -> tuple[str, list[str]]:
    """Return the last block of the lower half, and the weights to train: all but those of the upper half.

    Raises:
        PlanError: ``VU-L123`` when there are fewer than two blocks; ``VU-L115``, ``VU-L120`` about the head.
    """
    blocks = cast(Blocks, model).blocks()
    if len(blocks) < 2:
        raise PlanError(
            "VU-L123",
            f"The model {model.facts.name!r} has {len(blocks)} transformer blocks, so it has no two halves.",
            "Choose a model of two blocks or more, or another method.",
            where="model",
        )
    depth = len(blocks) // 2
    upper = tuple(f"{block.name}." for block in blocks[depth:])
    names = [name for name in trained(model, run, train_head) if not name.startswith(upper)]
    return blocks[depth - 1].name, names


@attrs.frozen(eq=False)
class LirfLosses:
    """The losses as `fit` wants them.

    Args:
        model: the classifier; config: settings; forget: the loss of wrong labels.
        others: the classes that are not forgotten; middle: name of the last block of the lower half.
        logits: the teacher's logits; maps: its attention maps; theta: what is trained.
    """

    model: Classifier
    config: LirfConfig
    forget: Relabelled
    others: tuple[int, ...]
    middle: str
    logits: Teacher
    maps: Teacher
    theta: Theta | None = None

    @classmethod
    def of(cls, model: Classifier, data: ForgetRetain, run: Run, config: LirfConfig, middle: str) -> LirfLosses:
        """Return the losses for these examples.

        Raises:
            PlanError: ``VU-L095`` when there is no other label.
            UnlearnError: ``VU-U138`` when every class is forgotten.
        """
        forget = Relabelled.of(model, data, run, config.relabel)
        others = tuple(sorted(set(range(len(model.classes))) - set(forget.forgotten)))
        if not others:
            raise UnlearnError(
                "VU-U138",
                "Every class of the model is to be forgotten, so no logits are left that the teacher could guard.",
                "Forget fewer classes, or choose another method.",
                where="data.forget",
            )
        logits = Teacher.of_logits(model, run, config.teacher)
        maps = Teacher("teacher_maps", lambda batch: read(model, batch, middle)[1], run, config.teacher)
        return cls(model, config, forget, others, middle, logits, maps)

    def taught(self, examples: Examples) -> Examples:
        """Return the table with logits and maps of the teacher."""
        return self.maps.taught(self.logits.taught(examples))

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return one scalar per side that was handed over."""
        return sided(self.removal, self.retained)(batches)

    def removal(self, batch: Batch) -> Tensor:
        """Return L_forget."""
        config, others = self.config, list(self.others)
        z, maps = read(self.model, batch, self.middle)  # (B, K), (B, tokens)
        z_t, maps_t = self._taught(batch)
        wrong = F.cross_entropy(z, self.forget.labels(batch))
        apart = F.relu(config.attention_cap - config.attention * F.mse_loss(maps, maps_t))
        kept = divergence(z[:, others], z_t[:, others], config.temperature)
        return (1 - config.alpha) * wrong + apart + config.other_logits * config.alpha * kept

    def retained(self, batch: Batch) -> Tensor:
        """Return L_retain."""
        return self.config.retained * retained_loss(self.model, batch)

    def deposit(self, batch: Batch) -> Tensor:
        """Return the loss of the deposit: the right labels, and the teacher's attention."""
        z, maps = read(self.model, batch, self.middle)
        alike = self.config.attention * F.mse_loss(maps, self._taught(batch)[1])
        return F.cross_entropy(z, self.model.labels(batch)) + alike

    def _taught(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.theta is None:
            raise RuntimeError("the losses need what is trained")
        return self.logits(batch, self.theta), self.maps(batch, self.theta)


def read(model: Classifier, batch: Batch, middle: str) -> tuple[Tensor, Tensor]:
    """Return logits ``(B, K)`` and the attention map behind a module, ``(B, tokens)``, of one pass."""
    with _watched(model, middle) as seen:
        z = model.logits(model.images(batch)).float()
    return z, attention_map(seen[0])


@contextmanager
def _watched(model: Classifier, name: str) -> Iterator[list[Tensor]]:
    """Collect what a module returns while entered; of several values the first."""
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    # Looked up at every call: an adapter may have taken the place of the module.
    handle = model.network.get_submodule(name).register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def attention_map(activations: Tensor) -> Tensor:
    """Return where a layer is active: mean square over channels, of length 1, small entries 0; float32 ``(B, places)``.

    Args:
        activations: tokens ``(B, N, D)``, an image ``(B, D, H, W)``, or ``(B, N)`` without channels.

    Example:
        >>> places = attention_map(torch.tensor([[[3.0, 3.0], [0.1, 0.1], [2.0, 2.0]]]))
        >>> [round(place, 4) for place in places[0].tolist()]
        [0.9138, 0.0, 0.4061]
    """
    squares = activations.float().square()
    if squares.dim() > 2:
        squares = squares.mean(dim=1 if squares.dim() == 4 else -1)
    places = F.normalize(squares.flatten(1), dim=1)  # (B, N)
    return torch.where(places < SMALLEST, 0.0, places)
