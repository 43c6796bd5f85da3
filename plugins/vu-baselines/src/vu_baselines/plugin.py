"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Register, hookimpl

AXES = ("parameters", "weighting", "regularizer")
RETAIN_ONLY = (
    ("l1-sparse", "l1_sparse:L1Sparse", "fine-tuning under an l1 penalty that fades from epoch to epoch"),
    ("fine-tune-prune", "fine_tune_prune:FineTunePrune", "fine-tuning that zeroes the smallest weights, ever more"),
    ("rehearsal", "rehearsal:Rehearsal", "fine-tuning on a few examples of each class that is kept"),
)
"""Kinds of fine-tuning: name, where it lies, summary."""
CONTINUAL = (
    ("l2", "l2:L2", "wrong labels for what is forgotten; all weights stay near those of before"),
    ("ewc", "ewc:Ewc", "wrong labels for what is forgotten; weights that matter for retained labels stay near"),
    ("mas", "mas:Mas", "wrong labels for what is forgotten; weights that matter for retained answers stay near"),
    ("lwf", "lwf:Lwf", "wrong labels for what is forgotten; softened answers of before for the rest"),
    ("der", "der:Der", "wrong labels for what is forgotten; the logits of before for the rest"),
    ("fdr", "fdr:Fdr", "wrong labels for what is forgotten; answers to the rest move little"),
    ("scrub", "scrub:Scrub", "part from the model of before on what is forgotten, follow it on the rest, in turns"),
    ("scrub-s", "scrub_s:ScrubS", "SCRUB, with weights that stay near their moving mean"),
)
"""Baselines of continual learning: name, where it lies, summary."""


@hookimpl
def vu_register_unlearners(register: Register) -> None:
    """Name the methods."""
    register(
        "random-label",
        "vu_baselines.random_label:RandomLabel",
        summary="teach another label, or the answer to another prompt, for what is forgotten; train on the rest",
        aliases=("rl",),
        needs=("denoise|classify",),
        axes=AXES,
    )
    register(
        "salun",
        "vu_baselines.salun:SalUn",
        summary="another method, within the weights that matter most for the forget set",
        needs=("denoise|classify",),
        axes=(*AXES, "attribution"),
    )
    register(
        "salun-soft",
        "vu_baselines.salun_soft:SalUnSoft",
        summary="another method, whose smallest changes are taken back after every step",
        needs=("denoise|classify",),
        axes=AXES,
    )
    register(
        "retrain",
        "vu_baselines.retrain:Retrain",
        summary="train the network anew on what is kept: the reference that unlearning is compared with",
        needs=("classify", "fresh"),
        axes=("parameters", "regularizer"),
    )
    register(
        "fine-tune",
        "vu_baselines.fine_tune:FineTune",
        summary="go on training on what is kept alone",
        aliases=("ft",),
        needs=("classify",),
        axes=("parameters", "regularizer"),
    )
    for name, target, summary in RETAIN_ONLY:
        register(
            name, f"vu_baselines.{target}", summary=summary, needs=("classify",), axes=("parameters", "regularizer")
        )
    register(
        "gradient-ascent",
        "vu_baselines.gradient_ascent:GradientAscent",
        summary="climb the loss of what is forgotten",
        aliases=("ga",),
        needs=("classify",),
        axes=AXES,
    )
    register(
        "neg-grad-plus",
        "vu_baselines.gradient_ascent:NegGradPlus",
        summary="climb the loss of what is forgotten, descend that of the rest",
        needs=("classify",),
        axes=AXES,
    )
    register(
        "boundary-shrink",
        "vu_baselines.boundary_shrink:BoundaryShrink",
        summary="teach each forgotten image the class on the other side of its nearest boundary",
        needs=("classify",),
        axes=AXES,
    )
    register(
        "boundary-expand",
        "vu_baselines.boundary_expand:BoundaryExpand",
        summary="teach all forgotten images a class that exists during training only",
        needs=("classify",),
        axes=AXES,
    )
    register(
        "fisher-noise",
        "vu_baselines.fisher_noise:FisherNoise",
        summary="noise on every weight, the more the less it matters for what is kept",
        aliases=("fisher",),
        needs=("classify",),
        axes=("attribution",),
    )
    register(
        "influence",
        "vu_baselines.influence:Influence",
        summary="take off, to first order, what the forgotten examples did to the weights",
        aliases=("iu", "woodfisher"),
        needs=("classify",),
    )
    register(
        "head-mask",
        "vu_baselines.head_mask:HeadMask",
        summary="a control: never answer the forgotten classes, and change nothing else",
        needs=("classify",),
    )
    register(
        "random-drop",
        "vu_baselines.random_drop:RandomDrop",
        summary="a control: zero some weights of every tensor",
        needs=("classify",),
    )
    register(
        "noop",
        "vu_baselines.noop:Noop",
        summary="a control: change nothing",
        aliases=("raw",),
    )
    for name, target, summary in CONTINUAL:
        register(name, f"vu_baselines.{target}", summary=summary, needs=("classify",), axes=AXES)
    register(
        "der-plus-plus",
        "vu_baselines.der_plus_plus:DerPlusPlus",
        summary="DER, and the right labels of further retain examples",
        aliases=("derpp",),
        needs=("classify",),
        axes=AXES,
    )
    register(
        "lirf",
        "vu_baselines.lirf:Lirf",
        summary="empty the lower half of a network of what is forgotten; the upper half stays",
        needs=("classify", "blocks"),
        axes=AXES,
    )


@hookimpl
def vu_register_regularizers(register: Register) -> None:
    """Name the penalties and projections."""
    register(
        "soft-threshold",
        "vu_baselines.soft_threshold:SoftThreshold",
        summary="the smallest changes are taken back after every step; ever fewer of them",
    )
    register("l2", "vu_baselines.l2:L2Anchor", summary="weights stay near those of before")
    register(
        "ewc",
        "vu_baselines.ewc:EwcAnchor",
        summary="weights stay near those of before, by their Fisher information on retain examples",
    )
    register(
        "mas",
        "vu_baselines.mas:MasAnchor",
        summary="weights stay near those of before, by how much the answers to retain examples depend on them",
    )


@hookimpl
def vu_register_recipes(register: Register) -> None:
    """Name the published settings for classifiers of those methods whose own are for Stable Diffusion."""
    for method in ("random-label", "salun"):
        register(
            f"torch-module-{method}",
            f"vu_baselines:recipes/torch-module-{method}.toml",
            summary=f"{method} on classifiers",
        )
