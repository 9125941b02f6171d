"""Checkpoints of a training run: all that an exact continuation needs, after every epoch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erd_cuda._files import replacing
from erd_cuda.training.config import TrainConfig

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = 1


@dataclass
class Checkpoint:
    """State of a run after a whole number of epochs.

    Attributes:
        config: :meth:`TrainConfig.to_dict` of the run.
        data: Content hash of the training set.
        lifter: Hash of the lifter's weights if a trained one was given, "" if the run trains its
            own.
        phase: 0 for the lifter, k for stage k.
        epoch: Finished epochs of that phase.
        model: State dict of the whole model.
        optimizer: State dict of the phase's optimiser.
        shuffle: State of the generator that shuffles.
        dropout: State of the device's default generator, which dropout draws from.
        history: One record per finished epoch of the run.
        device: Kind of device that ``dropout`` is a state of, "cpu" or "cuda".
    """

    config: dict[str, Any]
    data: str
    lifter: str
    phase: int
    epoch: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    shuffle: Tensor
    dropout: Tensor
    history: list[dict[str, Any]] = field(default_factory=list)
    device: str = "cpu"

    def check_matches(self, config: TrainConfig, data: str, lifter: str, path: Path) -> None:
        """Raise a ValueError if another run made this checkpoint."""
        differences = config.differences(self.config)
        if differences:
            raise ValueError(
                f"{path} belongs to a run with another configuration: {', '.join(differences)}"
            )
        if self.data != data:
            raise ValueError(
                f"{path} belongs to a run on other training data (content hashes differ)"
            )
        if self.lifter != lifter:
            raise ValueError(f"{path} belongs to a run with another given lifter")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint; a crash or Ctrl-C at any moment leaves the previous one or this one."""
    content = {
        "erd_cuda_checkpoint": FORMAT,
        **{f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)},
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code it might contain.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint of this format, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint to resume from at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable training checkpoint") from error
    if not isinstance(content, dict) or "erd_cuda_checkpoint" not in content:
        raise ValueError(f"{path} is not a training checkpoint of erd_cuda")
    version = content.pop("erd_cuda_checkpoint")
    if version != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {version!r}, this version reads format {FORMAT}"
        )
    try:
        return Checkpoint(**content)
    except TypeError as error:
        raise ValueError(
            f"{path} is a damaged training checkpoint: it lacks or adds entries"
        ) from error
