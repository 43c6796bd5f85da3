"""What a method is handed besides model and data: randomness, axes, progress, cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vu_core.data import ForgetRetain
from vu_core.errors import UnlearnError
from vu_core.event import Event

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vu_core.contracts import Attribution, Model, Parameters, Regularizer, Theta, Unlearner, Weighting
    from vu_core.edit import Edit
    from vu_core.training import Training


@attrs.frozen
class Section:
    """A section that a plugin adds to the report: a title and an SVG or HTML fragment without scripts."""

    title: str
    html: str


@attrs.define
class Report:
    """Sections of ``report.html``, in the order added."""

    sections: list[Section] = attrs.field(factory=list)

    def add(self, title: str, html: str) -> None:
        """Add a section; a section of the same title is replaced, so that resuming does not repeat it."""
        self.sections = [s for s in self.sections if s.title != title] + [Section(title, html)]


@attrs.define(eq=False)
class Run:
    """One execution, as a method sees it.

    Args:
        seed: root of every random number; see `generator`.
        device: ``cpu``, ``cuda``, ...; precision: ``fp32``, ``bf16`` or ``fp16``.
        folder: the run folder; checkpoints lie under ``folder / "checkpoints"``.
        cache: root of the content-addressed cache.
        training: settings of `vu_core.training.fit`; ``None`` for closed forms.
        parameters, weighting, attribution, regularizers: plugins of the axes that the method honours.
        resolve: finds another unlearner by name (base methods); emit_event: takes events; resuming: continues a folder.
        data_digest, base_hash: content keys for caches.
        edit: the edit that the model carries while a metric observes it after unlearning; ``None`` elsewhere.
        task: number of the task in its sequence, from 0; 0 for a run of its own.
        earlier: what enters the model with its first 0, 1, ... earlier edits, up to all but the newest; empty when it
            carries none. The first is what `pretrained` enters.
        fitting: steps, and steps of an epoch, of the `fit` that prepares a regularizer; ``None`` elsewhere.
        attached: what `parameterise` has put on the model and `release` takes off again.
    """

    seed: int
    device: str
    precision: str
    folder: Path
    cache: Path
    training: Training | None = None
    parameters: Parameters[Any] | None = None
    weighting: Weighting[Any] | None = None
    attribution: Attribution[Any] | None = None
    regularizers: tuple[Regularizer[Any], ...] = ()
    resolve: Callable[[str, Mapping[str, Any]], Unlearner[Any]] | None = None
    emit_event: Callable[[Event], None] = lambda event: None
    resuming: bool = False
    data_digest: str = ""
    base_hash: str = ""
    stage: str = "unlearn"
    report: Report = attrs.field(factory=Report)
    edit: Edit | None = None
    task: int = 0
    earlier: tuple[Callable[[], AbstractContextManager[None]], ...] = ()
    fitting: tuple[int, int] | None = None
    attached: list[Theta] = attrs.field(factory=list)

    def generator(self, name: str, *keys: object) -> torch.Generator:
        """Return a fresh CPU generator seeded by a hash of (seed, name, keys): stateless, equal on every machine.

        Example:
            >>> import torch
            >>> run = Run(seed=1, device="cpu", precision="fp32", folder=Path("."), cache=Path("."))
            >>> a, b = run.generator("noise", 0), run.generator("noise", 0)
            >>> torch.equal(torch.randn(2, generator=a), torch.randn(2, generator=b))
            True
        """
        import torch

        return torch.Generator().manual_seed(self.draw_seed(name, *keys))

    def draw_seed(self, name: str, *keys: object) -> int:
        """Return the 63-bit seed behind `generator`; every task of a sequence has others."""
        root = f"{self.seed} task {self.task}" if self.task else str(self.seed)
        text = "\0".join([root, name, *map(repr, keys)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

    def emit(self, type: str, *, durable: bool = True, **values: Any) -> None:
        """Tell listeners and ``events.jsonl`` that something happened."""
        self.emit_event(Event(type, self.stage, values, durable))

    def progress(self, what: str, step: int, total: int, **values: float) -> None:
        """Report progress of a long stage; shown live, not kept."""
        self.emit("progress", durable=False, what=what, step=step, total=total, **values)

    def parameterise(
        self, model: Model, *, targets: Collection[str] | None = None, masks: Mapping[str, Tensor] | None = None
    ) -> Theta:
        """Make the model trainable in the way the run says; see `vu_core.contracts.Parameters.attach`."""
        theta: Theta = self._axis("parameters").attach(model, self, targets=targets, masks=masks)
        self.attached.append(theta)
        return theta

    def release(self) -> None:
        """Take off the model what `parameterise` has put on it, last first; the stage does this after a method."""
        while self.attached:
            self.attached.pop().detach()

    def candidates(self, model: Model) -> tuple[str, ...]:
        """Return the weights that the run's parameters may train."""
        return self._axis("parameters").candidates(model)  # type: ignore[no-any-return]

    def attribute(
        self, model: Model, data: ForgetRetain, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return the scores of the run's attribution, from the cache when content, settings and version are equal.

        Raises:
            UnlearnError: ``VU-U036`` when a score is not finite.
        """
        attribution = self._axis("attribution")
        scores: Mapping[str, Tensor] = attribution.attribute(model, data, self, candidates=candidates)
        if not getattr(attribution, "checks_scores", False):  # the cache does, before it keeps any
            require_finite(scores, getattr(attribution, "name", type(attribution).__name__))
        return scores

    def pretrained(self) -> AbstractContextManager[None]:
        """Let the model compute as its files say while entered, without ``model.edits``.

        Call it inside ``theta.base()``, or while nothing is attached. For teachers and prototypes of the original
        model in a sequence of tasks; where the model carries no earlier edits, it changes nothing.
        """
        return self.earlier[0]() if self.earlier else nullcontext()

    def unlearner(self, name: str, **settings: Any) -> Unlearner[Any]:
        """Return another unlearner by name, for methods that wrap one (``base_method``)."""
        if self.resolve is None:
            raise RuntimeError("this run resolves no other unlearners")
        return self.resolve(name, settings)

    def _axis(self, name: str) -> Any:
        plugin = getattr(self, name)
        if plugin is None:
            raise RuntimeError(f"the method uses run.{name} but did not register the axis {name!r}")
        return plugin


def require_finite(scores: Mapping[str, Tensor], attribution: str) -> None:
    """Refuse scores that cannot be ranked.

    Args:
        scores: per tensor name a score per element.
        attribution: what made them, for the message.

    Raises:
        UnlearnError: ``VU-U036`` with the first tensor that holds NaN or infinity.

    Example:
        >>> import torch
        >>> require_finite({"w": torch.ones(2)}, "magnitude")
    """
    import torch

    if not scores:
        return
    finite = torch.stack([score.isfinite().all() for score in scores.values()]).tolist()  # one copy from the device
    wrong = [name for name, sound in zip(scores, finite, strict=True) if not sound]
    if wrong:
        raise UnlearnError(
            "VU-U036",
            f"The attribution {attribution!r} gave scores for {wrong[0]!r} that are not finite, so nothing can be "
            "ranked by them.",
            "Use --set run.precision=bf16 or fp32; if they stay so, look at the forget examples and the weights.",
            where="unlearner.attribution",
        )
