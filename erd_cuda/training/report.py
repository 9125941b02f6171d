"""What a run shows and leaves behind besides the model: progress bars, a log file, TensorBoard."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from erd_cuda._files import write_text
from erd_cuda.training.loop import Phase

__all__ = ["EpochBar", "TensorBoard", "write_log"]

COLUMNS = ("phase", "epoch", "lr", "loss", "mpjpe", "held_out_mpjpe", "seconds")


class EpochBar:
    """A progress bar for a phase on a terminal, a line per epoch elsewhere, or nothing."""

    def __init__(self, phase: Phase, first_epoch: int, show: bool) -> None:
        self._phase = phase
        self._show = show
        self._epoch = first_epoch
        self._shown = 0.0
        self._bar = tqdm(
            total=phase.epochs * phase.steps,
            initial=first_epoch * phase.steps,
            desc=phase.name,
            unit="batch",
            dynamic_ncols=True,
            disable=not (show and sys.stderr.isatty()),
        )

    def __enter__(self) -> EpochBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def step(self, done: int, loss_sum: Tensor, mpjpe_sum: Tensor) -> None:
        """After batches, with those of the epoch; reads the sums at most twice a second."""
        self._bar.update(self._epoch * self._phase.steps + done - self._bar.n)
        now = time.monotonic()
        if not self._bar.disable and now - self._shown > 0.5:
            self._shown = now
            self._bar.set_description(
                f"{self._phase.name} epoch {self._epoch + 1}/{self._phase.epochs}", refresh=False
            )
            self._bar.set_postfix_str(
                f"loss {loss_sum.item() / done:.4g}, MPJPE {mpjpe_sum.item() / done:.1f} mm",
                refresh=False,
            )

    def epoch(self, record: dict[str, Any]) -> None:
        """After an epoch: its line."""
        self._epoch = record["epoch"]
        if not self._show:
            return
        held_out = record["held_out_mpjpe"]
        line = (
            f"{record['phase']} epoch {record['epoch']}/{self._phase.epochs}: "
            f"loss {record['loss']:.4g}, MPJPE {record['mpjpe']:.1f} mm"
            + ("" if held_out is None else f", held out {held_out:.1f} mm")
            + f", {record['seconds']:.1f} s"
        )
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        elif held_out is not None or record["epoch"] == self._phase.epochs:
            self._bar.write(line, file=sys.stderr)


class TensorBoard:
    """Scalars of every epoch for TensorBoard; does nothing without a directory.

    Args:
        directory: Where the event files go, or None.
        first_step: Epochs of the run that its checkpoint knows; what the directory has beyond them
            (an epoch that was logged and then lost) is overwritten.

    Raises:
        ImportError: A directory was asked for and the package tensorboard is not installed.
    """

    def __init__(self, directory: Path | None, first_step: int) -> None:
        self._writer = None
        self._step = first_step
        if directory is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "TensorBoard logging needs the package tensorboard (pip install tensorboard)"
                ) from error
            self._writer = SummaryWriter(str(directory), purge_step=first_step)

    def epoch(self, record: dict[str, Any]) -> None:
        """Log one epoch's record."""
        if self._writer is not None:
            for name in ("loss", "mpjpe", "held_out_mpjpe", "lr"):
                if record[name] is not None:
                    self._writer.add_scalar(f"{record['phase']}/{name}", record[name], self._step)
            self._writer.flush()
        self._step += 1

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """All epochs of the run as CSV, written anew each time: no gaps or repeats after a resume."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, buffer.getvalue())
