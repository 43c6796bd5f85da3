"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl

AXES = ("parameters", "weighting", "regularizer")


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name the variants of FADE, and negation."""
    register(
        "fade",
        "vu_fade.fade:Fade",
        summary="self-distillation: answer the forgotten prompt as the overwrite prompt, everything else as before",
        aliases=("spare",),
        needs=("denoise",),
        axes=AXES,
        default=True,
    )
    register(
        "fade-sparse-module",
        "vu_fade.sparse_module:FadeSparseModule",
        summary="FADE that tunes only the modules that matter most for the forget examples",
        aliases=("spare-sparse-module",),
        needs=("denoise",),
        axes=(*AXES, "attribution"),
    )
    register(
        "fade-sparse-weight",
        "vu_fade.sparse_weight:FadeSparseWeight",
        summary="FADE that changes only the weights that matter most for the forget examples",
        aliases=("fade-sparse", "spare-sparse", "spare-sparse-weight"),
        needs=("denoise",),
        axes=(*AXES, "attribution"),
    )
    register(
        "lora-negation",
        "vu_fade.lora_negation:LoraNegation",
        summary="learn the concept once more, then subtract what was learned; looks at the forget examples alone",
        aliases=("direct",),
        needs=("denoise",),
        axes=("parameters", "regularizer"),
    )
