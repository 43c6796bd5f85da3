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
        summary="UA, RA, TA, MIA and Avg. Gap of a classifier: how often it is right on what was forgotten and kept",
        needs=("classify", "unseen-retain"),
    )
    register(
        "mia",
        "vu_metrics.mia:MembershipInference",
        summary="membership inference by every feature and attack: do forgotten images pass for unseen ones?",
        needs=("classify", "unseen-retain"),
    )
    register(
        "continual",
        "vu_metrics.continual:Continual",
        summary="Acc_f, Acc_r, Acc_o, Acc_m and H-Mean of a task of continual forgetting, on unseen images",
        needs=("classify", "unseen"),
    )
    register(
        "head-recovery",
        "vu_metrics.head_recovery:HeadRecovery",
        summary="how much of what was forgotten comes back when only the head is trained again",
        needs=("classify", "unseen"),
    )
    register(
        "linear-probe",
        "vu_metrics.linear_probe:LinearProbe",
        summary="whether the features still tell apart what was forgotten: a linear classifier and neighbours",
        needs=("classify", "unseen"),
    )
    register(
        "relearn-time",
        "vu_metrics.relearn_time:RelearnTime",
        summary="how many steps on a few forget images bring back what was forgotten",
        needs=("classify", "unseen"),
    )
