"""Input that ``erd-cuda refine`` cannot refine, in folders and Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from parquet_files import column, samples, write  # noqa: E402
from small_training import trained_model  # noqa: E402

from erd_cuda.cli import main  # noqa: E402
from erd_cuda.refining import ray_workers  # noqa: E402
from erd_cuda.refining.parts import Part  # noqa: E402
from erd_cuda.refining.record import model_hash  # noqa: E402
from erd_cuda.refining.refiner import RefineOptions  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    trained_model().save(path)
    return str(path)


def refine(source: Path, out: Path, model: str, *options: str) -> int:
    return main(["refine", str(source), "-o", str(out), "--model", model, *options])


def nan_at(row: int) -> np.ndarray:
    keypoints = samples(60)["keypoints"]
    keypoints[row, 6, 1] = np.nan
    return keypoints


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"keypoints": None}, "{} has no column keypoints; it holds take, frame, camera, root"),
        ({"camera": None}, "{} has no column camera; it holds take, frame, keypoints, root"),
        ({"root": None}, "{} holds no root and the model was trained with given ones"),
        (
            {"camera": np.ones((60, 3))},
            "column camera in {} must hold 4 numbers a row for a model with 17 joints, got 3",
        ),
        ({"keypoints": np.ones((60, 2, 17))}, "or 17 x 2 or 17 x 3 numbers a row"),
        ({"keypoints": np.ones((60, 16, 2))}, "got 16 x 2"),
        ({"root": column(np.ones((60, 4)), fixed=False)}, "column root in {} must hold 3 numbers"),
        ({"root": pa.array([[1.0, 2.0, 3e3]] * 59 + [None])}, "column root in {} holds nulls"),
        ({"root": pa.array([[1.0, 2.0, 3e3]] * 59 + [[1.0]])}, "lists of different lengths"),
        ({"root": pa.array(["here"] * 60)}, "column root in {} must hold real numbers, got string"),
        ({"status": np.ones(60)}, "{} has a column status, which is the name of a result"),
        ({"keypoints": nan_at(45)}, "keypoints in {} hold NaN or infinity at sample 45, joint 6"),
        ({"confidence": np.ones((60, 16))}, "column confidence in {} must hold 17 numbers"),
    ],
)
def test_wrong_columns_get_one_sentence(
    tmp_path: Path,
    model: str,
    changes: dict[str, Any],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = {
        name: values for name, values in {**samples(60), **changes}.items() if values is not None
    }
    source = write(tmp_path / "in.parquet", arrays, rows_per_group=20)
    assert refine(source, tmp_path / "out", model, "--batch-size", "10", "--part-rows", "20") == 2
    # Wrong numbers are found on the way: a sentence for each part, then how many are left out.
    error, *others = capsys.readouterr().err.splitlines()
    assert error.startswith("erd-cuda: ") and sentence.format(source) in error
    if others:
        assert f"{len(others)} of 3 parts could not be refined" in others[-1]
    # Half a part is not kept.
    assert not list((tmp_path).rglob(".*"))


def test_wrong_numbers_stop_their_own_part_alone(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    arrays = samples(60)
    wrong = {**arrays, "keypoints": nan_at(45)}
    write(source / "b.parquet", wrong, rows_per_group=20)
    np.savez(source / "a.npz", **wrong)
    np.savez(source / "c.npz", **arrays)
    options = ("--part-rows", "20")
    for _ in range(2):
        assert refine(source, out, model, *options) == 2
        captured = capsys.readouterr()
        *sentences, last = captured.err.splitlines()
        assert [
            f"{source / name} hold NaN" in line
            for name, line in zip(("a.npz", "b.parquet"), sentences, strict=True)
        ] == [True, True]
        assert f"2 of 5 parts could not be refined and have no results in {out}" in last
        names = {"_refine.json", "b-00000.parquet", "b-00001.parquet", "c.npz"}
        assert {path.name for path in out.iterdir()} == names
    assert "0 poses in " in captured.out and "0 parts, 3 were there already" in captured.out
    # Results of a file as it was would be mixed with those of the file as it is.
    np.savez(source / "a.npz", **arrays)
    write(source / "b.parquet", arrays, rows_per_group=20)
    assert refine(source, out, model, *options) == 2
    assert "b.parquet has changed since it was refined" in capsys.readouterr().err
    for path in out.glob("b-*"):
        path.unlink()
    assert refine(source, out, model, *options) == 0
    assert "4 parts, 1 were there already" in capsys.readouterr().out
    assert np.array_equal(
        pq.read_table(out / "b-00002.parquet")["pose"].to_pylist(),
        np.load(out / "a.npz")["pose"][40:],
    )


def test_a_worker_tells_wrong_numbers_from_a_disk_that_is_full(tmp_path: Path, model: str) -> None:
    np.savez(tmp_path / "a.npz", **{**samples(60), "keypoints": nan_at(45)})
    np.savez(tmp_path / "b.npz", **samples(60))
    found = [Part(name, name) for name in ("a.npz", "b.npz", "none.npz")]
    out = tmp_path / "out"
    worker = ray_workers._Worker(
        found, tmp_path, out, RefineOptions(model), model_hash(model), torch.get_num_threads()
    )
    rows = [worker({"part": i}) for i in range(3)]
    assert [row["poses"] for row in rows] == [0, 60, 0]
    assert "hold NaN or infinity at sample 45" in rows[0]["refused"]
    assert "there is no file" in rows[2]["error"]
    assert not (rows[0]["error"] or rows[1]["error"] or rows[1]["refused"] or rows[2]["refused"])
    assert [path.name for path in out.iterdir()] == ["b.npz"]


def test_a_damaged_file_stops_itself_alone(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    arrays = samples(60)
    # First of all what cannot be read: the units of the others are looked at all the same.
    damaged = write(source / "a.parquet", arrays)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    write(source / "b.parquet", {name: arrays[name] for name in ("keypoints", "root")})
    np.savez_compressed(source / "c.npz", **arrays)
    contents = bytearray((source / "c.npz").read_bytes())
    contents[400:440] = bytes(40)
    (source / "c.npz").write_bytes(contents)
    np.savez(source / "d.npz", **{**arrays, "keypoints": arrays["keypoints"] / 1000})
    write(source / "e.parquet", arrays, rows_per_group=20)
    for found in (0, 2):
        assert refine(source, out, model) == 2
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert ("d.npz all lie" in captured.err) == (found == 0)
        assert f"{damaged} is not a readable Parquet file" in captured.err
        assert f"{source / 'b.parquet'} has no column camera" in captured.err
        assert f"{source / 'c.npz'} is not a readable .npz file" in captured.err
        assert f"3 of 5 parts could not be refined and have no results in {out}" in lines[-1]
        assert f"{2 - found} parts, {found} were there already" in captured.out
        assert {path.name for path in out.iterdir()} == {"_refine.json", "d.npz", "e-00000.parquet"}
    np.savez(source / "c.npz", **arrays)
    write(source / "a.parquet", arrays)
    write(source / "b.parquet", arrays)
    assert refine(source, out, model) == 0
    assert "3 parts, 2 were there already" in capsys.readouterr().out


def test_of_many_wrong_files_the_first_are_named(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(23):
        (source / f"{i:02d}.npz").write_bytes(b"none")
    assert refine(source, tmp_path / "out", model) == 2
    *named, more, last = capsys.readouterr().err.splitlines()
    wrong = [Path(line.split(" is not a readable .npz file")[0]).name for line in named]
    assert wrong == [f"{i:02d}.npz" for i in range(20)]
    assert "and 3 more of this kind" in more
    assert "23 of 23 parts could not be refined" in last
