"""The one training loop."""

from vu_core.training.loop import fit, total_steps
from vu_core.training.settings import Training, learning_rate, planned_steps

__all__ = ["Training", "fit", "learning_rate", "planned_steps", "total_steps"]
