"""Names of this distribution; imports nothing heavy."""

from __future__ import annotations

from vu_core import Plan, Register, hookimpl


@hookimpl
def vu_register_datasets(register: Register) -> None:
    """Name the data."""
    register(
        "cifar10",
        "vu_classifiers.cifar:Cifar10",
        summary="CIFAR-10 from its published binary files: forget class:cat, or random:0.1 of the training images",
    )
    register(
        "cifar100",
        "vu_classifiers.cifar:Cifar100",
        summary="CIFAR-100 from its published binary files: 100 fine classes or 20 coarse ones",
    )
    register(
        "digits",
        "vu_classifiers.digits:Digits",
        summary="1797 handwritten digits that come with scikit-learn: small real data",
    )


@hookimpl
def vu_check_plan(plan: Plan) -> None:
    """Object to a diffusion model where the data have labels alone."""
    from vu_classifiers.concepts import check_overwrites

    check_overwrites(plan)


@hookimpl
def vu_register_models(register: Register) -> None:
    """Name the models."""
    register(
        "torch-module",
        "vu_classifiers.torch_module:TorchModule",
        summary="any torch.nn.Module that maps images to logits: module:factory, and its weights as safetensors",
    )
    register(
        "transformers",
        "vu_classifiers.transformers_model:Transformers",
        summary="an image classifier of transformers, ViT and others: a folder, or transformers=owner/name on the hub",
    )
    register(
        "face-transformer",
        "vu_classifiers.face_transformer:FaceTransformer",
        summary="the vision transformer for faces of the GS-LoRA papers, ViT-P8S8: safetensors file or folder",
    )
