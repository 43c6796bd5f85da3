"""Names of the toys."""

from vu_core import hookimpl

PARTS = "vu_config_toys.parts"


@hookimpl
def vu_register_models(register):
    register("toy-model", f"{PARTS}:ToyModel", summary="default model", aliases=("toy",), default=True)
    register("other-model", f"{PARTS}:OtherModel", summary="another model, takes hub ids")
    register("mute-model", f"{PARTS}:MuteModel", summary="can do nothing")
    register("failing-model", f"{PARTS}:FailingModel", summary="its inspect fails")


@hookimpl
def vu_register_datasets(register):
    register("toy-data", f"{PARTS}:ToyData", summary="default data", default=True)
    register("plain-data", f"{PARTS}:PlainData", summary="data without a judge")


@hookimpl
def vu_register_unlearners(register):
    register(
        "toy-method",
        f"{PARTS}:ToyMethod",
        summary="trained",
        aliases=("tm",),
        needs=("denoise",),
        axes=("parameters", "weighting", "attribution", "regularizer"),
        default=True,
    )
    register("closed-form", f"{PARTS}:ClosedForm", summary="no axis at all")
    register("demanding", f"{PARTS}:Demanding", summary="has a required field", axes=("parameters",))
    register("endless", f"{PARTS}:Endless", summary="says neither steps nor epochs", axes=("parameters", "weighting"))
    register("wrapper", f"{PARTS}:Wrapper", summary="wraps another method", axes=("parameters", "regularizer"))
    register("plain-method", f"{PARTS}:Demanding", summary="honours regularizers alone", axes=("regularizer",))
    register("either", f"{PARTS}:ClosedForm", summary="one of two will do", needs=("denoise|classify",))
    register("missing-target", f"{PARTS}:Nowhere", summary="its class does not exist")
    register("greedy", f"{PARTS}:Greedy", summary="a field of its Config has the name of a key of the table")
    register("no-config", f"{PARTS}:NoConfig", summary="its class has no Config")
    register("odd-config", f"{PARTS}:OddConfig", summary="an annotation of its Config cannot be resolved")
    register("exploding", "vu_leaver:Method", summary="its module exits on import")


@hookimpl
def vu_register_parameters(register):
    register("small", f"{PARTS}:Small", summary="default parameters", default=True)
    register("large", f"{PARTS}:Large", summary="other parameters")


@hookimpl
def vu_register_weightings(register):
    register("even", f"{PARTS}:Even", summary="default weighting", default=True)
    register("tilted", f"{PARTS}:Tilted", summary="another weighting", aliases=("leaning",))


@hookimpl
def vu_register_attributions(register):
    register("guess", f"{PARTS}:Guess", summary="an attribution")


@hookimpl
def vu_register_regularizers(register):
    register("pull", f"{PARTS}:Pull", summary="a regularizer", aliases=("tug",))
    register("push", f"{PARTS}:Push", summary="another regularizer")
    register("drag", f"{PARTS}:Drag", summary="looks at an attribution", axes=("attribution",))


@hookimpl
def vu_register_metrics(register):
    register(
        "verdict", f"{PARTS}:Verdict", summary="asks the judge", aliases=("judgement",), needs=("generate", "judge")
    )
    register("size", f"{PARTS}:Size", summary="asks nobody")


@hookimpl
def vu_register_recipes(register):
    register("toy-recipe", "vu_config_toys:recipe.toml", summary="toy-method on toy-model")
