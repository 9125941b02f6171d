"""What a training run begins with: checked data, fresh networks, seeds, hashes of what is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from erd_cuda.modules import ERD, Lifter
from erd_cuda.modules.lifters import check_lifter_fits, new_lifter
from erd_cuda.modules.missing import mean_of_seen, place_missing_joints
from erd_cuda.training.config import TrainConfig

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset


def check_data(dataset: PoseDataset, lifter: Callable[[Tensor], Tensor] | None) -> None:
    """Raises ValueError for data that nothing can be trained on, or that do not fit the lifter."""
    if len(dataset) < 2:
        raise ValueError(
            f"training needs at least two poses, the dataset {dataset.name!r} holds {len(dataset)}"
        )
    for name in ("keypoints", "pose", "root", "initial"):
        values = getattr(dataset, name)
        if values is None:
            continue
        finite = values.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            raise ValueError(
                f"{name} of the dataset {dataset.name!r} is NaN or infinite in "
                f"{int((~finite).sum())} of {len(dataset)} poses (the first is number "
                f"{int((~finite).nonzero()[0])}); leave them out"
            )
    check_lifter_fits(lifter, dataset.skeleton, dataset.name)


def lifter_for(config: TrainConfig, dataset: PoseDataset) -> Lifter:
    """An untrained lifter with the data's statistics."""
    size = (config.lifter_width, config.lifter_blocks)
    lifter = new_lifter(config.lifter, dataset.skeleton, *size, config.dropout, config.pca)
    lifter.fit_normalization(_complete_keypoints(dataset), dataset.pose)
    return lifter


def model_for(
    config: TrainConfig,
    dataset: PoseDataset,
    lifter: nn.Module | Callable[[Tensor], Tensor] | None,
) -> ERD:
    """An untrained model around the lifter, with the data's statistics."""
    erd = ERD(
        lifter,
        num_joints=dataset.num_joints,
        stages=config.stages,
        width=config.width,
        block=config.block,
        features=config.features,
        pca=config.pca,
        root=config.root,
        dropout=config.dropout,
        skeleton=dataset.skeleton,
        confidence_weights=config.confidence_weights,
        residual_limit=config.residual_limit,
    )
    erd.fit_normalization(_complete_keypoints(dataset), dataset.pose)
    return erd


def _complete_keypoints(dataset: PoseDataset) -> Tensor:
    """What statistics are taken of: whatever stands in for missing joints would spoil them."""
    keypoints, confidence = dataset.keypoints, dataset.confidence
    if confidence is None:
        return keypoints
    mean = mean_of_seen(keypoints, confidence).to(keypoints.dtype)
    return place_missing_joints(keypoints, confidence, mean)


def stream_seed(seed: int, index: int) -> int:
    """Seeds of the run's generators, another for every seed and every phase.

    Hashed to 32 bits, because torch's CPU generator ignores all higher ones.
    """
    digest = hashlib.sha256(f"erd_cuda training {seed} {index}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def lifter_hash(lifter: Callable[[Tensor], Tensor], dataset: PoseDataset) -> str:
    """Tells lifters apart: by their weights, or a function by its answers to some poses."""
    digest = hashlib.sha256()
    if not isinstance(lifter, nn.Module):
        with torch.no_grad():
            return tensor_hash(lifter(dataset.keypoints[:100]))
    for name, value in sorted(lifter.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tensor_hash(value: Tensor) -> str:
    """Tells given poses apart."""
    return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
