"""Names of the embedded default; imports nothing heavy."""

from vu_core import Register, hookimpl

RECIPES = (
    "fade",
    "fade-sparse-module",
    "fade-sparse-weight",
    "lora-negation",
    "uce",
    "random-label",
    "salun",
    "munba",
    "esd",
)
VIT_RECIPES = ("gs-lora", "gs-lora-plus-plus", "random-label", "salun")


@hookimpl
def vu_register_models(register: Register) -> None:
    """Name the models that this distribution ships."""
    register(
        "canvas-diffusion",
        "vu_canvas.model:CanvasDiffusion",
        summary="a small Stable Diffusion pipeline, shipped with its weights: ten objects in ten styles, 64x64",
        default=True,
    )
    register(
        "canvas-vit",
        "vu_canvas.classifier:CanvasViTModel",
        summary="a small vision transformer, shipped with its weights, that tells the 100 identities of canvas apart",
    )


@hookimpl
def vu_register_datasets(register: Register) -> None:
    """Name the data that this distribution draws."""
    register(
        "canvas",
        "vu_canvas.dataset:Canvas",
        summary="ten objects in ten styles, drawn on demand; forget style:neon, object:star or both at once",
        default=True,
    )


@hookimpl
def vu_register_recipes(register: Register) -> None:
    """Name the settings that were tuned for (canvas-diffusion, method) and (canvas-vit, method)."""
    for method in RECIPES:
        register(
            f"canvas-diffusion-{method}",
            f"vu_canvas:recipes/{method}.toml",
            summary=f"{method} on canvas-diffusion",
        )
    for method in VIT_RECIPES:
        register(
            f"canvas-vit-{method}",
            f"vu_canvas:recipes/vit-{method}.toml",
            summary=f"{method} on canvas-vit",
        )
