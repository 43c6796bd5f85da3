"""Influence unlearning: take off, to first order, what the forget examples have done to the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_baselines.closed_form import edit_of, weights_of
from vu_baselines.supervised import rows_of
from vu_core import Classifier, Edit, Examples, ForgetRetain, Model, Run, Source, UnlearnError, setting

PORTION = 1 << 30
"""Bytes of gradients of single examples that are held at once."""


@attrs.frozen
class InfluenceConfig:
    """Settings of `Influence`."""

    alpha: float = setting(100.0, help="length of the step", gt=0)
    samples: int = setting(1000, help="N: retain examples in the Fisher information, at most all of them", ge=1)
    damping: float = setting(1.0, help="lambda: what is added to the diagonal of the Fisher information", gt=0)
    variant: str = setting(
        "paper",
        help="paper: solves with the Fisher information; parity: the recursion of the released code, lambda = 1",
        choices=("paper", "parity"),
    )

    def __attrs_post_init__(self) -> None:
        if self.variant == "parity" and self.damping != 1.0:
            raise ValueError("the recursion of the variant 'parity' has no damping: leave it at 1")


class Influence:
    """Move the weights against the influence that the forget examples had on them.

    With g the gradient of the cross entropy of one example at the trained weights, n_f and n_r examples of both sides,
    and N retain examples ``g_1 .. g_N``::

        v = 1/(n_f + n_r) * sum over D_f of g  -  n_f / ((n_f + n_r) n_r) * sum over D_r of g
        F = lambda * I + 1/N * sum over i of g_i g_i^T
        theta <- theta + alpha * F^-1 v

    With G the rows ``g_i``, ``(N, P)``, the matrix F is never formed; its inverse needs one solve with N unknowns::

        F^-1 v = 1/lambda * (v - G^T (lambda N I + G G^T)^-1 G v)

    ``G G^T`` is added up over portions of the P weights, so that memory is bounded; ``G^T x`` is the gradient of a
    weighted sum of losses. The N examples are drawn without replacement. Nothing is trained.

    ``variant = "parity"`` is the recursion of the released code over the first N + 2 retain examples, which never
    takes a new g into o and so does not give ``F^-1 v``::

        k <- v,  o <- g_1;      for each next g:   k <- k - (k.g) / (N + o.g) * o,   o <- o - (o.g) / (N + o.g) * o

    Args:
        config: see `InfluenceConfig`.

    Example:
        >>> Influence(InfluenceConfig(samples=200)).config.damping
        1.0

    Source:
        Koh and Liang 2017, arXiv 1703.04730; the inverse as in WoodFisher, Singh and Alistarh 2020, arXiv 2004.14340;
        the difference of gradients as in the released code of SalUn, arXiv 2310.12508.

    Deviates:
        The inverse is exact (released code: the recursion above, ``variant = "parity"``).
    """

    Config: ClassVar[type[InfluenceConfig]] = InfluenceConfig
    source: ClassVar[Source] = Source(
        "Influence functions with the inverse of WoodFisher, Singh and Alistarh 2020",
        "https://arxiv.org/abs/2004.14340",
        "paper+fixes",
    )
    defaults: ClassVar[dict[str, dict[str, object]]] = {}

    def __init__(self, config: InfluenceConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Compute the step and return it as an edit.

        Raises:
            UnlearnError: ``VU-U135`` when a side has no examples; ``VU-U136`` when the step is not finite.
        """
        for examples in (data.forget, data.retain):
            if not len(examples):
                raise UnlearnError(
                    "VU-U135",
                    f"Influence needs gradients of both sides, but there are no {examples.side} examples.",
                    "Give examples of both sides.",
                    where="data",
                )
        weights = weights_of(model)
        gradients = SampleGradients(cast(Classifier, model), list(weights.values()), run)
        with gradients.differentiable():
            v = self._removal(gradients, data)
            step = self._recursion(gradients, data.retain, v) if self._parity else self._solve(gradients, data, v, run)
        if not bool(step.isfinite().all()):
            raise UnlearnError(
                "VU-U136",
                "The step of influence unlearning is not finite.",
                "Use a larger damping, or precision fp32.",
                where="unlearner.damping",
            )
        moves = torch.split(self.config.alpha * step, [w.numel() for w in weights.values()])
        new = {n: w.detach() + move.view_as(w) for (n, w), move in zip(weights.items(), moves, strict=True)}
        return edit_of(weights, new)

    @property
    def _parity(self) -> bool:
        return self.config.variant == "parity"

    def _removal(self, gradients: SampleGradients, data: ForgetRetain) -> Tensor:
        """Return v, ``(P,)``."""
        n_f, n_r = len(data.forget), len(data.retain)
        of_forget = gradients.total(data.forget, range(n_f), [1 / (n_f + n_r)] * n_f)
        of_retain = gradients.total(data.retain, range(n_r), [n_f / ((n_f + n_r) * n_r)] * n_r)
        return of_forget - of_retain

    def _solve(self, gradients: SampleGradients, data: ForgetRetain, v: Tensor, run: Run) -> Tensor:
        """Return ``F^-1 v``, ``(P,)``, exactly."""
        n, damping = min(self.config.samples, len(data.retain)), self.config.damping
        rows = torch.randperm(len(data.retain), generator=run.generator("influence"))[:n].tolist()
        gram, g_v = gradients.products(data.retain, rows, v, partial(run.progress, "gradients of examples"))
        identity = torch.eye(n, dtype=torch.float64, device=gram.device)
        x = torch.linalg.solve(damping * n * identity + gram, g_v)  # (N,)
        return (v - gradients.total(data.retain, rows, x.tolist())) / damping

    def _recursion(self, gradients: SampleGradients, retain: Examples, v: Tensor) -> Tensor:
        """Return what the released code takes for ``F^-1 v``, ``(P,)``."""
        k, n = v.clone(), self.config.samples
        o = torch.empty(0)
        for row in range(min(n + 2, len(retain))):
            g = gradients.of(retain, row)
            if row == 0:
                o = g.clone()
                continue
            along = o @ g
            k = k - (k @ g) / (n + along) * o
            o = o - along / (n + along) * o
        return k


@attrs.frozen(eq=False)
class SampleGradients:
    """Gradients of the cross entropy of single examples, in one row of P numbers each.

    Args:
        model: the classifier; weights: what to differentiate with respect to.
        run: device and draws.
        batch_size: examples per pass where gradients are added up.
    """

    model: Classifier
    weights: Sequence[Tensor]
    run: Run
    batch_size: int = 128

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Let gradients flow to the weights while entered, and put their flags back."""
        before = [weight.requires_grad for weight in self.weights]
        try:
            for weight in self.weights:
                weight.requires_grad_(True)
            with torch.enable_grad():
                yield
        finally:
            for weight, flag in zip(self.weights, before, strict=True):
                weight.requires_grad_(flag)

    def of(self, examples: Examples, row: int) -> Tensor:
        """Return the gradient of one example, ``(P,)``."""
        return self.total(examples, [row], [1.0])

    def total(self, examples: Examples, rows: Sequence[int], factors: Sequence[float]) -> Tensor:
        """Return ``sum over i of factors_i * g_i``, ``(P,)``: the gradient of the weighted sum of losses."""
        wide = torch.promote_types(self.weights[0].dtype, torch.float32)
        total = torch.zeros(sum(w.numel() for w in self.weights), dtype=wide, device=self.weights[0].device)
        for start in range(0, len(rows), self.batch_size):
            batch = rows_of(examples, rows[start : start + self.batch_size], self.run)
            losses = F.cross_entropy(
                self.model.logits(self.model.images(batch)), self.model.labels(batch), reduction="none"
            )
            factor = losses.new_tensor(factors[start : start + self.batch_size])
            found = torch.autograd.grad((factor * losses).sum(), self.weights, allow_unused=True)
            pieces = [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, found, strict=True)]
            total += torch.cat([piece.flatten().to(wide) for piece in pieces])
        return total

    def products(
        self,
        examples: Examples,
        rows: Sequence[int],
        v: Tensor,
        tell: Callable[[int, int], None],
        portion_bytes: int = PORTION,
    ) -> tuple[Tensor, Tensor]:
        """Return ``G G^T`` ``(N, N)`` and ``G v`` ``(N,)`` of the gradients of rows, in float64.

        Args:
            examples: the table.
            rows: N of its rows.
            v: ``(P,)``.
            tell: is told how many gradients are computed, and of how many.
            portion_bytes: what a portion of G may take; the gradients are computed once per portion.
        """
        n, width = len(rows), v.numel()
        portion = max(1, min(width, portion_bytes // (n * v.element_size())))
        starts = range(0, width, portion)
        gram = torch.zeros(n, n, dtype=torch.float64, device=v.device)
        g_v = torch.zeros(n, dtype=torch.float64, device=v.device)
        for turn, start in enumerate(starts):
            part = v.new_empty(n, min(portion, width - start))
            for place, row in enumerate(rows):
                part[place] = self.of(examples, row)[start : start + portion]
                tell(turn * n + place + 1, len(starts) * n)
            gram += (part @ part.T).double()
            g_v += (part @ v[start : start + portion]).double()
        return gram, g_v
