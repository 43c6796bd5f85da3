"""FADE / SPARE: forget a concept by self-distillation with (sparse) LoRA."""
