"""Training by several processes: the losses and the model of one, whatever happens to them."""

from __future__ import annotations

import copy
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from philox import kept_units as published_units
from torch import Tensor, nn

from erd_cuda import ERD, ResidualRegressor
from erd_cuda.cli import main
from erd_cuda.training import trainer
from erd_cuda.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from erd_cuda.training.dropout import kept_units
from erd_cuda.training.shared_layers import BatchPart, regress_part, shared_layers

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


class Alone:
    """A group of one process, for what a part of a batch has to be when it is the whole."""

    rank, size = 0, 1

    def part(self, count: int) -> slice:
        return slice(0, count)

    def sum_(self, values: Tensor) -> None:
        pass


def whole(total: int) -> BatchPart:
    return BatchPart(Alone(), total)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "width"), [(5, 8), (33, 7), (200, 256)])
def test_rows_are_dropped_as_in_the_whole_batch(rows: int, width: int) -> None:
    seed = 0x1234_5678_9ABC
    expected = torch.from_numpy(published_units(seed, rows, width, 0.25))
    for part in (slice(0, rows), slice(3, rows), slice(2, 2)):
        assert torch.equal(kept_units(torch.tensor([seed]), part, width, 0.25), expected[:, part])


@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_regressors_part_is_its_operator(block: str, dropout: float) -> None:
    torch.manual_seed(3)
    module = ResidualRegressor(34, width=30, block=block, dropout=dropout).double().train()
    features = torch.randn(50, 34, dtype=torch.float64)
    results = []
    for shared in (False, True):
        one = copy.deepcopy(module)
        torch.manual_seed(4)
        out = regress_part(one, features, whole(50)) if shared else one(features)
        out.square().mean().backward()
        gradients = {name: value.grad for name, value in one.named_parameters()}
        results.append({"out": out.detach(), **gradients, **one.state_dict()})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert not results[1]["input.bias"].equal(torch.zeros(30)), "the layer has a bias"


def test_shared_layers_are_torchs_and_leave_no_trace() -> None:
    class Network(nn.Module):
        """Two rows of the normalised layer a sample, as in networks over joints."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 10)
            self.rest = nn.Sequential(nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.25))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            out: Tensor = self.rest(h.view(-1, 5)).view_as(h)
            return out

    module = Network().double().train()
    other = copy.deepcopy(module)
    names = [type(layer).__name__ for layer in module.modules()]
    x = torch.randn(20, 6, dtype=torch.float64)
    torch.manual_seed(1)
    expected = module(x)
    torch.manual_seed(1)
    with shared_layers(other, whole(20)):
        assert [type(layer).__name__ for layer in other.modules()] != names
        out = other(x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    assert [type(layer).__name__ for layer in other.modules()] == names
    expected.square().sum().backward()
    out.square().sum().backward()
    for ours, theirs in zip(other.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(other.buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


# Batches of 97 of the 1,152 poses: neither they nor the last one of 85 have halves.
ARGUMENTS = [
    *("train", "--data", "synthetic", "--stride", "80", "--seed", "5", "--quiet"),
    *("--lifter-width", "48", "--lifter-blocks", "1", "--stages", "2", "--width", "32"),
    *("--lifter-epochs", "4", "--stage-epochs", "6", "--batch-size", "97"),
]
EPOCHS = 4 + 2 * 6


def log_of(out: Path) -> list[dict[str, str]]:
    try:
        with open(out / "log.csv", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def torchrun(out: Path, *options: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return subprocess.Popen(
        [*command, "-m", "erd_cuda", *ARGUMENTS, "-o", str(out), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def signal_rank(rank: int, out: Path, what: signal.Signals) -> None:
    for at in Path("/proc").glob("[0-9]*"):
        try:
            ours = str(out).encode() in (at / "cmdline").read_bytes()
            if ours and f"\0RANK={rank}\0".encode() in (at / "environ").read_bytes():
                os.kill(int(at.name), what)
                return
        except OSError:
            continue  # it has ended, or is another user's
    raise AssertionError(f"there is no rank {rank}")


def wait_for_epochs(run: subprocess.Popen[str], out: Path, number: int) -> None:
    end = time.monotonic() + 100
    while len(log_of(out)) < number:
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.005)


def assert_same_curve(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """Up to what adding up in another order changes."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["phase"], ours["epoch"]) == (theirs["phase"], theirs["epoch"])
        for name in ("loss", "mpjpe"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-6), theirs


@linux_only
@pytest.mark.timeout(240)
def test_interrupted_and_killed_ranks_leave_the_curve_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, lifter, stages = (tmp_path / name for name in ("single", "lifter", "stages"))
    stages.mkdir()

    def save(path: Path, checkpoint: Checkpoint) -> None:
        save_checkpoint(path, checkpoint)
        if (checkpoint.phase, checkpoint.epoch) == (0, 4):
            shutil.copy(path, stages)

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    assert main([*ARGUMENTS, "-o", str(single)]) == 0
    expected = log_of(single)
    assert len(expected) == EPOCHS

    # The lifter by two processes, of which one is interrupted: both stop, and the first says so.
    run = torchrun(lifter)
    try:
        wait_for_epochs(run, lifter, 3)
        signal_rank(1, lifter, signal.SIGINT)
        _, errors = run.communicate(timeout=100)
    finally:
        run.kill()
    assert errors.count("training was interrupted in epoch") == 1, errors
    kept = len(load_checkpoint(lifter / "checkpoint.pt").history)
    assert 3 <= kept < EPOCHS
    assert_same_curve(log_of(lifter)[:4], expected[: min(kept, 4)])
    assert not (lifter / "model.safetensors").exists()

    # The stages of the single process's lifter, by two that resume its run: the gradients of biases
    # before batch normalisation are rounding and nothing else, so no two lifters are the same.
    # One of the two is killed, and torchrun starts both again.
    run = torchrun(stages, "--resume", restarts=1)
    try:
        wait_for_epochs(run, stages, 7)
        signal_rank(1, stages, signal.SIGKILL)
        printed, errors = run.communicate(timeout=150)
    finally:
        run.kill()
    assert run.returncode == 0, errors
    assert "exitcode: -9" in errors
    assert printed.count("the model is in") == 1
    assert not list(stages.glob(".*")), "half a checkpoint is left"
    assert_same_curve(log_of(stages), expected)
    models = [ERD.from_pretrained(at / "model.safetensors").state_dict() for at in (single, stages)]
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-5, atol=1e-5, msg=name)
