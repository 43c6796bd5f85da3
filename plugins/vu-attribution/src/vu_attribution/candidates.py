"""Which parameters are scored."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from vu_core import Model, PlanError, did_you_mean


def named_candidates(model: Model, candidates: Collection[str] | None) -> dict[str, Tensor]:
    """Return the parameters to score by name, in the order of the network.

    Args:
        model: a loaded model; its denoiser is scored when ``candidates`` is ``None``.
        candidates: parameter names with their component, such as ``unet.mid_block...to_q.weight``.

    Raises:
        PlanError: ``VU-L090`` when a name is no parameter of the network, with near misses.
    """
    parameters = dict(model.network.named_parameters())
    if candidates is None:
        component = getattr(model, "denoiser", "")
        return {name: p for name, p in parameters.items() if not component or name.startswith(f"{component}.")}
    wanted = set(candidates)
    unknown = sorted(wanted - parameters.keys())
    if unknown:
        raise PlanError(
            "VU-L090",
            f"The network has no parameter {unknown[0]!r}.{did_you_mean(unknown[0], parameters)}",
            "Name parameters with their component, as listed by model.network.named_parameters().",
            where="unlearner.attribution",
        )
    return {name: p for name, p in parameters.items() if name in wanted}
