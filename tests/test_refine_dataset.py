"""``erd-cuda refine`` on folders and Parquet files: streamed by parts, and continued by parts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from parquet_files import column, read, samples, table, write  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from small_training import held_out_set, trained_model  # noqa: E402

from erd_cuda.cli import main  # noqa: E402
from erd_cuda.refining import parquet  # noqa: E402
from erd_cuda.refining.refiner import Refiner  # noqa: E402

COUNT = 450


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    trained_model().save(path)
    return str(path)


def refine(source: Path, out: Path, model: str, *options: str) -> int:
    return main(["refine", str(source), "-o", str(out), "--model", model, *options])


def by_npz(folder: Path, model: str, arrays: dict[str, np.ndarray], *options: str) -> Any:
    np.savez(folder / "same.npz", **arrays)
    assert refine(folder / "same.npz", folder / "same-out.npz", model, *options) == 0
    with np.load(folder / "same-out.npz") as file:
        return {name: file[name] for name in file.files}


def states(out: Path) -> dict[str, tuple[int, int]]:
    """Which files are there, and whether they are still those that were there before."""
    return {
        str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file()
    }


def test_a_parquet_file_gives_what_an_npz_gives(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = samples(COUNT)
    source = write(tmp_path / "in.parquet", arrays)
    # Parts of two row groups and of one, every batch within a part.
    options = ("--stages", "--batch-size", "50", "--part-rows", "150")
    assert refine(source, tmp_path / "out", model, *options) == 0
    report = capsys.readouterr().out
    assert report.startswith(f"{tmp_path / 'out'}: 450 poses in ")
    assert "CPU seconds per million poses, root given; 3 parts, 0 were there already" in report
    expected = by_npz(tmp_path, model, arrays, "--stages", "--batch-size", "50")
    found = read(tmp_path / "out")
    assert list(found) == ["take", "frame", "pose", "root", "status", "stages"]
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
    assert found["frame"].tolist() == list(range(COUNT))
    assert found["take"][449] == "take 4"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["_refine.json", *(f"in-0000{i}.parquet" for i in range(3))]
    kinds = pq.read_schema(tmp_path / "out" / "in-00001.parquet")
    assert kinds.field("pose").type == pa.list_(pa.list_(pa.float32(), 3), 17)
    assert kinds.field("status").type == pa.int32()


@pytest.mark.parametrize("layout", ["flat", "lists of any size", "tensors", "third channel"])
def test_lists_may_be_flat_or_nested(tmp_path: Path, model: str, layout: str) -> None:
    arrays: dict[str, Any] = samples(60)
    confidence = np.ones((60, 17), dtype=np.float64)
    confidence[7, 3] = 0
    arrays |= {"confidence": confidence, "bone_length": np.full(60, 4000.0)}
    expected = by_npz(tmp_path, model, arrays)
    keypoints = arrays["keypoints"]
    if layout == "flat":
        arrays["keypoints"] = keypoints.reshape(60, 34)
    elif layout == "lists of any size":
        arrays = {
            name: column(values, fixed=False) if values.ndim > 1 else values
            for name, values in arrays.items()
        }
    elif layout == "tensors":
        arrays["keypoints"] = pa.FixedShapeTensorArray.from_numpy_ndarray(keypoints)
    else:
        del arrays["confidence"]
        arrays["keypoints"] = np.concatenate([keypoints, confidence[..., None]], axis=-1)
    assert refine(write(tmp_path / "in.parquet", arrays), tmp_path / "out", model) == 0
    found = read(tmp_path / "out")
    assert list(found) == ["take", "frame", "pose", "root", "status"]
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def test_a_folder_of_all_kinds_of_files(tmp_path: Path, model: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    arrays = samples(60)
    write(source / "subject=S1" / "walk.parquet", arrays)
    np.savez(source / "more.npz", **arrays)
    held_out_set()[:30].save(source / "poses.safetensors")
    for name in (".hidden.npz", "_state/x.npz", "notes.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"not to be read")
    assert refine(source, out, model) == 0
    assert sorted(states(out)) == [
        "_refine.json",
        "more.npz",
        "poses.safetensors",
        "subject=S1/walk-00000.parquet",
    ]
    expected = by_npz(tmp_path, model, arrays)["pose"]
    with np.load(out / "more.npz") as file:
        assert np.array_equal(file["pose"], expected)
    assert np.array_equal(read(out)["pose"], expected)
    assert refine(source / "poses.safetensors", tmp_path / "one.safetensors", model) == 0
    one, many = load_file(tmp_path / "one.safetensors"), load_file(out / "poses.safetensors")
    assert all(np.array_equal(one[name], many[name]) for name in one)


def test_finished_parts_are_left_alone(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write(source / "a.parquet", samples(COUNT))
    options = ("--part-rows", "100")
    assert refine(source, out, model, *options) == 0
    before = states(out)
    contents = (out / "a-00002.parquet").read_bytes()
    # As a killed process leaves it: one part missing, a part of it under another name.
    (out / "a-00002.parquet").unlink()
    (out / ".a-00002.0123abcd.parquet").write_bytes(contents[:1000])
    write(source / "b.parquet", samples(30))
    capsys.readouterr()
    assert refine(source, out, model, *options) == 0
    assert "130 poses in " in (report := capsys.readouterr().out)
    assert report.endswith("2 parts, 4 were there already\n")
    after = states(out)
    assert sorted(after) == sorted([*before, "b-00000.parquet"])
    assert (out / "a-00002.parquet").read_bytes() == contents
    redone = {name for name, state in after.items() if before.get(name) != state}
    assert redone == {"_refine.json", "a-00002.parquet", "b-00000.parquet"}
    assert refine(source, out, model, *options) == 0
    assert "0 poses in " in (report := capsys.readouterr().out)
    assert report.endswith("0 parts, 6 were there already\n")


def test_results_of_other_settings_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, model = tmp_path / "in", tmp_path / "out", tmp_path / "model.safetensors"
    trained_model().save(model)
    file = write(source / "a.parquet", samples(60))
    assert refine(source, out, str(model)) == 0
    before = states(out)

    def refused(*options: str) -> str:
        assert refine(source, out, str(model), *options) == 2
        assert states(out) == before
        error = capsys.readouterr().err.splitlines()[-1]
        assert "name another folder" in error
        return error

    assert "batch_size 16384 there, 7 here" in refused("--batch-size", "7")
    assert "stages False there, True here" in refused("--stages")
    assert "root 'given' there, 'solve' here" in refused("--root", "solve")
    assert "part_rows 1000000 there, 30 here" in refused("--part-rows", "30")
    assert "precision 'auto' there, 'bf16' here" in refused("--precision", "bf16")
    record = json.loads((out / "_refine.json").read_text())
    del record["settings"]["precision"]
    (out / "_refine.json").write_text(json.dumps(record))
    before = states(out)
    assert "precision 'auto' there, 'bf16' here" in refused("--precision", "bf16")
    other = trained_model()
    other.regressors[2].output.bias.data += 1
    other.save(model)
    assert "another model" in refused()
    trained_model().save(model)
    os.utime(file, ns=(1, 1))
    assert "a.parquet has changed since it was refined" in refused()
    file.rename(source / "b.parquet")
    assert "a.parquet is gone since it was refined" in refused()


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single row group, the worst case, is neither read nor written whole."""
    count = 20_000
    source, columns = tmp_path / "in.parquet", table(samples(count))
    # What is decoded at a time is a page of each column, by default of a megabyte.
    pq.write_table(columns, source, data_page_size=1 << 14, use_dictionary=False)
    assert pq.ParquetFile(source).num_row_groups == 1
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 1000)
    monkeypatch.setattr(parquet, "READ_BUFFER", 1 << 16)
    held: list[int] = []
    refined = Refiner.__call__

    def watched(self: Refiner, data: Any) -> Any:
        held.append(pa.total_allocated_bytes())
        return refined(self, data)

    monkeypatch.setattr(Refiner, "__call__", watched)
    before = pa.total_allocated_bytes()
    assert refine(source, tmp_path / "out", model, "--batch-size", "500") == 0
    assert len(held) == count // 500
    assert max(held) - before < columns.nbytes / 4


def test_roots_that_cannot_be_solved_are_counted(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    confidence = np.ones((60, 17), dtype=np.float32)
    confidence[9] = 0
    source = write(tmp_path / "in.parquet", {**samples(60), "confidence": confidence})
    assert refine(source, tmp_path / "out", model, "--root", "solve") == 0
    captured = capsys.readouterr()
    assert "root solve, 1 roots not solvable" in captured.out
    assert "trained with given roots; with solved ones" in captured.err
    assert f"{source} holds a root, which is not used" in captured.err
    assert np.flatnonzero(read(tmp_path / "out")["status"]).tolist() == [9]


def test_units_are_looked_at_in_the_first_part(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = samples(60)
    arrays["root"][:20] /= 1000
    write(tmp_path / "in" / "b.parquet", arrays, rows_per_group=20)
    np.savez(tmp_path / "in" / "a.npz", **{**arrays, "keypoints": arrays["keypoints"] / 1000})
    assert refine(tmp_path / "in", tmp_path / "out", model) == 0
    error = capsys.readouterr().err
    assert f"the keypoints in {tmp_path / 'in' / 'a.npz'} all lie between" in error
    assert error.count("\n") == 1
    for rows, warned in ((20, True), (60, False)):
        source = write(tmp_path / f"{rows}.parquet", arrays, rows_per_group=rows)
        assert refine(source, tmp_path / f"{rows}", model, "--part-rows", "20") == 0
        error = capsys.readouterr().err
        assert (f"half of the roots in {source} are nearer than" in error) == warned
        assert error.count("\n") == warned


def test_a_file_without_rows(tmp_path: Path, model: str) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(table(samples(10)).slice(0, 0), source)
    assert refine(source, tmp_path / "out", model) == 0
    found = pq.read_table(tmp_path / "out" / "in-00000.parquet")
    assert (found.num_rows, found.column_names[-1]) == (0, "status")


def test_wrong_places_get_one_sentence(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    whole = write(source / "a.parquet", samples(60)).read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "a.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "_refine.json").write_text(json.dumps({"erd_cuda_refine": 99}))
    for name, output, options, sentence in (
        ("none.parquet", "out", [], "there is no file"),
        ("empty", "out", [], "holds no .parquet, .npz or .safetensors files to refine"),
        ("half", "out", [], "is not a readable Parquet file"),
        ("in", "in/out", [], "must not lie in the input"),
        ("in", "out.npz", [], "so the output must be a folder, got 'out.npz'"),
        ("in", "no/out", [], "there is no directory"),
        ("in", "full", [], "is not empty and holds no poses of an earlier run"),
        ("in", "old", [], "has format 99, this version reads format 1"),
        ("in/b.npz", "out.npz", ["--workers", "2"], "--workers needs a folder or a Parquet file"),
    ):
        assert refine(tmp_path / name, tmp_path / output, model, *options) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("erd-cuda: ") and error.count("\n") == 1
        assert sentence in error, error
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("missing", ["ray", "pandas"])
def test_without_what_workers_need_the_sentence_names_it(
    missing: str,
    tmp_path: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sys

    source = write(tmp_path / "in.parquet", samples(10))
    monkeypatch.setitem(sys.modules, missing, None)
    assert refine(source, tmp_path / "out", model, "--workers", "2") == 2
    assert capsys.readouterr().err == (
        f"erd-cuda: --workers needs {missing}; install with: pip install 'erd-cuda[scale]'\n"
    )
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_the_sentence_says_what_to_install(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    source = write(tmp_path / "in.parquet", samples(10))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "erd_cuda.refining.parquet")
    monkeypatch.delattr("erd_cuda.refining.parquet")
    assert refine(source, tmp_path / "out", model) == 2
    assert "pip install 'erd-cuda[scale]'" in capsys.readouterr().err
