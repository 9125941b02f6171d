"""Every experiment of the paper, from training to tables and figures: ``erd-cuda reproduce``."""

from erd_cuda.reproduce.bench import Bench, Experiment
from erd_cuda.reproduce.experiments import EXPERIMENTS
from erd_cuda.reproduce.jobs import Job, Schedule
from erd_cuda.reproduce.runner import Result, Runner
from erd_cuda.reproduce.sources import Source, Sources
from erd_cuda.reproduce.tables import Spread, Table

__all__ = [
    "EXPERIMENTS",
    "Bench",
    "Experiment",
    "Job",
    "Result",
    "Runner",
    "Schedule",
    "Source",
    "Sources",
    "Spread",
    "Table",
]
