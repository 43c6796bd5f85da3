"""The one training loop."""

from vu_core.training.loop import calls_per_step, fit, is_finished, total_steps
from vu_core.training.noising import (
    Noised,
    NoisingConfig,
    Timesteps,
    TimestepSampler,
    denoising_loss,
    timestep_range,
    uniform_timesteps,
)
from vu_core.training.processes import process_group
from vu_core.training.settings import Training, learning_rate, planned_steps

__all__ = [
    "Noised",
    "NoisingConfig",
    "TimestepSampler",
    "Timesteps",
    "Training",
    "calls_per_step",
    "denoising_loss",
    "fit",
    "is_finished",
    "learning_rate",
    "planned_steps",
    "process_group",
    "timestep_range",
    "total_steps",
    "uniform_timesteps",
]
