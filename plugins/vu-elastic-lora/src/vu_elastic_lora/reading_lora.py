"""LoRA files of other tools: which tensors belong together, and how strong the change is.

Readers scale the product of the factors, ``delta = gamma * (B A)`` with ``gamma = alpha / r``; who says alpha differs::

    diffusers   <module>.lora_A.weight, .lora_B.weight                   the metadata of the file, else alpha = r
                <module>.lora.down.weight, .lora.up.weight               likewise
                <block>.processor.to_q_lora.down.weight, .up.weight      likewise (before 2023)
    peft        base_model.model.<module>.lora_A.weight, .lora_B.weight  adapter_config.json
    kohya       lora_unet_<module>.lora_down.weight, .lora_up.weight     lora_unet_<module>.alpha, else alpha = r
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vu_core import EditError, LowRank
from vu_elastic_lora.reading import AGAIN, Adapter, Change, no_adapter
from vu_elastic_lora.reading_config import LoraFacts, lora_facts

if TYPE_CHECKING:
    from torch import Tensor

_FACTOR = re.compile(
    r"(?P<module>.+?)[._]"
    r"(?:lora_(?P<new>[AB])(?:\.(?P<adapter>[^.]+))?|lora[._](?:linear_layer\.)?(?P<old>down|up))\.weight"
)
_ALPHA = re.compile(r"(?P<module>.+?)(?:[._]lora)?\.alpha")
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_PEFT = "base_model.model."

_OTHER_KINDS = {
    "lora_magnitude_vector": "DoRA, which scales whole rows of the weight as well",
    "dora_scale": "DoRA, which scales whole rows of the weight as well",
    "lora_mid": "LoCon with a third factor",
    "hada_": "LoHa, a product of two low-rank changes",
    "lokr_": "LoKr, a Kronecker product",
    "lora_embedding_": "LoRA of an embedding",
    "lora_B.bias": "LoRA with a bias of its own",
}
"""Pieces of keys that belong to changes of another form, and what they are."""

_TEXT_ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Old names of the projections of a text encoder."""


@attrs.define
class _Keys:
    """The keys that belong to one module, as far as they were found."""

    down: str = ""
    up: str = ""
    alpha: str = ""


def read_lora(path: Path, stored: Any) -> Adapter:
    """Pair the factors of a file and find the scale of each pair.

    Args:
        path: the file; beside one of peft its configuration is read, too.
        stored: the file, opened by ``safetensors.safe_open``; nothing is loaded before all keys are understood.

    Raises:
        EditError: ``VU-E098`` when a configuration is damaged; ``VU-E099`` when the tensors are no LoRA, or contradict
            each other or the configuration.
    """
    names = sorted(stored.keys())
    pairs = _paired(path, names)
    facts = lora_facts(path, stored.metadata() or {})
    changes, silent, rescaled = [], 0, False
    for module, keys in sorted(pairs.items()):
        a, b = stored.get_tensor(keys.down), stored.get_tensor(keys.up)
        _check_factors(path, keys, a, b)
        own = stored.get_tensor(keys.alpha) if keys.alpha else None
        said = facts.get(module.partition(".")[0], facts.get(""))
        alpha = _alpha(path, module, own, said, rank=len(a))
        silent += alpha is None
        rescaled |= said is not None and said.use_rslora
        part = LowRank(a.flatten(1), b.flatten(1), float(len(a)) if alpha is None else alpha)
        changes.append(Change(module, part, a.nbytes + b.nbytes + (0 if own is None else own.nbytes)))
    return Adapter(path, _format(names), tuple(changes), notes=tuple(_notes(silent, len(changes), rescaled)))


def _notes(silent: int, modules: int, rescaled: bool) -> Iterator[str]:
    if silent:
        which = "it" if silent == modules else f"{silent} of {modules} modules"
        yield f"No alpha is written for {which}: alpha = rank, as readers of such files take it."
    if rescaled:
        yield "The scale is alpha / sqrt(rank) (use_rslora); the alpha shown is the one that gives the same gamma."


def _format(names: Sequence[str]) -> str:
    if names[0].startswith(_KOHYA):
        return "LoRA in the style of kohya"
    return "LoRA of peft" if names[0].startswith(_PEFT) else "LoRA of diffusers"


def _paired(path: Path, names: Sequence[str]) -> dict[str, _Keys]:
    """Return the keys per module. Raises: EditError when keys are left over, missing or there twice."""
    pairs: dict[str, _Keys] = {}
    unknown, adapters = [], set()
    for name in names:
        factor, alpha = _FACTOR.fullmatch(name), _ALPHA.fullmatch(name)
        if factor:
            keys = pairs.setdefault(_module(factor["module"]), _Keys())
            role = "down" if factor["new"] == "A" or factor["old"] == "down" else "up"
            adapters.add(factor["adapter"] or "(without a name)")
        elif alpha:
            keys, role = pairs.setdefault(_module(alpha["module"]), _Keys()), "alpha"
        else:
            unknown.append(name)
            continue
        if getattr(keys, role) and len(adapters) == 1:
            raise no_adapter(path, f"{getattr(keys, role)!r} and {name!r} in {path.name!r} are the same tensor.", AGAIN)
        setattr(keys, role, name)
    if unknown or not adapters:
        raise _no_lora(path, unknown or names, of=len(names))
    if len(adapters) > 1:
        listed = ", ".join(sorted(adapters))
        raise no_adapter(path, f"{path.name!r} holds {len(adapters)} adapters: {listed}.", "Export one per file.")
    for module, keys in pairs.items():
        if not (keys.down and keys.up):
            missing = "B (up)" if keys.down else "A (down)" if keys.up else "both factors"
            alone = keys.down or keys.up or keys.alpha
            raise no_adapter(path, f"{alone!r} stands alone: {missing} of {module!r} is missing.", AGAIN)
    return pairs


def _module(name: str) -> str:
    """Return the name of a module as models have it today, without what files put around it."""
    name = name.removeprefix(_PEFT)
    block, _, layer = name.rpartition(".")
    if block.endswith(".processor"):  # attention processors held the factors
        return f"{block.removesuffix('.processor')}.{layer}{'.0' if layer == 'to_out' else ''}"
    if block.endswith(".self_attn"):
        return f"{block}.{_TEXT_ENCODER.get(layer, layer)}"
    return name


def _no_lora(path: Path, unknown: Sequence[str], *, of: int) -> EditError:
    if not unknown:
        return no_adapter(path, f"{path.name!r} holds no tensors at all.", AGAIN)
    for piece, kind in _OTHER_KINDS.items():
        for name in unknown:
            if piece in name:
                return no_adapter(
                    path,
                    f"{path.name!r} is {kind} (key {name!r}); vu reads plain products of two factors.",
                    "Merge it into a model with the tool that made it, or convert it to a plain LoRA.",
                )
    listed = ", ".join(repr(name) for name in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    if len(unknown) == of:
        return no_adapter(
            path,
            f"{path.name!r} is no adapter: none of its {of} tensors is a factor of a change ({listed}). "
            "It may be a whole model.",
            "Name the file of an adapter, such as edit.safetensors or pytorch_lora_weights.safetensors.",
        )
    return no_adapter(
        path,
        f"{len(unknown)} of the {of} tensors in {path.name!r} belong to no LoRA: {listed}.",
        "Export the adapter again, without other weights in its file.",
    )


def _check_factors(path: Path, keys: _Keys, a: Tensor, b: Tensor) -> None:
    """Object to what is no ``(r, in)`` and ``(out, r)``, or ``(r, C_in, k, k)`` and ``(out, r, 1, 1)``."""
    if not (a.is_floating_point() and b.is_floating_point()):
        raise no_adapter(
            path,
            f"{keys.down!r} and {keys.up!r} hold {a.dtype} and {b.dtype}, not floating-point numbers.",
            "Export the adapter without quantisation.",
        )
    matrices = a.dim() >= 2 and b.dim() >= 2 and a.numel() and b.numel()
    if not matrices or not len(a) == b.shape[1] == b[0].numel():
        raise no_adapter(
            path,
            f"{keys.down!r} of shape {tuple(a.shape)} and {keys.up!r} of shape {tuple(b.shape)} are no pair of "
            "factors: A is (r, in) and B is (out, r).",
            AGAIN,
        )


def _alpha(path: Path, module: str, own: Tensor | None, said: LoraFacts | None, *, rank: int) -> float | None:
    """Return alpha with ``gamma = alpha / rank``, or ``None`` when nothing says it."""
    told: dict[str, float] = {}
    if own is not None:
        if own.numel() != 1:
            raise no_adapter(
                path, f"alpha of {module!r} has the shape {tuple(own.shape)}, but must be one number.", AGAIN
            )
        told["its tensor"] = float(own)
    if said is not None:
        expected = said.rank_of(module)
        if expected != rank:
            raise no_adapter(path, f"{module!r} has rank {rank}, but {said.source} says {expected:g}.", AGAIN)
        told[said.source] = said.alpha_of(module, rank)
    if len(set(told.values())) > 1:
        sayings = " and ".join(f"{source} says {value:g}" for source, value in told.items())
        raise no_adapter(path, f"alpha of {module!r} is not clear: {sayings}.", AGAIN)
    return next(iter(told.values()), None)
