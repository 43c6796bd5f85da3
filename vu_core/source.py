"""Where an algorithm comes from."""

from __future__ import annotations

from typing import Literal

import attrs

Provenance = Literal["paper", "paper+fixes", "code", "own", "parity", "unverified"]


@attrs.frozen
class Source:
    """Name the paper, the address and how close the code is to it.

    Args:
        paper: title, authors' short form and year, as one would cite it.
        url: address of the paper or of the project.
        provenance: ``paper`` (follows the paper), ``paper+fixes`` (with the deviations its docstrings list),
            ``code`` (follows released code where the paper is silent), ``own`` (ours), ``parity`` (reproduces
            earlier code with its faults), ``unverified``.

    Example:
        >>> Source("LoRA, Hu et al. 2021", "https://arxiv.org/abs/2106.09685", "paper").provenance
        'paper'
    """

    paper: str
    url: str
    provenance: Provenance = "paper"
