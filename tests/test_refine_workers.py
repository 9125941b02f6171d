"""``erd-cuda refine`` killed, whole and a Ray worker of it: nothing is lost or done twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("ray")

from parquet_files import samples, write
from small_training import trained_model

from erd_cuda.cli import main

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

PARTS, ROWS = 5, 700
# Slow enough to be killed in time: many small batches.
OPTIONS = ("--batch-size", "3", "--part-rows", str(ROWS), "--precision", "bf16")


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sockets, whose names must be short; afterwards it has no process left."""
    folder = Path(tempfile.mkdtemp(prefix="erd-ray-", dir="/tmp"))
    yield folder
    marked = f"RAY_TMPDIR={folder}".encode()
    try:
        wait_for(
            lambda: not list(processes(lambda at: marked in (at / "environ").read_bytes())), 60
        )
    finally:
        for pid in processes(lambda at: marked in (at / "environ").read_bytes()):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def processes(matches: Callable[[Path], bool]) -> Iterator[int]:
    for at in Path("/proc").glob("[0-9]*"):
        try:
            if matches(at):
                yield int(at.name)
        except OSError:
            continue  # it has ended, or is another user's


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def begin(source: Path, out: Path, model: Path, *options: str, **changes: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "erd_cuda", "refine", str(source), "-o", str(out)]
    return subprocess.Popen(
        [*command, "--model", str(model), *OPTIONS, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", **changes},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def writers(out: Path) -> list[int]:
    """The processes that are writing a part."""

    def writes(at: Path) -> bool:
        names = [os.readlink(file) for file in (at / "fd").iterdir()]
        return any(Path(name).parent == out and Path(name).name[0] == "." for name in names)

    return list(processes(writes))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_killed_runs_and_workers_lose_nothing(tmp_path: Path, ray_folder: Path) -> None:
    model = tmp_path / "model.safetensors"
    trained_model().save(model)
    source = write(tmp_path / "in.parquet", samples(PARTS * ROWS), rows_per_group=ROWS)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["refine", str(source), "-o", str(whole), "--model", str(model), *OPTIONS]) == 0

    # The single process is killed while it writes its third part.
    killed = begin(source, out, model)
    wait_for(lambda: list(out.glob(".in-00002.*")) or killed.poll() is not None, 60)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    finished = {path: path.stat() for path in out.glob("in-*")}
    assert 2 <= len(finished) < PARTS

    # Two workers go on, and one of them is killed while it writes.
    running = begin(source, out, model, "--workers", "2", RAY_TMPDIR=str(ray_folder))
    try:
        # Ray takes its time to start where other tests keep the processors busy.
        wait_for(lambda: writers(out) or running.poll() is not None, 240)
        worker = writers(out)[0]
        assert worker != running.pid
        os.kill(worker, signal.SIGKILL)
        report, errors = running.communicate(timeout=240)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert f"{PARTS - len(finished)} parts, {len(finished)} were there already" in report
    assert f": {(PARTS - len(finished)) * ROWS:,} poses in " in report
    for path, state in finished.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns) == (state.st_ino, state.st_mtime_ns), path
    assert contents(out) == contents(whole)
