"""A training set that fits in seconds, shared by the tests of training, evaluation and commands."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from erd_cuda.data import PoseDataset, load_dataset
from erd_cuda.modules import ERD, MartinezLifter
from erd_cuda.training import TrainConfig, train

SCHEDULE: dict[str, Any] = {
    "stages": 2,
    "width": 32,
    "lifter_width": 48,
    "lifter_blocks": 1,
    "lifter_epochs": 2,
    "stage_epochs": 2,
    "lifter_batch_size": 100,
    "stage_batch_size": 100,
    "seed": 5,
}
"""A run of well under a second."""


@cache
def train_set() -> PoseDataset:
    """1,152 poses of all training subjects and actions."""
    return load_dataset("synthetic", "train", stride=80)


@cache
def held_out_set() -> PoseDataset:
    """480 poses of the test subjects."""
    return load_dataset("synthetic", "test", stride=40)


def small_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**SCHEDULE, **changes})


def run(out: Path, config: TrainConfig | None = None, **options: Any) -> ERD:
    """Train on the small set without progress."""
    options = {"progress": False, "dataset": train_set(), **options}
    dataset = options.pop("dataset")
    return train(small_config() if config is None else config, dataset, out, **options)


def trained_model(**changes: Any) -> ERD:
    """An ERD that has seen enough training to do something, made without the trainer.

    A copy of its own for every caller: what one test does to it harms no other.
    """
    return copy.deepcopy(_trained_model(**changes))


@cache
def _trained_model(**changes: Any) -> ERD:
    data = train_set()
    torch.manual_seed(1)
    lifter = MartinezLifter(data.num_joints, width=48, blocks=1)
    lifter.fit_normalization(data.keypoints, data.pose)
    erd = ERD(lifter, stages=3, width=32, skeleton=data.skeleton, **changes)
    erd.fit_normalization(data.keypoints)
    # Batch norm statistics other than 0 and 1, and increments of some millimetres.
    erd.train()
    with torch.no_grad():
        for regressor in erd.regressors:
            regressor.output.weight.mul_(30)
        erd(data.keypoints, data.camera, data.root)
    return erd.eval()
