"""ESD: the model learns to steer away from a prompt, as negative guidance would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from vu_concept_editing.esd_latents import LATENTS, TARGETS, TIMESTEPS, Partway, PartwayConfig, SampledDenoiser, bank
from vu_concept_editing.esd_prompts import check_from_prompts, check_prompts, tables
from vu_core import Batch, Edit, ForgetRetain, Model, Run, Source, Theta, setting
from vu_core.adapters import check_subset, subset
from vu_core.training import Training, fit, is_finished

ESD_SOURCE = Source(
    "Erasing Concepts from Diffusion Models, Gandikota et al. 2023", "https://arxiv.org/abs/2303.07345", "paper+fixes"
)

_PAPER = Training(steps=1000, batch_size=1, lr=1e-5, schedule="constant", weight_decay=0.0, max_grad_norm=0.0)


@attrs.frozen
class EsdConfig(PartwayConfig):
    """Settings of `Esd`; the defaults are the paper's."""

    training: Training = setting(_PAPER, help="settings of the training loop")
    prompts: tuple[str, ...] = setting(
        (), help="what is erased; empty = the distinct captions of the forget examples", check=check_prompts
    )
    erase_from: str = setting(
        "none",
        help="where the target starts: none = the empty prompt, as in the paper; concept = the erased prompt, as in "
        "the newer release; overwrite, prompts = another prompt, and the student is asked that one; common = each "
        "erased prompt, from which only what it shares with the others is erased",
        choices=("none", "concept", "overwrite", "prompts", "common"),
    )
    from_prompts: tuple[str, ...] = setting(
        (), help="with erase_from = prompts: one for all erased prompts, or one each", check=check_from_prompts
    )
    common_prompts: int = setting(
        8,
        help="with erase_from = common: how many erased prompts are averaged per latent, all if there are fewer",
        ge=1,
    )
    negative_guidance: float = setting(
        1.0, help="eta, how far the target lies beyond its start, away from the erased prompt", ge=0
    )
    subset: str = setting(
        "x",
        help="what is trained of the parameters: x, x-strict, u, all, self, or ESD's older names",
        check=check_subset,
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if (self.erase_from == "prompts") != bool(self.from_prompts):
            raise ValueError(
                "from_prompts and erase_from = 'prompts' go together, but erase_from is "
                f"{self.erase_from!r} and there are {len(self.from_prompts)} from_prompts"
            )
        if self.prompts and self.erase_from == "overwrite":
            raise ValueError("prompts have no overwrite: name what they are erased from with erase_from = 'prompts'")
        if self.prompts and len(self.from_prompts) not in (0, 1, len(self.prompts)):
            raise ValueError(
                f"there are {len(self.from_prompts)} from_prompts for {len(self.prompts)} prompts: name one or as many"
            )


class Esd:
    """Train a diffusion model to answer a prompt as if it were guided away from it.

    With ``e*`` the prediction of the untouched model, ``e`` that of the student, ``c`` the erased prompt, ``0`` the
    empty one and ``s`` the prompt that the student is asked::

        L_forget = mean((e(x_t, s) - [start - eta (e*(x_t, c) - e*(x_t, 0))])^2)
        L_retain = mean((e(x_t, c_r) - e*(x_t, c_r))^2)

    =============  ==============  ===========  ====================================================================
    `erase_from`   start           s            remarks
    =============  ==============  ===========  ====================================================================
    ``none``       ``e*(x_t, 0)``  ``c``        the paper, ``eta = 1``
    ``concept``    ``e*(x_t, c)``  ``c``        the newer release, ``eta = 2``: the same target
    ``overwrite``  ``e*(x_t, s)``  overwrite    erases one thing from another: c = "blood", s = "a horror scene"
    ``prompts``    ``e*(x_t, s)``  from_prompt  the same, named in ``from_prompts``
    ``common``     ``e*(x_t, s)``  each prompt  ``e*(x_t, c)`` is a mean over erased prompts, ``common_prompts`` of
                                                them drawn per latent: the target lies away from what they have in
                                                common, and what only s says stays
    =============  ==============  ===========  ====================================================================

    Both losses are descended; the minus lies in the target. ``x_t`` are latents on the way from noise to an image of
    the prompt that the student is asked, so no training image is needed (`vu_concept_editing.esd_latents`). The target
    is an affine combination of predictions at one ``x_t`` whose coefficients add up to 1, so noise and velocity are
    alike.

    The paper has no retain loss; with the default weighting ``none`` nothing is retained here either. Any other
    weighting brings ``L_retain``, whose ``c_r`` are the distinct captions of the retain examples. Its gradient is
    exactly zero at the first step, as the untouched model is asked in batches of the student's layout.

    Args:
        config: see `EsdConfig`.

    Example:
        The newer release::

            [unlearner]
            method = "esd"
            erase_from = "concept"
            negative_guidance = 2.0
            sampled_by = "base"
            timestep_sampling = "scheduler"
            training = { steps = 200, lr = 5e-5 }

        >>> Esd(EsdConfig(subset="esd-u")).config.negative_guidance
        1.0

    Source:
        arXiv 2303.07345; the general target and the partial denoising by the base follow the newer released code.

    Deviates:
        Both releases step with Adam, here it is AdamW with ``weight_decay = 0``, the same. ``u``, ``all`` and ``self``
        contain norms as well under the parameters ``full``; the newer release leaves them out. A latent is asked at a
        timestep of the bin where it stands; the older release asks it one or two bins above.
    """

    Config: ClassVar[type[EsdConfig]] = EsdConfig
    source: ClassVar[Source] = ESD_SOURCE
    uses_images: ClassVar[bool] = False
    descends: ClassVar[tuple[str, ...]] = ("retain", "forget")
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weighting": {"name": "none"},
        "parameters": {"name": "full"},
    }

    def __init__(self, config: EsdConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Train the run's parameters, within the subset, and return what came of it.

        Raises:
            ConfigError: ``VU-C110`` no prompt to erase; ``VU-C111`` neither one of the ``from_prompts`` nor one each;
                ``VU-C112`` data without overwrites, but ``erase_from = "overwrite"``.
            PlanError: ``VU-L092`` when the subset is empty.
            UnlearnError: when a loss or a gradient is not finite.
        """
        asked = tables(data, self.config, run)
        theta = run.parameterise(model, targets=subset(run.candidates(model), self.config.subset))
        try:
            losses = NegativeGuidance(cast(SampledDenoiser, model), theta, self.config)
            settled = run
            if self.config.bank and not is_finished(run, "main"):
                asked, settled = bank(losses.partway, losses.steered, asked, self.config.bank, run)
            # Regularizers may look at images, which the method itself does not.
            seen = data.map(lambda table: model.prepare(table, run)) if run.regularizers else data
            fit(theta, losses, asked, settled, name="main", regularizer_data=seen)
            tuned = sum(p.numel() for p in theta.parameters())
            edit = theta.edit()
            return attrs.evolve(edit, facts={**edit.facts, "tuned_parameters": tuned})
        finally:
            theta.detach()


@attrs.frozen(eq=False)
class Question:
    """What student and untouched model are asked about the rows of one side.

    Args:
        noisy: latents x_t, ``(B, C, h, w)``; timesteps: ``(B,)``.
        captions: what the student reads, s or c_r.
        erased: per row the prompts c; their predictions are averaged. Empty for retain, and where the target is known.
        target: of the rows, ``(B, C, h, w)``, if a bank already holds it.
    """

    noisy: Tensor
    timesteps: Tensor
    captions: tuple[str, ...]
    erased: tuple[tuple[str, ...], ...] = ()
    target: Tensor | None = None


@attrs.frozen(eq=False)
class NegativeGuidance:
    """The losses of ESD as `fit` wants them: called with the batches of one or both sides.

    Args:
        model: the denoiser; theta: its trainable change; config: settings.
    """

    model: SampledDenoiser
    theta: Theta
    config: EsdConfig

    @property
    def partway(self) -> Partway:
        """Where the latents come from."""
        return Partway(self.model, self.theta, self.config)

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Return ``forget``: L_forget and ``retain``: L_retain, those that were asked for, as float32 scalars."""
        questions = {side: self.ask(batch) for side, batch in batches.items()}
        targets = self.targets(questions)
        student = self._answer(questions)
        return {side: F.mse_loss(student[side].float(), targets[side].float()) for side in questions}

    def ask(self, batch: Batch) -> Question:
        """Take latents and targets of the rows from the bank, or go a part of the way with each."""
        noisy, t = (batch[LATENTS], batch[TIMESTEPS]) if LATENTS in batch else self.partway.of(batch)
        if TARGETS in batch:
            return Question(noisy, t, batch.overwrites, target=batch[TARGETS])
        return Question(noisy, t, batch.overwrites, self._erased(batch) if batch.side == "forget" else ())

    def _erased(self, batch: Batch) -> tuple[tuple[str, ...], ...]:
        if self.config.erase_from != "common":
            return tuple((caption,) for caption in batch.captions)
        prompts = tuple(dict.fromkeys(batch.examples.captions))
        if len(prompts) <= self.config.common_prompts:
            return (prompts,) * len(batch)
        drawn = (torch.randperm(len(prompts), generator=g).tolist() for g in batch.generators("erased"))
        return tuple(tuple(prompts[row] for row in rows[: self.config.common_prompts]) for rows in drawn)

    @torch.no_grad()
    def targets(self, questions: Mapping[str, Question]) -> dict[str, Tensor]:
        """Return what the student should answer per side, ``(B, C, h, w)``, without gradient."""
        known = {side: q.target for side, q in questions.items() if q.target is not None}
        if len(known) == len(questions):
            return known
        with self.theta.base():
            # In the layout of the student's own pass: other batch sizes round differently, and the retain loss of an
            # untouched student would not be zero.
            answers = self._answer(questions)
            if "forget" in questions and not known:
                answers["forget"] = self._away(questions["forget"], answers["forget"])
        return answers | known

    def steered(self, batch: Batch) -> Tensor:
        """Return the targets of forget rows, ``(B, C, h, w)``, for the bank."""
        return self.targets({"forget": self.ask(batch)})["forget"]

    def _away(self, asked: Question, own: Tensor) -> Tensor:
        """Return the target of the forget rows from ``own = e*(x_t, s)``."""
        concept = own
        if asked.erased != tuple((caption,) for caption in asked.captions):
            columns = [self._ask(asked, captions) for captions in zip(*asked.erased, strict=True)]
            concept = torch.stack(columns).mean(dim=0)  # (B, C, h, w)
        empty = self._ask(asked, [""] * len(asked.captions))
        start = empty if self.config.erase_from == "none" else own
        return away_from(start, concept, empty, self.config.negative_guidance)

    def _ask(self, asked: Question, captions: Sequence[str]) -> Tensor:
        return self.model.predict(asked.noisy, asked.timesteps, self.model.embed(captions))

    def _answer(self, questions: Mapping[str, Question]) -> dict[str, Tensor]:
        """Predict all sides as one batch and cut the result into sides."""
        z_t = torch.cat([q.noisy for q in questions.values()])
        t = torch.cat([q.timesteps for q in questions.values()])
        c = self.model.embed([caption for q in questions.values() for caption in q.captions])
        parts = torch.split(self.model.predict(z_t, t, c), [len(q.captions) for q in questions.values()])
        return dict(zip(questions, parts, strict=True))


def away_from(start: Tensor, concept: Tensor, empty: Tensor, eta: float) -> Tensor:
    """Return ``start - eta (concept - empty)``, all predictions ``(B, C, h, w)`` at the same latents.

    Example:
        >>> e_c, e_0 = torch.tensor(3.0), torch.tensor(1.0)
        >>> away_from(e_0, e_c, e_0, eta=1.0), away_from(e_c, e_c, e_0, eta=2.0)
        (tensor(-1.), tensor(-1.))
    """
    return start - eta * (concept - empty)
