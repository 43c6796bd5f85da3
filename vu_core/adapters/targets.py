"""Which tensors a list of targets means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from torch import Tensor, nn

from vu_core.contracts.model import Model
from vu_core.errors import PlanError, did_you_mean


def matching_modules(
    model: Model, targets: Sequence[str], accepts: Callable[[nn.Module], bool]
) -> tuple[tuple[str, nn.Module], ...]:
    """Return (name, module) for the accepted modules that the targets name, in the order of the network.

    A target is the end of a module's name, in whole words: ``to_q`` and ``attn2.to_q`` match
    ``unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q``. What lies below a matching module matches too.
    Targets mean the denoiser, or the whole network of a model without one; a target that begins with the name of a
    component (``text_encoder.q_proj``) means that component. Without targets everything there matches.

    Raises:
        PlanError: ``VU-L030`` when a target matches no accepted module, with near misses.
    """
    components = tuple(name for name, _ in model.network.named_children())
    home = getattr(model, "denoiser", None)
    rules = [_rule(target, components, home) for target in targets] or [(home, "")]
    found: set[str] = set()
    matches = []
    for name, module in model.network.named_modules():
        hits = [target for target, rule in zip(targets or ("",), rules, strict=True) if name and _matches(name, *rule)]
        if hits and accepts(module):
            found.update(hits)
            matches.append((name, module))
    missing = [target for target in targets or ("",) if target not in found]
    if missing:
        raise _no_match(model, missing, accepts)
    return tuple(matches)


def _rule(target: str, components: Collection[str], home: str | None) -> tuple[str | None, str]:
    """Return (component or ``None`` for all, rest of the target)."""
    first, _, rest = target.partition(".")
    return (first, rest) if first in components else (home, target)


def _matches(name: str, component: str | None, rest: str) -> bool:
    if component is not None:
        if name != component and not name.startswith(component + "."):
            return False
        name = name[len(component) + 1 :]
    return not rest or f".{rest}." in f".{name}."


def _no_match(model: Model, missing: Sequence[str], accepts: Callable[[nn.Module], bool]) -> PlanError:
    words = {word for name, module in model.network.named_modules() if accepts(module) for word in _endings(name)}
    lines = [
        f"The target {target!r} matches no module that these parameters can train.{did_you_mean(target, words)}"
        for target in missing
    ]
    return PlanError(
        "VU-L030",
        "\n".join(lines),
        "Name the end of a module's name, such as 'to_q', or begin with a component: "
        + ", ".join(f"'{name}.'" for name, _ in model.network.named_children())
        + ".",
        where="unlearner.parameters.targets",
    )


def _endings(name: str) -> Iterator[str]:
    words = name.split(".")
    for length in (1, 2):
        yield ".".join(words[-length:])


def chosen(
    candidates: Sequence[str], targets: Collection[str] | None, masks: Mapping[str, Tensor] | None
) -> tuple[str, ...]:
    """Return the candidates that a method wants to train, in their own order.

    Raises:
        PlanError: ``VU-L031`` when a target or a mask names no candidate.
    """
    wanted = tuple(candidates) if targets is None else tuple(name for name in candidates if name in set(targets))
    for what, names, known in (("target", targets or (), candidates), ("mask", masks or (), wanted)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise PlanError(
                "VU-L031",
                f"The method gave a {what} for {unknown[0]!r}, which the configured parameters do not train."
                + did_you_mean(unknown[0], known),
                "Let unlearner.parameters.targets include it, or report this to the author of the method.",
                where="unlearner.parameters.targets",
            )
    return wanted
