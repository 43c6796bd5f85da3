"""Parts of a denoiser by the names that ESD gave them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from vu_core.errors import PlanError, near_misses


def _cross_attention(words: list[str]) -> bool:
    return "attn2" in words


def _linear_maps(words: list[str]) -> bool:
    return _cross_attention(words) and not any("norm" in word for word in words[words.index("attn2") :])


def _keys_and_values(words: list[str]) -> bool:
    return any(pair in (("attn2", "to_k"), ("attn2", "to_v")) for pair in pairwise(words))


SUBSETS: Mapping[str, tuple[str | None, str, Callable[[list[str]], bool]]] = {
    "x": ("xattn", "the linear maps of cross-attention (attn2)", _linear_maps),
    "x-strict": (None, "the keys and values of cross-attention (attn2.to_k, attn2.to_v)", _keys_and_values),
    "u": ("noxattn", "everything but cross-attention (attn2)", lambda words: not _cross_attention(words)),
    "all": ("full", "everything", lambda words: True),
    "self": ("selfattn", "self-attention (attn1)", lambda words: "attn1" in words),
}
"""Per name the older name, what it means, and whether the words of a tensor's name belong to it."""

_PREFIX = "esd-"


def check_subset(which: str) -> str | None:
    """Return what is wrong with the name of a subset, or ``None``; for ``setting(..., check=check_subset)``.

    Example:
        >>> check_subset("esd-x-strict") is None
        True
        >>> check_subset("x-strct")
        "must be one of x, x-strict, u, all, self, but is 'x-strct' (did you mean 'x-strict'?)"
    """
    if _canonical(which) in SUBSETS:
        return None
    known = [*SUBSETS, *(older for older, _, _ in SUBSETS.values() if older)]
    near = " or ".join(map(repr, near_misses(which.removeprefix(_PREFIX), known)))
    return f"must be one of {', '.join(SUBSETS)}, but is {which!r}" + (f" (did you mean {near}?)" if near else "")


def subset(names: Iterable[str], which: str) -> tuple[str, ...]:
    """Return the names of a part of a denoiser, in their own order.

    ============ ============== =========================================================
    name         older name     what belongs to it
    ============ ============== =========================================================
    ``x``        ``xattn``      linear maps of ``attn2``: weights and biases, no norms
    ``x-strict`` --             ``attn2.to_k`` and ``attn2.to_v``
    ``u``        ``noxattn``    everything but ``attn2``
    ``all``      ``full``       everything
    ``self``     ``selfattn``   ``attn1``
    ============ ============== =========================================================

    Each may be written with ``esd-`` in front.

    Args:
        names: of tensors, such as `vu_core.Run.candidates` returns.
        which: name of the subset.

    Raises:
        PlanError: ``VU-L092`` when no name belongs to the subset, ``VU-L093`` when there is no such subset.

    Example:
        >>> subset(["unet.attn1.to_q.weight", "unet.attn2.to_q.weight", "unet.attn2.to_k.weight"], "x")
        ('unet.attn2.to_q.weight', 'unet.attn2.to_k.weight')

    Source:
        ESD, Gandikota et al. 2023, https://arxiv.org/abs/2303.07345, and its released code.
    """
    problem = check_subset(which)
    if problem:
        raise PlanError("VU-L093", f"The subset {problem}.", "Choose one of them.", where="unlearner.subset")
    _, meaning, belongs = SUBSETS[_canonical(which)]
    names = tuple(names)
    found = tuple(name for name in names if belongs(name.split(".")))
    if not found:
        example = f", such as {names[0]!r}" if names else ""
        raise PlanError(
            "VU-L092",
            f"The subset {which!r} is empty: {meaning} was looked for among the {len(names)} tensors that the "
            f"configured parameters can train{example}, and none belongs to it.",
            "Choose another subset, or let unlearner.parameters.targets include what is looked for.",
            where="unlearner.subset",
        )
    return found


def _canonical(which: str) -> str:
    name = which.removeprefix(_PREFIX)
    return next((key for key, (older, _, _) in SUBSETS.items() if name == older), name)
