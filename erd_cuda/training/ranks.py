"""The processes that train one model together, as torchrun starts them, and what they agree on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "group_of_torchrun", "restarted_by_torchrun"]


class Ranks:
    """The default process group, of which this process is one rank.

    Attributes:
        rank, size: number of this process, and how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._stop = False

    @staticmethod
    def of_this_process() -> Ranks | None:
        """The group, or None where this process trains alone."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return None
        return Ranks()

    def part(self, count: int) -> slice:
        """Which of the rows of a batch are this rank's: about as many as every other's."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, values: Tensor) -> None:
        """Replace the values by their sums over all ranks, which are the same bits on each."""
        dist.all_reduce(values)

    def stop_together(self) -> None:
        """Raise KeyboardInterrupt in all ranks if any of them was interrupted."""
        stop = torch.tensor(int(self._stop), dtype=torch.int32)
        dist.all_reduce(stop, dist.ReduceOp.MAX)
        if stop:
            raise KeyboardInterrupt

    @contextmanager
    def interrupts_noted(self) -> Iterator[None]:
        """Ctrl-C is remembered until `stop_together`, instead of ending one rank while the others
        wait for it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._stop = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def group_of_torchrun(device: str) -> Iterator[str]:
    """Join the processes that torchrun has started, for as long as the block lasts.

    Args:
        device: as for `erd_cuda.training.train`; "cuda" is the GPU of this process's local rank.

    Yields:
        The device of this process. Without torchrun, and within a group that there is already,
        nothing happens and it is ``device``.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()) or dist.is_initialized():
        yield device
        return
    backend = "gloo"
    if torch.device(device).type == "cuda":
        # What the ranks agree on besides gradients does not wait for a GPU.
        backend = "cpu:gloo,cuda:nccl"
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
    store, rank, size = next(dist.rendezvous("env://"))
    if size == int(os.environ["LOCAL_WORLD_SIZE"]):
        # torchrun keeps one store for all its attempts: the addresses of killed processes must not
        # be found in it. Machines count their restarts apart, so several have no such number.
        store = dist.PrefixStore(f"attempt {_restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def restarted_by_torchrun() -> bool:
    """Whether torchrun has started this process in the place of one that has failed."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
