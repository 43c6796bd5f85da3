"""UCE: cross-attention reads the forgotten words as other ones, solved in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import attrs
from torch import Tensor, nn

from vu_concept_editing.closed_form import Columns, Residual, as_part, change_of, erasing_rows
from vu_concept_editing.columns import preserved_texts, read_columns
from vu_concept_editing.prompts import TEMPLATES, TOKENS
from vu_concept_editing.scales import Scales
from vu_core import Denoiser, Edit, ForgetRetain, Model, PlanError, Run, Source, did_you_mean, setting


def _plain(text: str) -> str:
    """Return a text as text encoders tell it from others: without capitals and further spaces."""
    return " ".join(text.casefold().split())


def _each_once(texts: Sequence[str]) -> str | None:
    known: dict[str, str] = {}
    for text in texts:
        if _plain(text) in known:
            return f"names {known[_plain(text)]!r} and {text!r}, which are the same"
        known[_plain(text)] = text
    return None


def _each_once_and_not_empty(texts: Sequence[str]) -> str | None:
    if not all(map(_plain, texts)):
        return "holds a text without words, and there is nothing in it to forget"
    return _each_once(texts)


def _some(texts: Sequence[str]) -> str | None:
    return None if texts and all(texts) else "must name at least one layer, such as 'attn2.to_v'"


@attrs.frozen
class UceConfig:
    """Settings of `Uce`."""

    concepts: tuple[str, ...] = setting(
        (), help="words to forget, such as ['cat']; what the data forget when empty", check=_each_once_and_not_empty
    )
    guides: tuple[str, ...] = setting(
        (), help="what is read instead, one for all or one each; when empty no words, or 'art' with expand = 'art'"
    )
    preserve: tuple[str, ...] = setting(
        (),
        help="texts that keep their meaning; when empty and the data name the concepts, their retain captions",
        check=_each_once,
    )
    erase_scale: float = setting(1.0, help="e: how much reading concepts as their guides counts", gt=0)
    preserve_scale: float = setting(1.0, help="q: how much leaving preserved texts alone counts", ge=0)
    regularization: float = setting(0.5, help="lambda: how much staying close to the base counts", gt=0)
    tokens: str = setting(
        "last",
        help="which rows of a text: its last token; all of the subject; or these and every row after them",
        choices=TOKENS,
    )
    expand: str = setting(
        "none", help="edit every concept in further prompts too, such as 'painting by X'", choices=tuple(TEMPLATES)
    )
    layers: tuple[str, ...] = setting(
        ("attn2.to_k", "attn2.to_v"), help="ends of the names of linear maps that read the text", check=_some
    )

    def __attrs_post_init__(self) -> None:
        problem = self._unnamed() if not self.concepts else self._mismatch()
        if problem:
            raise ValueError(problem)

    def _unnamed(self) -> str:
        """Return what needs concepts where none are named."""
        if self.guides:
            return f"names the guides {', '.join(map(repr, self.guides))}, but no concepts that are read as them"
        return f"has expand = {self.expand!r}, but names no concepts to expand" if self.expand != "none" else ""

    def _mismatch(self) -> str:
        """Return what does not go together among concepts, guides and preserved texts."""
        if len(self.guides) not in (0, 1, len(self.concepts)):
            return f"has {len(self.guides)} guides for {len(self.concepts)} concepts: name one for all, or one each"
        for concept, guide in zip(self.concepts, self.guides_each(), strict=True):
            if _plain(concept) == _plain(guide):
                return f"reads {concept!r} as itself, which has no effect: name another guide"
        kept = {_plain(text) for text in self.preserve}
        both = [concept for concept in self.concepts if _plain(concept) in kept]
        return f"names {both[0]!r} among the concepts and among what is preserved" if both else ""

    def guides_each(self) -> tuple[str, ...]:
        """Return one guide per concept."""
        guides = self.guides or ("art" if self.expand == "art" else "",)
        return guides * len(self.concepts) if len(guides) == 1 else guides

    @property
    def scales(self) -> Scales:
        """e, q and lambda."""
        return Scales(self.erase_scale, self.preserve_scale, self.regularization)


class Uce:
    """Make cross-attention read forgotten words as other ones: one linear solve, no training, many concepts at once.

    Every layer of cross-attention maps the text embedding by a matrix W, to keys and to values. Its new value is what
    minimises ::

        lambda |W' - W|^2  +  e sum_i |W' c_i - W g_i|^2  +  q sum_j |W' p_j - W p_j|^2

    over the columns ``c_i`` of forgotten words, ``g_i`` of what is read instead (the guides), and ``p_j`` of what is
    preserved::

        W' = W + e W (G - C) C^T M^-1        M = lambda I + e C C^T + q P P^T

    ``C^T M^-1`` is the same for all layers, so it is solved once; see `erasing_rows`. The change of a layer has at most
    the rank n of C. Everything is computed in float64 and rounded once.

    Concepts are texts of their own (``concepts``, ``guides``, ``preserve``), or come from the data: then every distinct
    pair of a forget caption and its overwrite caption is edited, the subject is what differs between the two, and the
    distinct retain captions are preserved.

    A text has one row per token. ``tokens`` says which rows are columns of C and G: ``last`` is the last one before the
    end token, ``subject`` all of the concept, ``after`` these and all rows behind them up to the end of the padding. A
    causal text model carries a word into all later rows, so that ``last`` and ``subject`` leave copies of the concept
    in those; ``after`` also preserves the rows in front of the concept, and every row of preserved texts. See `pairs`
    for how rows of concept and guide are aligned.

    Args:
        config: see `UceConfig`.

    Example:
        >>> Uce(UceConfig(concepts=("cat", "fox"), guides=("dog",))).config.guides_each()
        ('dog', 'dog')

    Source:
        Unified Concept Editing in Diffusion Models, Gandikota et al. 2024, arXiv 2308.14761, equation 7.

    Deviates:
        The scales e, q and lambda and the choice of tokens are those of the released code; equation 7 has e = q = 1 and
        no lambda. Solved in float64, while the released code inverts in the precision of the model, once per layer. A
        guide that equals its concept is an error (there: an edit without effect). No debiasing.
    """

    Config: ClassVar[type[UceConfig]] = UceConfig
    source: ClassVar[Source] = Source(
        "Unified Concept Editing in Diffusion Models, Gandikota et al. 2024",
        "https://arxiv.org/abs/2308.14761",
        "paper+fixes",
    )
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    uses_images: ClassVar[bool] = False

    def __init__(self, config: UceConfig) -> None:
        self.config = config

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Solve for the new weights of all layers.

        Raises:
            ConfigError: a guide is its concept to the text encoder (``VU-C105``), a subject is cut off (``VU-C106``),
                or nothing is named to forget (``VU-C107``).
            PlanError: no layer matches (``VU-L100``), or one reads no text (``VU-L101``).
            UnlearnError: ``VU-U105`` when the equations have no solution.
        """
        layers = text_layers(model, self.config.layers)
        columns = read_columns(model, data, self.config)
        if not preserved_texts(data, self.config):
            text = "UCE preserves nothing by name, so texts near the forgotten ones change too: see unlearner.preserve."
            run.emit("warning", text=text)
        return solved(layers, columns, self.config.scales, self.config.layers)


def solved(layers: Mapping[str, Tensor], columns: Columns, scales: Scales, kinds: Sequence[str]) -> Edit:
    """Return the edit that the closed form gives.

    Args:
        layers: weights ``(out, d)`` by name.
        columns: C, G and P.
        scales: e, q and lambda.
        kinds: ends of module names, by which the facts are told.

    Returns:
        Low-rank parts, or whole tensors where those are smaller. The facts say how many columns were erased and
        preserved, and per kind of layer ``erased_before`` and ``erased_after``, ``|W c - W g| / |W g|`` over all
        columns with W before and after, and ``preserved``, ``|W' p - W p| / |W p|``.

    Raises:
        PlanError: ``VU-L101`` a weight does not take d numbers.
        UnlearnError: ``VU-U105``.
    """
    d, n = columns.concepts.shape
    for name, weight in layers.items():
        if weight.shape[1] != d:
            raise _reads_no_text(name, int(weight.shape[1]), d)
    rows = erasing_rows(columns, scales)  # (n, d)
    parts = {}
    residuals = {kind: Residual(columns, rows, scales.erase) for kind in kinds}
    for name, weight in layers.items():
        left = change_of(weight, columns, scales.erase)  # (out, n)
        parts[name] = as_part(weight, left, rows)
        kind = next(kind for kind in kinds if _ends(name.removesuffix(".weight"), kind))
        residuals[kind].add(weight, left)
    facts = {"erased_columns": n, "preserved_columns": columns.preserved.shape[1]}
    return Edit(parts, facts={**facts, "residual": {kind: found.shares() for kind, found in residuals.items()}})


def text_layers(model: Model, ends: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights of the linear maps of the denoiser whose names end so, in whole words.

    Raises:
        PlanError: ``VU-L100`` when an end matches no linear map, with near misses.
    """
    home = cast(Denoiser, model).denoiser
    maps = {
        f"{home}.{name}": module
        for name, module in model.network.get_submodule(home).named_modules()
        if isinstance(module, nn.Linear)
    }
    for end in ends:
        if not any(_ends(name, end) for name in maps):
            words = {".".join(name.split(".")[-length:]) for name in maps for length in (1, 2)}
            raise PlanError(
                "VU-L100",
                f"The layer {end!r} matches no linear map of the {home}.{did_you_mean(end, words)}",
                "Name the ends of the names of maps that read the text, such as 'attn2.to_k' and 'attn2.to_v'.",
                where="unlearner.layers",
            )
    return {f"{name}.weight": module.weight for name, module in maps.items() if any(_ends(name, end) for end in ends)}


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _reads_no_text(name: str, width: int, d: int) -> PlanError:
    return PlanError(
        "VU-L101",
        f"The layer {name.removesuffix('.weight')!r} reads {width} numbers, but a token of the text has {d}: it "
        "does not read the text.",
        "Name layers of cross-attention that do, such as 'attn2.to_k' and 'attn2.to_v'.",
        where="unlearner.layers",
    )
