"""What experiments are made of: a bench that has results, and which of them a table needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .jobs import DET2D_BARE, INPUTS, Job, Schedule
from .runner import Runner
from .tables import Spread, Table

__all__ = ["ROOTS", "Bench", "Experiment", "main_job"]

#: What tables call the ways to a root.
ROOTS = {"given": "given", "solve": "solved"}


@dataclass(frozen=True)
class Bench:
    """What the experiments run on.

    Attributes:
        runner: trains and remembers.
        schedule: for all jobs.
        printed: the inputs beside which the paper's own numbers stand: those of Human3.6M.
        is_humaneva: whether "humaneva" is HumanEva-I and not a stand-in.
        kinds: the kinds of 2D that there are of "main".
        joints: number of joints of "main".
    """

    runner: Runner
    schedule: Schedule
    printed: frozenset[str] = frozenset()
    is_humaneva: bool = False
    kinds: frozenset[str] = frozenset(INPUTS)
    joints: int = 17

    def jobs(self, experiment: Experiment) -> list[Job]:
        """What the experiment trains on the data there are, for every seed."""
        possible = [job for job in experiment.jobs if self.has(job)]
        return [each for job in possible for each in self.seeds(job)]

    def has(self, job: Job) -> bool:
        """Whether there are data for the job."""
        if job.source != "main":
            return True
        if job.confidence_weights and DET2D_BARE not in self.kinds:
            return False
        return job.input in self.kinds and (job.pca is None or job.pca <= 2 * self.joints)

    def seeds(self, job: Job) -> list[Job]:
        """The job once for every seed."""
        return [replace(job, seed=seed) for seed in self.schedule.seeds]

    def spread(self, job: Job, value: Callable[[Job], float]) -> Spread:
        """A number of every seed."""
        return Spread(tuple(value(each) for each in self.seeds(job)))

    def stage(self, job: Job, k: int, metric: str = "MPJPE") -> Spread:
        """Mean over actions after stage k; 0 is the lifter, -1 the last stage."""
        return self.spread(job, lambda each: self.runner[each].by_stage(metric)[k])

    def action(self, job: Job, row: int, k: int, metric: str = "MPJPE") -> Spread:
        """One action's error after stage k."""
        return self.spread(job, lambda each: float(self.runner[each].errors[metric][row, k]))

    def actions(self, job: Job) -> list[str]:
        """Names of the rows of errors."""
        return self.runner[self.seeds(job)[0]].actions


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        title: for the report.
        jobs: what must be trained, without seeds.
        table: made of their results.
    """

    title: str
    jobs: tuple[Job, ...]
    table: Callable[[Bench], Table]


def main_job(kind: str, **changes: Any) -> Job:
    """A job on the main data set."""
    return replace(Job("main", kind), **changes)
