"""Trains and evaluates jobs, keeps what is done, and shows how long the rest takes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from erd_cuda._files import write_text
from erd_cuda.data import PoseDataset
from erd_cuda.evaluation import evaluate, without_drifted_takes
from erd_cuda.evaluation.table import ROOT_ERROR
from erd_cuda.modules import ERD
from erd_cuda.ops import project
from erd_cuda.training import train
from erd_cuda.training.stages import lifted_poses
from erd_cuda.training.trainer import CHECKPOINT, MODEL

from .jobs import Job, Schedule, in_order
from .sources import Sources

__all__ = ["Result", "Runner"]

RESULT, DESCRIPTION = "result.json", "job.json"
METRICS = ("MPJPE", "P-MPJPE", ROOT_ERROR)


@dataclass(frozen=True)
class Result:
    """What one trained job shows on the test split.

    Attributes:
        job: what was trained.
        actions: names of the rows: actions, or subject and action for HumanEva-I.
        errors: by metric, (A, K + 1) mm: column 0 is the lifter, column k stage k; "root error"
            where the root was solved, see `EvaluationTable`.
        unsolved: poses whose root could not be solved.
        seconds: training time, the lifter's included where this job trained it; of a job that was
            interrupted, since it was taken up again.
    """

    job: Job
    actions: list[str]
    errors: dict[str, Tensor]
    unsolved: int
    seconds: float

    def by_stage(self, metric: str = "MPJPE") -> list[float]:
        """Mean over actions of the lifter's error and each stage's, mm."""
        return self.errors[metric].mean(dim=0).tolist()


class Runner:
    """Runs jobs in a folder that remembers them.

    Args:
        folder: ``runs/`` in it has a folder for each job; what is there already is not run again,
            and what was begun is continued.
        sources: the data.
        schedule: how long everything is trained.
        progress: show one line for the whole plan on stderr.
    """

    def __init__(
        self, folder: Path, sources: Sources, schedule: Schedule, *, progress: bool = True
    ) -> None:
        self._folder = folder / "runs"
        self._sources = sources
        self._schedule = schedule
        self._progress = progress
        self._results: dict[Job, Result] = {}

    def __getitem__(self, job: Job) -> Result:
        """The result of a job that has been run."""
        return self._results[job]

    def model(self, job: Job) -> ERD:
        """The trained model of a job that has been run, in eval mode."""
        return ERD.from_pretrained(self._place(job) / MODEL)

    def have(self, jobs: Iterable[Job]) -> bool:
        """Whether all these jobs have been run, by this call or an earlier one."""
        for job in jobs:
            if job.source not in self._sources.by_name or not (self._place(job) / RESULT).exists():
                return False
            self._results.setdefault(job, self._read(job))
        return True

    def seconds(self) -> dict[str, float]:
        """Training time of every job that has been run, by its title."""
        return {job.title: result.seconds for job, result in self._results.items()}

    def with_known_size(self, job: Job) -> list[float]:
        """`Result.by_stage` of the trained model if it is told every person's size."""
        return self._kept(job, "known_size", lambda erd, test: _by_stage(erd, test, job, True))

    def lifted_again(self, job: Job) -> list[float]:
        """MPJPE in mm, mean over rows, of the lifter's poses and of those that it makes of their
        own projections at the true root (paper, section 4.4), where no joint is missing."""

        def lift_twice(erd: ERD, test: PoseDataset) -> list[float]:
            seen = project(lifted_poses(erd, test), test.root, test.camera)
            again = replace(test, keypoints=seen, confidence=None)
            given = replace(job, root="given")
            return [_by_stage(erd, data, given)[0] for data in (test, again)]

        return self._kept(job, "lifted_again", lift_twice)

    def without_drifted_takes(self, job: Job) -> list[float] | None:
        """`Result.by_stage` without the takes of Human3.6M whose 3D has drifted; None where the
        data have none of these."""
        if without_drifted_takes(self._sources.test(job.source, job.input)) is None:
            return None

        def errors(erd: ERD, test: PoseDataset) -> list[float]:
            rest = without_drifted_takes(test)
            assert rest is not None
            return _by_stage(erd, rest, job)

        return self._kept(job, "without_drifted_takes", errors)

    def _kept(
        self, job: Job, name: str, measure: Callable[[ERD, PoseDataset], list[float]]
    ) -> list[float]:
        """What is measured on the test split only if a table asks for it, and then kept."""
        path = self._place(job) / f"{name}.json"
        if not path.exists():
            values = measure(self.model(job), self._sources.test(job.source, job.input))
            write_text(path, json.dumps(values) + "\n")
        kept: list[float] = json.loads(path.read_text(encoding="utf-8"))
        return kept

    def run(self, jobs: Iterable[Job]) -> None:
        """Train and evaluate all that is missing.

        Raises:
            TrainingInterrupted: Ctrl-C; the same call goes on where it stopped.
        """
        plan = [job for job in in_order(list(jobs)) if job not in self._results]
        costs = {job: self._cost(job) for job in plan}
        missing = [job for job in plan if not (self._place(job) / RESULT).exists()]
        for job in plan:
            if job not in missing:
                self._results[job] = self._read(job)
        with tqdm(
            total=sum(costs[job] for job in missing),
            bar_format="{percentage:3.0f}% {bar:20} {elapsed} < {remaining} {desc}",
            dynamic_ncols=True,
            smoothing=0,  # the time left follows from all the time so far, not from one job
            disable=not self._progress,
            file=sys.stderr,
        ) as bar:
            for number, job in enumerate(missing, start=1):
                bar.set_description_str(f"{number}/{len(missing)} {job.title}")
                self._results[job] = self._train(job, costs[job], bar)

    def _batches(self, job: Job) -> int:
        """Per epoch."""
        poses = len(self._sources.train(job.source, job.input, self._schedule))
        return -(-poses // job.config(self._schedule).stage_batch_size)

    def _cost(self, job: Job) -> float:
        test_poses = len(self._sources.test(job.source, job.input))
        return job.cost(self._schedule, self._batches(job), test_poses)

    def _place(self, job: Job) -> Path:
        hashes = self._sources.hashes(job.source, job.input, self._schedule)
        return self._folder / job.key(self._schedule, *hashes)

    def _train(self, job: Job, cost: float, bar: tqdm[Any]) -> Result:
        place = self._place(job)
        place.mkdir(parents=True, exist_ok=True)
        config = job.config(self._schedule)
        write_text(place / DESCRIPTION, json.dumps(asdict(job), indent=1) + "\n")
        lifter: nn.Module | None = None
        if job != job.base:
            trained = self.model(job.base).lifter
            assert isinstance(trained, nn.Module)
            lifter = trained
        batches = self._batches(job)
        shown = 0.0

        def finished(record: dict[str, Any]) -> None:
            nonlocal shown
            lifts = record["phase"] == "lifter"
            step = batches * (job.lifter_batch_cost(self._schedule) if lifts else 1.0)
            shown += step
            bar.update(step)

        began = time.monotonic()
        erd = train(
            config,
            self._sources.train(job.source, job.input, self._schedule),
            place,
            lifter=lifter,
            resume=(place / CHECKPOINT).exists(),
            progress=False,
            on_epoch=finished,
        )
        seconds = time.monotonic() - began
        result = self._evaluate(job, erd, seconds)
        write_text(place / RESULT, json.dumps(_to_json(result), indent=1) + "\n")
        bar.update(cost - shown)  # evaluation, and epochs of an earlier, interrupted run
        return result

    def _evaluate(self, job: Job, erd: ERD, seconds: float) -> Result:
        test = self._sources.test(job.source, job.input)
        table = evaluate(erd, test, roots=(job.root,), per_subject=job.source == "humaneva")
        return Result(
            job,
            table.actions,
            {m: values for m, values in table.values[job.root].items() if m in METRICS},
            table.unsolved.get(job.root, 0),
            round(seconds, 1),
        )

    def _read(self, job: Job) -> Result:
        content = json.loads((self._place(job) / RESULT).read_text(encoding="utf-8"))
        return Result(
            job,
            content["actions"],
            {
                name: torch.tensor(rows, dtype=torch.float64)
                for name, rows in content["errors"].items()
            },
            content["unsolved"],
            content["seconds"],
        )


def _by_stage(erd: ERD, test: PoseDataset, job: Job, known_size: bool = False) -> list[float]:
    """MPJPE of the lifter and after each stage, mean over rows."""
    table = evaluate(
        erd,
        test,
        roots=(job.root,),
        per_subject=job.source == "humaneva",
        known_size=known_size,
    )
    errors: list[float] = table.mean(job.root).tolist()
    return errors


def _to_json(result: Result) -> dict[str, Any]:
    return {
        "job": asdict(result.job),
        "actions": result.actions,
        "errors": {name: values.tolist() for name, values in result.errors.items()},
        "unsolved": result.unsolved,
        "seconds": result.seconds,
    }
