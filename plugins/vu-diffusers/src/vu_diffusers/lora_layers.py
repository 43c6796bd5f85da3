"""Low-rank edits as the layers that LoRA files hold, or the reason why they are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import torch
from torch import Tensor, nn

from vu_core import Check, Edit, EditError, LowRank, Model, Replace, Sparse, setting
from vu_core.adapters import LoraLayer, check_fits
from vu_diffusers.stable_diffusion import StableDiffusion

COMPONENTS = ("unet", "text_encoder")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
FACTOR_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""Largest error of a product of factors that were stored or loaded in a precision, as a share of its largest number."""


@attrs.frozen
class LoraConfig:
    """Settings of the exporters of LoRA files."""

    precision: str = setting("fp32", help="precision of the factors in the file", choices=tuple(PRECISIONS))

    @property
    def dtype(self) -> torch.dtype:
        """The precision, as torch says it."""
        return PRECISIONS[self.precision]


@attrs.frozen(eq=False)
class Factors:
    """The change of one module, in the shapes of the layers that read it: linear, or convolution ``k`` then 1.

    Args:
        component: ``unet`` or ``text_encoder``.
        path: of the module in its component.
        down: A, ``(r, in)`` or ``(r, in, k_h, k_w)``.
        up: B, ``(out, r)`` or ``(out, r, 1, 1)``, not scaled.
        alpha: the change is ``(alpha / r) up down``.
    """

    component: str
    path: str
    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Return r."""
        return int(self.down.shape[0])

    @property
    def module(self) -> str:
        """Component and path."""
        return f"{self.component}.{self.path}"

    @property
    def clip_path(self) -> str:
        """The path as files name it: text encoders had one more level in earlier versions of transformers."""
        flat = self.component == "text_encoder" and not self.path.startswith("text_model.")
        return f"text_model.{self.path}" if flat else self.path

    def change(self) -> Tensor:
        """Return ``(alpha / r) B A``, ``(out, in k_h k_w)`` float64."""
        return (self.alpha / self.rank) * (self.up.double().flatten(1) @ self.down.double().flatten(1))

    def error_of(self, change: Tensor) -> float:
        """Return ``max|D' - D| / max|D|`` of another change; infinite when it has not as many numbers."""
        wanted = self.change()
        if change.numel() != wanted.numel():
            return float("inf")
        difference = change.detach().to("cpu", torch.float64).reshape(wanted.shape) - wanted
        return float(difference.abs().max() / wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def lora_factors(edit: Edit, model: Model, target: str) -> tuple[Factors, ...]:
    """Return the factors of every part, in the order of the names.

    Args:
        edit: low-rank changes of linear maps and convolutions of the denoiser and the text encoder.
        model: what it belongs to.
        target: who is to read them, for the message.

    Raises:
        EditError: VU-E070 when a LoRA file cannot hold the edit, VU-E054 when the model is another.
    """
    require_pipeline(model, f"the LoRA format of {target}")
    require_content(edit)
    names = _names(model.network)
    found = []
    for name, part in edit:
        check_fits(model.network, name, part)
        misplaced = _misplaced(name, model.network, names)
        problem = misplaced or _no_product(name, part)
        if problem or not isinstance(part, LowRank):
            can_refit = not misplaced and not isinstance(part, Replace)
            raise inexpressible(f"The LoRA format of {target}", problem, name, _remedy(can_refit))
        component, _, path = name.removesuffix(".weight").partition(".")
        shape = model.network.get_parameter(name).shape
        down = part.A.detach().reshape(part.rank, *shape[1:])  # (r, in) or (r, in, k_h, k_w)
        up = part.B.detach().reshape(shape[0], part.rank, *[1] * (len(shape) - 2))
        found.append(Factors(component, path, down.to("cpu", torch.float32), up.to("cpu", torch.float32), part.alpha))
    return tuple(found)


def _misplaced(name: str, network: nn.Module, names: Mapping[int, list[str]]) -> str:
    """Return why LoRA files have no place for a tensor; nothing when they have one."""
    path, _, leaf = name.rpartition(".")
    if name.partition(".")[0] not in COMPONENTS or leaf != "weight":
        return f"{name!r} is no weight of {' or '.join(COMPONENTS)}"
    if not LoraLayer.supports(network.get_submodule(path)):
        return f"{name!r} belongs to no linear map and no convolution"
    if len(names[id(network.get_parameter(name))]) > 1:
        others = ", ".join(repr(other) for other in names[id(network.get_parameter(name))] if other != name)
        return f"{name!r} is the same tensor as {others}, and a change beside one of them would leave the other alone"
    return ""


def _no_product(name: str, part: LowRank | Sparse | Replace) -> str:
    """Return why a change is no product of two factors; nothing when it is one."""
    if not isinstance(part, LowRank):
        kind = "sparse" if isinstance(part, Sparse) else "a new tensor"
        return f"the change of {name!r} is {kind}, not a product of two factors"
    if part.mask is not None and not bool(part.mask.all()):
        return f"the change of {name!r} is masked weight by weight, and a masked product is not of low rank"
    return ""


def _remedy(can_refit: bool) -> str:
    first = "Export the nearest change of low rank with --refit-rank R, or choose" if can_refit else "Choose"
    return f"{first} a format that holds every edit exactly: native, delta or merged."


def _names(network: nn.Module) -> dict[int, list[str]]:
    """Return all names of every parameter, by its ``id``."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def adapter_check(network: nn.Module, adapter: str, layers: Iterable[Factors], precision: torch.dtype) -> Check:
    """Compare the changes that a loader has made of a file with those of the edit, which outputs may blur.

    Args:
        network: with the adapter loaded into it by peft, or by diffusers, which uses peft.
        adapter: its name.
        layers: the factors of the edit.
        precision: the lowest one on either side; it decides the limit.

    Returns:
        ``factors``: over all modules the largest ``max|D' - D| / max|D|``, with ``D = (alpha / r) B A``; infinite when
        there is an adapter on any other module.
    """
    found: dict[str, Tensor] = {
        path: module.get_delta_weight(adapter)
        for path, module in network.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    errors = [layer.error_of(found.pop(layer.module, torch.zeros_like(layer.change()))) for layer in layers]
    errors += [float("inf") for _ in found]
    return Check("factors", largest(errors), FACTOR_TOLERANCE[precision])


def largest(errors: Iterable[float]) -> float:
    """Return the largest of some errors; not a number when one of them is none, over which ``max`` would pass."""
    return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())


def require_pipeline(model: Model, what: str) -> StableDiffusion:
    """Return the model when it is a Stable Diffusion pipeline. Raises: EditError VU-E070."""
    if isinstance(model, StableDiffusion):
        return model
    raise EditError(
        "VU-E070",
        f"A model of the kind {model.facts.name!r} is no Stable Diffusion pipeline, which {what} is for.",
        "Use the format native or delta, which hold an edit of any model.",
        where="model",
    )


def require_content(edit: Edit) -> None:
    """Raise for an edit without parts. Raises: EditError VU-E070."""
    if not edit.parts:
        raise EditError("VU-E070", "The edit is empty: there is nothing to write.", "Export another edit.")


def same_tensor(edit: Edit, model: Model) -> None:
    """Raise when two parts of an edit change one tensor, which is known by two names. Raises: EditError VU-E070."""
    for names in _names(model.network).values():
        changed = [name for name in names if name in edit.parts]
        if len(changed) > 1:
            raise EditError(
                "VU-E070",
                f"The edit changes one tensor twice, as {changed[0]!r} and as {changed[1]!r}.",
                "Use the native format, which keeps both changes apart.",
                where=changed[1],
            )


def inexpressible(what: str, problem: str, name: str, remedy: str = "Choose the format native or delta.") -> EditError:
    """Return the error for an edit that a format cannot hold."""
    return EditError("VU-E070", f"{what} cannot express this edit: {problem}.", remedy, where=name)
