"""Evaluate a model on a dataset: errors of the lifter and after every stage, per action."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erd_cuda.evaluation.inference import (
    CHUNK,
    SOLVED_ROOTS,
    StagedPoses,
    solved_root,
    staged_poses,
)
from erd_cuda.evaluation.metrics import pose_errors
from erd_cuda.evaluation.table import ROOT_ERROR, EvaluationTable

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset
    from erd_cuda.modules import ERD

__all__ = ["evaluate"]


def evaluate(
    erd: ERD,
    dataset: PoseDataset,
    *,
    roots: tuple[str, ...] | None = None,
    per_subject: bool = False,
    known_size: bool = False,
    model_name: str = "ERD",
    chunk: int = CHUNK,
) -> EvaluationTable:
    """MPJPE, P-MPJPE and N-MPJPE of the lifter and after each stage, and the error of solved roots.

    The root's error is its distance from the true root, mm, over the poses whose root could be
    solved. Tables 1 and 3 of the paper hang on it: a pose seen from a wrong depth leaves a residual
    that no change of the pose removes.

    Args:
        erd: The model. It is put in eval mode.
        dataset: Poses with truth; the errors are against ``dataset.pose``, over all joints. If it
            has initial poses, they take the lifter's place.
        roots: Root modes to evaluate, among "given" (the data's true roots), "solve" and
            "solve_each_stage". None means given and solved; solved the way the model was trained,
            once if it was trained with given roots.
        per_subject: Rows are subject and action (HumanEva's convention) instead of actions
            (Human3.6M's).
        known_size: The model is told every person's size, the mean length of the bones of all the
            subject's true poses, as :meth:`erd_cuda.ERD.forward` can be.
        model_name: Heading of the table.
        chunk: Poses per call.

    Returns:
        The table. Its mean weighs all rows alike, however many poses they have.

    Raises:
        ValueError: The dataset is empty or has another number of joints than the model, the model
            has no lifter and the dataset no initial poses, or a root mode is unknown.
    """
    roots = _root_modes(erd, roots)
    if len(dataset) == 0:
        raise ValueError("the dataset to evaluate on holds no poses")
    if erd.lifter is None and dataset.initial is None:
        raise ValueError(
            "the model has no lifter, so it cannot be evaluated from 2D keypoints alone: give the "
            "dataset a lifter's predictions"
        )
    if dataset.num_joints != erd.num_joints:
        raise ValueError(
            f"the model has {erd.num_joints} joints but the dataset {dataset.name!r} has "
            f"{dataset.num_joints}"
        )
    if erd.skeleton is not None and erd.skeleton.joints != dataset.skeleton.joints:
        raise ValueError(
            f"the model's joints are {', '.join(erd.skeleton.joints)} but those of the dataset "
            f"{dataset.name!r} are {', '.join(dataset.skeleton.joints)}"
        )
    names, group = _groups(dataset, per_subject)
    counts = torch.bincount(group, minlength=len(names))
    values: dict[str, dict[str, Tensor]] = {}
    unsolved: dict[str, int] = {}
    for mode in roots:
        errors, failures = _errors(erd, dataset, mode, known_size, chunk)
        values[mode] = {
            metric: _row_means(error, group, len(names), skip_nan=metric == ROOT_ERROR)
            for metric, error in errors.items()
        }
        if mode in SOLVED_ROOTS:
            unsolved[mode] = failures
    return EvaluationTable(
        model=model_name,
        data=dataset.name,
        actions=names,
        counts=counts.tolist(),
        values=values,
        trained_root=erd.root,
        unsolved=unsolved,
    )


def _root_modes(erd: ERD, roots: tuple[str, ...] | None) -> tuple[str, ...]:
    if roots is None:
        return ("given", erd.root if erd.root in SOLVED_ROOTS else "solve")
    known = ("given", *SOLVED_ROOTS)
    for mode in roots:
        if mode not in known:
            raise ValueError(f"a root mode must be one of {', '.join(known)}, got {mode!r}")
    return roots


def _errors(
    erd: ERD, dataset: PoseDataset, mode: str, known_size: bool, chunk: int
) -> tuple[dict[str, Tensor], int]:
    """Errors of every pose ``(N, K + 1)`` float64 by metric, and the number of unsolved roots."""
    parts: dict[str, list[Tensor]] = {}
    unsolved = 0
    root: Tensor | str = dataset.root if mode == "given" else mode
    for part, result in staged_poses(
        erd,
        dataset.keypoints,
        dataset.camera,
        root,
        dataset.confidence,
        dataset.initial,
        chunk=chunk,
        bone_length=dataset.person_size() if known_size else None,
    ):
        truth = dataset.pose[part].expand(result.stages.shape)
        for metric, error in pose_errors(result.stages, truth, erd.root_joint).items():
            parts.setdefault(metric, []).append(error.double().T)
        if mode in SOLVED_ROOTS:
            parts.setdefault(ROOT_ERROR, []).append(_root_error(erd, dataset[part], result, mode))
        unsolved += int((result.status != 0).sum())
    return {metric: torch.cat(errors) for metric, errors in parts.items()}, unsolved


def _root_error(erd: ERD, data: PoseDataset, result: StagedPoses, mode: str) -> Tensor:
    """Distances ``(n, K + 1)`` float64, mm, of the true roots from those that go with the poses of
    each column; NaN where a root could not be solved.
    """
    if mode == "solve":
        solved = [(result.root, result.status)] * len(result.stages)
    else:
        solved = [
            solved_root(erd, data.keypoints, pose, data.camera, data.confidence, mode)
            for pose in result.stages
        ]
    columns = [
        torch.where(status == 0, (root - data.root).norm(dim=-1).double(), torch.nan)
        for root, status in solved
    ]
    return torch.stack(columns, dim=1)


def _row_means(error: Tensor, group: Tensor, rows: int, skip_nan: bool) -> Tensor:
    """Means ``(rows, K + 1)`` over the poses of each row.

    NaN is a broken prediction in an error of poses and must be seen, but a root that could not be
    solved in an error of roots.
    """
    counted = ~error.isnan() if skip_nan else torch.ones_like(error, dtype=torch.bool)
    total = error.new_zeros(rows, error.shape[1]).index_add_(0, group, error.where(counted, 0.0))
    return total / error.new_zeros(rows, error.shape[1]).index_add_(0, group, counted.double())


def _groups(dataset: PoseDataset, per_subject: bool) -> tuple[list[str], Tensor]:
    """Row names, sorted, and the row of every pose."""
    label = dataset.action.long()
    if per_subject:
        label = label + dataset.subject.long() * len(dataset.actions)
    present, group = torch.unique(label, return_inverse=True)
    names = []
    for index in present.tolist():
        subject, action = divmod(index, len(dataset.actions))
        names.append(
            f"{dataset.subjects[subject]} {dataset.actions[action]}"
            if per_subject
            else dataset.actions[action]
        )
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = torch.empty(len(order), dtype=torch.long)
    rank[torch.tensor(order)] = torch.arange(len(order))
    return [names[i] for i in order], rank[group]
