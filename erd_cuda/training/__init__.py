"""Training of the lifter and of the refinement stages."""

from erd_cuda.training.config import RECIPES, TrainConfig
from erd_cuda.training.trainer import TrainingInterrupted, train

__all__ = ["RECIPES", "TrainConfig", "TrainingInterrupted", "train"]
