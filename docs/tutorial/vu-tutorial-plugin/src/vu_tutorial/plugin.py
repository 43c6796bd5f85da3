"""What this distribution brings: names and summaries, nothing heavy."""

from vu_core import Register, hookimpl


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name the method."""
    register(
        "mute",
        "vu_tutorial.mute:Mute",
        summary="answer a forgotten caption as if nothing had been said",
        needs=("denoise",),
        axes=("parameters", "weighting", "regularizer"),
    )


@hookimpl
def vu_register_metrics(register: Register) -> None:
    """Name the metric."""
    register(
        "contrast",
        "vu_tutorial.contrast:Contrast",
        summary="contrast of the images that should have stayed as they were",
        needs=("generate",),
    )
