"""Every field of every Config of the engine changes the edit, or says that it changes only speed."""

import attrs
import pytest
from engine_toys import toy_data, toy_losses, toy_model, toy_run

from vu_core.adapters import Full, Lora, MaskedLora, edit_digest
from vu_core.training import Training, fit
from vu_core.weightings import ForgetOnly, Simple

START = {
    Training: {"steps": 5, "lr": 0.02, "schedule": "linear", "max_grad_norm": 0.5},
    Lora: {"rank": 2, "targets": ("to_q", "to_out.0")},
    MaskedLora: {"rank": 2, "targets": ("to_q", "to_out.0")},
    Full: {"targets": ("attn",)},
    Simple: {},
    ForgetOnly: {},
}
OTHER = {
    (Training, "steps"): {"steps": 6},
    (Training, "epochs"): {"steps": None, "epochs": 1},
    (Training, "batch_size"): {"batch_size": 3},
    (Training, "accumulation"): {"accumulation": 2},
    (Training, "lr"): {"lr": 0.03},
    (Training, "optimizer"): {"optimizer": "sgd"},
    (Training, "momentum"): {"optimizer": "sgd", "momentum": 0.5},
    (Training, "schedule"): {"schedule": "constant"},
    (Training, "min_lr"): {"min_lr": 0.01},
    (Training, "warmup_steps"): {"warmup_steps": 2},
    (Training, "weight_decay"): {"weight_decay": 0.5},
    (Training, "decay_vectors"): {"weight_decay": 0.5, "decay_vectors": False},
    (Training, "max_grad_norm"): {"max_grad_norm": 0.1},
    (Training, "exhausted"): {"steps": None, "epochs": 2, "exhausted": "retain_only"},
    (Training, "epoch_of"): {"steps": None, "epochs": 2, "batch_size": 1, "epoch_of": "retain"},
    (Training, "gradient_conflict"): {"gradient_conflict": True},
    (Training, "checkpoint_every"): {"checkpoint_every": 0.0},
    (Full, "targets"): {"targets": ("norm",)},
    (Simple, "forget_weight"): {"forget_weight": 0.3},
    (Simple, "retain_weight"): {"retain_weight": 0.3},
    **{
        (kind, field): change
        for kind in (Lora, MaskedLora)
        for field, change in {
            "rank": {"rank": 3},
            "alpha": {"alpha": 8.0},
            "dropout": {"dropout": 0.3},
            "init": {"init": "kaiming"},
            "targets": {"targets": ("to_q",)},
        }.items()
    },
}


def config_class(kind):
    return kind if kind is Training else kind.Config


# What a field is compared with, where that is not the start of its class alone.
BESIDE = {
    (Training, "momentum"): {"optimizer": "sgd"},
    (Training, "exhausted"): {"steps": None, "epochs": 2},
    (Training, "epoch_of"): {"steps": None, "epochs": 2, "batch_size": 1},
    (Training, "decay_vectors"): {"weight_decay": 0.5},
}
WHOLE = {"decay_vectors"}
"""Fields of `Training` that show on whole weights alone: low-rank factors are no vectors."""
FIELDS = [(kind, field) for kind in START for field in attrs.fields(config_class(kind))]


def trace_of(folder, kind, changes, field=""):
    """Return the hash of the edit, and the types of the events on the way to it."""
    config = config_class(kind)(**{**START[kind], **changes})
    settings = {"training": Training(**START[Training])}
    if kind is Training:
        settings["training"] = config
        if field in WHOLE:
            settings["parameters"] = Full(Full.Config())
    elif kind in (Simple, ForgetOnly):
        settings["weighting"] = kind(config)
    else:
        settings["parameters"] = kind(config)
    events = []
    run, model = toy_run(folder, **settings, emit_event=events.append), toy_model()
    theta = run.parameterise(model)
    fit(theta, toy_losses(model), toy_data(), run)
    return edit_digest(theta.edit()), {event.type for event in events}


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda x: getattr(x, "__name__", getattr(x, "name", "")))
def test_changing_the_field_changes_edit_or_record(kind, field, tmp_path):
    before = trace_of(tmp_path / "before", kind, BESIDE.get((kind, field.name), {}), field.name)
    after = trace_of(tmp_path / "after", kind, OTHER[kind, field.name], field.name)
    assert (after == before) == bool(field.metadata["speed_only"])
    assert field.metadata["help"]


def test_the_table_names_every_field_and_no_other():
    assert set(OTHER) == {(kind, field.name) for kind, field in FIELDS}
