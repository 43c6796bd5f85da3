"""Parameters ``elastic-lora``: low-rank factors that are trained at many ranks at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from vu_core import Edit, Model, Run, Source, setting
from vu_core.adapters import Factors, LoraConfig, LoraTheta, MaskedLora
from vu_elastic_lora.adapter_config import checked_ranks
from vu_elastic_lora.groups import assigned, rank_groups, search_space_problem, spread

SCALE = "alpha / r_max"
"""The convention of every file: a smaller rank keeps the scale of the largest one."""


@attrs.frozen
class ElasticLoraConfig:
    """Settings of ``elastic-lora``."""

    search_space: tuple[int, ...] = setting(
        (16, 8, 4), help="ranks that are trained, from the largest to the smallest", ge=1, check=search_space_problem
    )
    alpha: float | None = setting(
        None, help="strength: the change is (alpha / largest rank) * B A; twice the largest rank when absent", gt=0
    )
    dropout: float = setting(0.0, help="share of the inputs of the change dropped in training", ge=0, lt=1)
    targets: tuple[str, ...] = setting(
        LoraConfig().targets, help="ends of module names; a component in front reaches other components"
    )
    groups: str = setting(
        "layer",
        help="what shares a rank: layer = the targets of one block, such as an attention; pair = each target its own",
        choices=("layer", "pair"),
    )
    sandwich: bool = setting(
        False, help="each step trains the largest, the smallest and the drawn ranks; three times the cost"
    )


class ElasticLora:
    """Train a low-rank change that still works when it is cut to a smaller rank.

    With the largest rank ``R`` of the search space, ``A (R, in)``, ``B (out, R)`` and the rank ``r`` of a layer's
    group::

        change of W = (alpha / R) * (B[:, :r] A[:r]) * M        M: mask of the method, if it gives one

    Without ``alpha`` the scale is 2: the small ranks need more strength than the large one alone would.

    Every optimiser step draws one rank per group, uniformly from the search space. The scale is the same at every rank,
    so that a smaller adapter is an exact truncation of the large one. Outside of training the whole change acts.

    Args:
        config: see `ElasticLoraConfig`.

    Example:
        >>> ElasticLora(ElasticLoraConfig(search_space=(8, 4, 2))).config.groups
        'layer'

    Source:
        Elastic LoRA adapters of FADE / SPARE, arXiv 2602.07058; NLS: Muñoz, Yuan and Jain 2024, arXiv 2404.10934;
        sandwich rule: Yu and Huang 2019, arXiv 1903.05134.

    Deviates:
        The released code draws a new rank at every read of a factor; here it is constant within a step. It ignores the
        mask of a sparse method; here the mask acts on the truncated product.
    """

    Config: ClassVar[type[ElasticLoraConfig]] = ElasticLoraConfig
    source: ClassVar[Source] = Source(
        "FADE / SPARE 2026, elastic LoRA (neural low-rank search)", "https://arxiv.org/abs/2602.07058", "paper+fixes"
    )
    honours_masks: ClassVar[bool] = True

    def __init__(self, config: ElasticLoraConfig) -> None:
        self.config = config
        largest = config.search_space[0]
        alpha = 2.0 * largest if config.alpha is None else config.alpha
        whole = LoraConfig(rank=largest, alpha=alpha, dropout=config.dropout, targets=config.targets)
        self._whole = MaskedLora(whole)

    def candidates(self, model: Model) -> tuple[str, ...]:
        """Return the names of the weights of all linear maps and convolutions that the targets match.

        Raises:
            PlanError: ``VU-L030`` when a target matches none.
        """
        return self._whole.candidates(model)

    def attach(
        self,
        model: Model,
        run: Run,
        *,
        targets: Collection[str] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> ElasticTheta:
        """Put a layer of the largest rank around each chosen module; see `vu_core.adapters.MaskedLora`.

        Raises:
            PlanError: ``VU-L031`` a target or mask that fits nothing; ``VU-L034`` a weight that another module shares.
            UnlearnError: ``VU-U030`` when nothing is left to train.
        """
        whole = self._whole.attach(model, run, targets=targets, masks=masks)
        return ElasticTheta(whole, self.config, run)


class ElasticTheta:
    """The factors of the largest rank and the draws of smaller ones; see `vu_core.contracts.Theta`.

    Args:
        whole: the attached factors of the largest rank.
        config: search space, groups, sandwich.
        run: gives the draws.
    """

    def __init__(self, whole: LoraTheta, config: ElasticLoraConfig, run: Run) -> None:
        self.model = whole.model
        self.whole = whole
        self.config = config
        self.rank_groups = rank_groups(whole.factors, config.groups, config.search_space)
        self._run = run

    def parameters(self) -> list[Tensor]:
        """Return the whole A and B of every layer, in the order of the network."""
        return self.whole.parameters()

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ``<weight name>.A`` and ``<weight name>.B``."""
        return self.whole.named_parameters()

    def named_deltas(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (weight name, differentiable change), as the layers compute it now: the whole one between passes."""
        return self.whole.named_deltas()

    def groups(self) -> Mapping[str, list[Tensor]]:
        """Return the whole A and B per module."""
        return self.whole.groups()

    def base(self) -> AbstractContextManager[None]:
        """Switch all layers off while entered."""
        return self.whole.base()

    def passes(self, step: int, phase: str = "main") -> Sequence[AbstractContextManager[None]]:
        """Return one pass with the ranks drawn for the step; three with ``sandwich``: largest, smallest, drawn."""
        if len(self.config.search_space) == 1:
            return (nullcontext(),)
        drawn = Truncation(self.whole, self._drawn(step, phase))
        if not self.config.sandwich:
            return (drawn,)
        return (self.set_active("maximal"), self.set_active("minimal"), drawn)

    def _drawn(self, step: int, phase: str) -> dict[str, int]:
        """Draw one rank per group, uniformly: equal for all passes, portions, sides and processes of a step."""
        space, generator = self.config.search_space, self._run.generator("elastic-rank", phase, step)
        places = torch.randint(len(space), (len(self.rank_groups),), generator=generator).tolist()
        return spread(self.rank_groups, [space[place] for place in places])

    def set_active(self, ranks: str | Mapping[str, int]) -> AbstractContextManager[None]:
        """Let the model compute with other ranks while entered; can be entered again.

        Args:
            ranks: ``maximal``, ``heuristic``, ``minimal``, or a rank for every weight.

        Raises:
            ConfigError: ``VU-C093`` when the ranks are not one per group, out of its search space.
            ValueError: another word.

        Example:
            What a smaller adapter would score::

                with theta.set_active("minimal"):
                    loss = losses(batches)
        """
        if isinstance(ranks, str):
            return Truncation(self.whole, assigned(self.rank_groups, ranks))
        return Truncation(self.whole, checked_ranks(self.rank_groups, ranks))

    def state(self) -> Mapping[str, Tensor]:
        """Return the whole A and B by name."""
        return self.whole.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put A and B back. Raises: RecordError ``VU-R030`` when names or shapes differ."""
        self.whole.load_state(state)

    def edit(self) -> Edit:
        """Return the whole factors and what is needed to cut them: search space and groups are facts of the edit."""
        edit = self.whole.edit()
        facts = {"search_space": list(self.config.search_space), "groups": self.config.groups, "scale": SCALE}
        return attrs.evolve(edit, facts={**edit.facts, "elastic": facts})

    def detach(self) -> None:
        """Put the wrapped modules back into their places."""
        self.whole.detach()


@attrs.frozen(eq=False)
class Truncation(AbstractContextManager[None]):
    """Layers compute with the first rows of A and columns of B while entered; afterwards with what they had before.

    Can be entered again and again: a pass is, once per portion and side. The slices are views, so that gradients arrive
    in the whole factors.

    Args:
        whole: the attached factors; ranks: per weight name.
    """

    whole: LoraTheta
    ranks: Mapping[str, int]
    _before: list[Mapping[str, Factors]] = attrs.field(factory=list, init=False)

    def __enter__(self) -> None:
        """Cut the factors."""
        layers = self.whole.layers
        self._before.append({name: layers[name].factors for name in self.ranks})
        for name, rank in self.ranks.items():
            layers[name].factors = truncated(self.whole.factors[name], rank)

    def __exit__(self, *_: object) -> None:
        """Put back what was there, also after an error."""
        for name, factors in self._before.pop().items():
            self.whole.layers[name].factors = factors


def truncated(whole: Factors, rank: int) -> Factors:
    """Return the first ``rank`` rows of A and columns of B, with the scale of the whole.

    Example:
        >>> truncated(Factors(torch.ones(4, 3), torch.ones(2, 4), scale=0.5), 1).delta().tolist()
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    if rank == whole.A.shape[0]:
        return whole
    return attrs.evolve(whole, A=whole.A[:rank], B=whole.B[:, :rank])  # (rank, in), (out, rank)
