"""Names of the metrics; imports no metric."""

from vu_core import Register, hookimpl


@hookimpl
def vu_register_metrics(register: Register) -> None:
    """Name the metrics of this distribution."""
    register(
        "unlearncanvas",
        "vu_metrics.unlearncanvas:UnlearnCanvas",
        summary="UA, IRA and CRA of generated images, as the UnlearnCanvas benchmark defines them",
        aliases=("uc",),
        needs=("generate", "judge"),
    )
    register(
        "edit-size",
        "vu_metrics.edit_size:EditSize",
        summary="how many numbers of the model an edit changes, and its size in bytes",
    )
    register(
        "denoising-gap",
        "vu_metrics.denoising_gap:DenoisingGap",
        summary="how far the edited denoiser is from the untouched one on unseen forget and retain images",
        needs=("denoise", "unseen"),
    )
    register(
        "classification",
        "vu_metrics.classification:Classification",
        summary="UA and TA of a classifier: how often it is right on unseen forget and retain images",
        needs=("classify", "unseen"),
    )
