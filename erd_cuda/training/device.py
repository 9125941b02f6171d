"""Where a training run computes."""

from __future__ import annotations

import torch
from torch import Tensor

from erd_cuda.build import build_info

__all__ = ["random_state", "seed_generators", "set_random_state", "training_device"]


def training_device(device: torch.device | str) -> torch.device:
    """The device of that name, a GPU with its number.

    Raises:
        ValueError: it is neither "cpu" nor a GPU that torch finds here, or this build of erd_cuda
            has no kernels for GPUs.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise ValueError(f"device is {str(device)!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    if not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but torch finds no CUDA GPU here")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device is {str(device)!r}, but torch finds only {torch.cuda.device_count()} CUDA "
            "GPUs here, numbered from 0"
        )
    if not build_info()["cuda"]:
        raise ValueError(
            f"device is {str(device)!r}, but this build of erd_cuda has no CUDA kernels, expected "
            "'cpu' or a build with them"
        )
    return torch.device("cuda", index)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the CPU's default generator, and that of the device if it is a GPU; no other one.

    `torch.manual_seed` would reseed every GPU, also those that a run has nothing to do with.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def random_state(device: torch.device) -> Tensor:
    """State of the device's default generator, which dropout draws from."""
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Put the device's default generator into a state of `random_state`."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
