"""What ``erd-cuda demo`` measures and shows: errors by stage, speed, and clips worth looking at."""

from erd_cuda.demo.clips import Clip, choose_clips
from erd_cuda.demo.errors import StageErrors, measure_errors
from erd_cuda.demo.speed import Speed, compare_speed, eager_stages, machine

__all__ = [
    "Clip",
    "Speed",
    "StageErrors",
    "choose_clips",
    "compare_speed",
    "eager_stages",
    "machine",
    "measure_errors",
]
