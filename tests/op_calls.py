"""Every op as a function of named tensors, so that a test can walk all ops and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks import oracle, torch_layers
from erd_cuda.benchmarks.problems import (
    CAMERA_MODELS,
    ROOT_MODES,
    Problem,
    make_camera,
    make_network,
    make_problem,
    pack,
)
from erd_cuda.modules.packed import PackedRegressors

# Parameters of the public functions, and the floating inputs each stands for.
FLOATING_PARAMETERS = {
    "project": {"pose": ("pose",), "root": ("root",), "camera": ("intrinsics", "distortion")},
    "residual": {
        "keypoints": ("keypoints",),
        "pose": ("pose",),
        "root": ("root",),
        "camera": ("intrinsics", "distortion"),
        "std": ("std",),
        "confidence": ("confidence",),
    },
    "solve_root": {
        "keypoints": ("keypoints",),
        "pose": ("pose",),
        "camera": ("intrinsics", "distortion"),
        "confidence": ("confidence",),
    },
    "solve_residual": {
        "keypoints": ("keypoints",),
        "pose": ("pose",),
        "camera": ("intrinsics", "distortion"),
        "std": ("std",),
        "confidence": ("confidence",),
    },
    "refine": {
        "keypoints": ("keypoints",),
        "pose": ("pose",),
        "root": ("root",),
        "camera": ("intrinsics", "distortion"),
        "confidence": ("confidence",),
    },
}
OTHER_PARAMETERS = {
    "project": set(),
    "residual": set(),
    "solve_root": {"return_status"},
    "solve_residual": {"return_status"},
    "refine": {"weights", "return_stages", "precision"},
}


@dataclass(frozen=True)
class Case:
    """One op with one camera model (and for refine one way to get the root)."""

    op: str
    model: str
    root_mode: str = "given"

    def __str__(self) -> str:
        return "-".join([self.op, self.model] + [self.root_mode] * (self.op == "refine"))

    @property
    def inputs(self) -> tuple[str, ...]:
        names = [name for group in FLOATING_PARAMETERS[self.op].values() for name in group]
        if self.model == "pinhole":
            names.remove("distortion")
        if self.root_mode != "given":
            names.remove("root")
        return tuple(names)

    def tensors(self, problem: Problem, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        return {name: problem.tensor(name, dtype) for name in self.inputs}

    def camera(self, tensors: dict[str, Tensor]) -> Tensor | erd_cuda.Camera:
        return make_camera(tensors["intrinsics"], tensors.get("distortion"), self.model)

    def __call__(
        self, tensors: dict[str, Tensor], weights: PackedRegressors | None = None
    ) -> Tensor:
        """The op under test."""
        camera = self.camera(tensors)
        confidence = tensors.get("confidence")
        if self.op == "project":
            return erd_cuda.project(tensors["pose"], tensors["root"], camera)
        if self.op == "residual":
            return erd_cuda.residual(
                tensors["keypoints"],
                tensors["pose"],
                tensors["root"],
                camera,
                tensors.get("std"),
                confidence,
            )
        if self.op == "solve_root":
            return erd_cuda.solve_root(tensors["keypoints"], tensors["pose"], camera, confidence)
        if self.op == "solve_residual":
            return joined(
                *erd_cuda.solve_residual(
                    tensors["keypoints"], tensors["pose"], camera, tensors.get("std"), confidence
                )
            )
        root = tensors["root"] if self.root_mode == "given" else self.root_mode
        return erd_cuda.refine(
            tensors["keypoints"], tensors["pose"], root, camera, weights, confidence
        )

    def composed(
        self, tensors: dict[str, Tensor], layers: torch_layers.PaperLayers | None = None
    ) -> Tensor:
        """The same from torch's own operators."""
        lens = (tensors["intrinsics"], tensors.get("distortion"), self.model)
        confidence = tensors.get("confidence")
        if self.op == "project":
            return torch_layers.project(tensors["pose"], tensors["root"], *lens)
        if self.op == "residual":
            return torch_layers.residual(
                tensors["keypoints"],
                tensors["pose"],
                tensors["root"],
                *lens,
                tensors.get("std"),
                confidence,
            )
        if self.op == "solve_root":
            return torch_layers.solve_root(tensors["keypoints"], tensors["pose"], *lens, confidence)
        if self.op == "solve_residual":
            keypoints, pose = tensors["keypoints"], tensors["pose"]
            solved = torch_layers.solve_root(keypoints, pose, *lens, confidence)
            std = tensors.get("std")
            return joined(
                torch_layers.residual(keypoints, pose, solved, *lens, std, confidence), solved
            )
        assert layers is not None
        root = tensors["root"] if self.root_mode == "given" else self.root_mode
        return layers(tensors["keypoints"], tensors["pose"], root, *lens, confidence)


def joined(residual: Tensor, root: Tensor) -> Tensor:
    """The two results of solve_residual as one tensor (..., 2J + 3)."""
    return torch.cat([residual.flatten(-2), root.expand(*residual.shape[:-2], 3)], dim=-1)


GEOMETRY_CASES = [
    Case(op, model)
    for op in ("project", "residual", "solve_root", "solve_residual")
    for model in CAMERA_MODELS
]
REFINE_CASES = [
    Case("refine", "pinhole", "given"),
    Case("refine", "opencv", "given"),
    Case("refine", "pinhole", "solve"),
    Case("refine", "h36m", "solve_each_stage"),
]
ALL_CASES = GEOMETRY_CASES + REFINE_CASES
assert {case.root_mode for case in REFINE_CASES} == set(ROOT_MODES)


def small_network(joints: int, seed: int = 0) -> oracle.Network:
    """Big enough to be wrong in every way, small enough to differentiate numerically."""
    return make_network(joints, stages=2, width=9, block="relu", seed=seed)


def small_weights(joints: int, dtype: torch.dtype = torch.float64) -> PackedRegressors:
    return pack(small_network(joints), dtype)


def unit_scale(problem: Problem) -> Problem:
    """The problem with every number of order one (depths of 5, focal lengths of 2).

    In millimetres and pixels second derivatives are of order 1e-6 and smaller, and a wrong one
    would pass under gradcheck's absolute tolerance.
    """
    rng = np.random.default_rng(7)
    shape = problem.intrinsics.shape[:-1]
    intrinsics = rng.uniform((1.8, 2.1, -0.3, -0.3), (2.2, 2.5, 0.3, 0.3), size=(*shape, 4))
    distortion = None
    if problem.distortion is not None:
        distortion = rng.uniform(-0.15, 0.15, size=(*shape, 5))
    pose = rng.uniform(-1.0, 1.0, size=problem.pose.shape)
    root = rng.uniform((-0.5, -0.5, 4.0), (0.5, 0.5, 6.0), size=problem.root.shape)
    keypoints = oracle.project(pose, root, intrinsics, distortion, problem.model)
    return Problem(
        keypoints=keypoints + rng.normal(scale=0.05, size=keypoints.shape),
        pose=pose,
        root=root,
        intrinsics=intrinsics,
        distortion=distortion,
        model=problem.model,
        std=rng.uniform(0.5, 1.5, size=problem.std.shape),
        confidence=rng.uniform(0.3, 1.0, size=problem.confidence.shape),
    )


def unit_problem(model: str, batch: tuple[int, ...] = (2,), joints: int = 3) -> Problem:
    return unit_scale(make_problem(batch, joints, model))


def positional(
    case: Case, names: tuple[str, ...], weights: PackedRegressors | None
) -> Callable[..., Tensor]:
    """The op as a function of its tensors by position, as gradcheck, vmap and func.grad call it."""

    def function(*tensors: Tensor) -> Tensor:
        return case(dict(zip(names, tensors, strict=True)), weights)

    return function
