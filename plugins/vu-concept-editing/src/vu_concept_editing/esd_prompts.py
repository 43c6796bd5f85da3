"""Which prompts ESD erases, what it erases them from, and which it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from vu_core import ConfigError, Examples, ForgetRetain, Run
from vu_core.training import process_group

if TYPE_CHECKING:
    from vu_concept_editing.esd import EsdConfig


def check_prompts(prompts: tuple[str, ...]) -> str | None:
    """Return what is wrong with a list of erased prompts, or ``None``."""
    if len(set(prompts)) < len(prompts):
        return "must not hold a prompt twice"
    return check_from_prompts(prompts)


def check_from_prompts(prompts: tuple[str, ...]) -> str | None:
    """Return what is wrong with a list of prompts to erase from, or ``None``; several may be erased from the same."""
    if any(not prompt.strip() for prompt in prompts):
        return "must not hold an empty prompt: that is what the others are steered towards"
    return None


def tables(data: ForgetRetain, config: EsdConfig, run: Run) -> ForgetRetain:
    """Return the prompts as tables without images: one row per distinct prompt, so that each counts the same.

    Forget rows have c as caption and, as overwrite, what the student is asked; retain rows have c_r as caption. Rows
    are repeated until a batch is full; each of them has draws of its own. Empty captions, of images that have none,
    are left out.

    Args:
        data: as handed to the method.
        config: of the method.
        run: as handed to the method; its training says how large a batch is.

    Raises:
        ConfigError: ``VU-C110``, ``VU-C111``, ``VU-C112``; see `Esd.unlearn`.
    """
    pairs = _erased(data.forget, config)
    kept = tuple(dict.fromkeys(caption for caption in data.retain.captions if caption))
    training = run.training
    if training is None:
        raise RuntimeError("esd needs run.training")
    least = training.batch_size * training.accumulation * process_group(torch.device(run.device)).count
    forget = pairs * -(-least // len(pairs))
    retain = kept * -(-least // len(kept)) if kept else ()
    return attrs.evolve(
        data,
        forget=Examples("forget", tuple(c for c, _ in forget), tuple(s for _, s in forget)),
        retain=Examples("retain", retain),
    )


def _erased(forget: Examples, config: EsdConfig) -> tuple[tuple[str, str], ...]:
    """Return (erased prompt, prompt that the student is asked), each pair once."""
    if config.erase_from == "overwrite":
        if forget.overwrites is None:
            raise ConfigError(
                "VU-C112",
                "The forget examples have no overwrite captions to erase their captions from.",
                "Name an overwrite (--overwrite), or use another value of unlearner.erase_from.",
                where="unlearner.erase_from",
            )
        pairs = zip(forget.captions, forget.overwrites, strict=True)
        return _some(tuple(dict.fromkeys(pair for pair in pairs if pair[0])))
    erased = config.prompts or tuple(dict.fromkeys(caption for caption in forget.captions if caption))
    if config.erase_from != "prompts":
        return _some(tuple(zip(erased, erased, strict=True)))
    if len(config.from_prompts) not in (1, len(erased)):
        raise ConfigError(
            "VU-C111",
            f"There are {len(config.from_prompts)} from_prompts for {len(erased)} captions of forget examples.",
            "Name one for all, or the erased prompts as well (unlearner.prompts) and one for each in the same order.",
            where="unlearner.from_prompts",
        )
    asked = config.from_prompts * (len(erased) if len(config.from_prompts) == 1 else 1)
    return _some(tuple(zip(erased, asked, strict=True)))


def _some(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    if not pairs:
        raise ConfigError(
            "VU-C110",
            "There is no prompt to erase: no forget example has a caption.",
            "Name what is erased with unlearner.prompts, or use data with captions.",
            where="unlearner.prompts",
        )
    return pairs
