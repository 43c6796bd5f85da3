"""The one training loop."""

from vu_core.training.loop import calls_per_step, fit, is_finished, steps_per_epoch, total_steps
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
from vu_core.training.schedules import From, Schedule, value_at
from vu_core.training.settings import Training, epoch_steps, learning_rate, planned_steps

__all__ = [
    "From",
    "Noised",
    "NoisingConfig",
    "Schedule",
    "TimestepSampler",
    "Timesteps",
    "Training",
    "calls_per_step",
    "denoising_loss",
    "epoch_steps",
    "fit",
    "is_finished",
    "learning_rate",
    "planned_steps",
    "process_group",
    "steps_per_epoch",
    "timestep_range",
    "total_steps",
    "uniform_timesteps",
    "value_at",
]
