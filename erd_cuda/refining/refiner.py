"""A trained model with the options of one run of ``erd-cuda refine``, and what it costs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from erd_cuda._definitions import check_choice
from erd_cuda._refine_arguments import PRECISIONS
from erd_cuda.evaluation import staged_poses
from erd_cuda.modules import ERD
from erd_cuda.refining.keypoint_input import KeypointInput, check_against_model
from erd_cuda.refining.units import unit_warnings
from erd_cuda.training.device import training_device

__all__ = ["Cost", "RefineOptions", "Refiner"]


@dataclass(frozen=True)
class RefineOptions:
    """What the poses of a run depend on besides its input.

    Attributes:
        model: a model file, or the name of a bundled model.
        root: "given", "solve", "solve_each_stage", or None for the model's own.
        stages: whether the poses after every stage are results too.
        batch_size: poses per call of the model. Other batches may round differently.
        device: "cpu", "cuda" or "cuda:N".
        precision: arithmetic of the stages, "auto", "fp32", "bf16" or, on a GPU, "fp16", as in
            `erd_cuda.refine`.

    Raises:
        ValueError: an unknown precision, or one that the device does not have.
    """

    model: str
    root: str | None = None
    stages: bool = False
    batch_size: int = 16_384
    device: str = "cpu"
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        if self.precision == "fp16" and not self.device.startswith("cuda"):
            raise ValueError(
                f"precision is 'fp16', which needs a GPU, but device is {self.device!r}: expected "
                "'auto', 'fp32' or 'bf16'"
            )


@dataclass
class Cost:
    """What refining has taken so far, reading and writing included, starting up left out.

    Attributes:
        poses, failed: refined poses, and those of them whose root could not be solved.
        wall: seconds of this process, or summed over the workers.
        cpu: CPU seconds of all threads of this process, or summed over the workers.
    """

    poses: int = 0
    failed: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.poses + other.poses,
            self.failed + other.failed,
            self.wall + other.wall,
            self.cpu + other.cpu,
        )

    def per_million(self, device: str) -> str:
        """The price of a million poses: CPU time on a CPU, the time it was held on a GPU."""
        if self.poses == 0:
            return "nothing to measure"
        kind, seconds = ("GPU", self.wall) if device.startswith("cuda") else ("CPU", self.cpu)
        return f"{seconds / self.poses * 1e6:,.1f} {kind} seconds per million poses"


class Stopwatch:
    """The cost of what happens from its making on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def cost(self, poses: int, failed: int) -> Cost:
        return Cost(
            poses, failed, time.perf_counter() - self._wall, time.process_time() - self._cpu
        )


class Refiner:
    """Refines samples in the same way for whoever asks: one file, a part, a worker.

    Attributes:
        options: as given.
        erd: the model, on its device.
        mode: where the root comes from, "given", "solve" or "solve_each_stage".

    Raises:
        FileNotFoundError, ValueError: there is no such model or device, or the model's file is
            damaged.
    """

    def __init__(self, options: RefineOptions) -> None:
        self.options = options
        self.device = training_device(options.device)
        self.erd = ERD.from_pretrained(options.model, self.device)
        self.mode = options.root or self.erd.root

    @property
    def kept_stages(self) -> int:
        """How many poses of a sample are results: the last, or the initial one and all others."""
        return len(self.erd.regressors) + 1 if self.options.stages else 1

    def check(self, data: KeypointInput, path: Path) -> None:
        """Raise a ValueError, which names ``path``, if the model cannot refine these samples."""
        check_against_model(data, self.erd, path)
        self.check_root(data.root is not None, path)

    def check_root(self, has_root: bool, path: Path) -> None:
        """Raise a ValueError if the root is to be given and is not."""
        if self.mode != "given" or has_root:
            return
        if self.options.root == "given":
            raise ValueError(f"{path} holds no root, so --root given is impossible")
        raise ValueError(
            f"{path} holds no root and the model was trained with given ones: add an array "
            "root, take a model trained with --root solve, or try --root solve with this one"
        )

    def warnings(self, has_root: bool, path: Path) -> list[str]:
        """What the user may not have meant, a sentence each."""
        found = []
        if self.mode != "given" and self.erd.root == "given":
            found.append(
                "the model was trained with given roots; with solved ones its poses can be "
                "worse than the lifter's (evaluate tells, --stages writes both)"
            )
        if self.mode != "given" and has_root:
            found.append(
                f"{path} holds a root, which is not used: it is solved for, as the "
                "model was trained or --root asks; --root given takes the file's"
            )
        return found

    def unit_warnings(self, data: KeypointInput, path: Path) -> list[str]:
        """What speaks for these samples being in wrong units, a sentence each."""
        return unit_warnings(data, self.erd, self.mode == "given", path)

    def __call__(self, data: KeypointInput) -> dict[str, Tensor]:
        """The results, on the CPU: pose (N, J, 3) and root (N, 3) in mm, status (N,) int32, and
        stages (K + 1, N, J, 3) if the options ask for them."""
        count, joints, _ = data.keypoints.shape
        stages = torch.empty(self.kept_stages, count, joints, 3)
        root = torch.empty(count, 3)
        status = torch.empty(count, dtype=torch.int32)
        size = self.options.batch_size
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            part = data.rows(rows, self.device)
            given = part.root if self.mode == "given" and part.root is not None else self.mode
            ((_, result),) = staged_poses(
                self.erd,
                part.keypoints,
                part.camera,
                given,
                part.confidence,
                part.pose,
                chunk=size,
                bone_length=part.bone_length,
                precision=self.options.precision,
            )
            stages[:, rows] = result.stages[-self.kept_stages :].cpu()
            root[rows], status[rows] = result.root.cpu(), result.status.cpu()
        # safetensors refuses tensors that share memory.
        results = {"pose": stages[-1].clone(), "root": root, "status": status}
        if self.options.stages:
            results["stages"] = stages
        return results
