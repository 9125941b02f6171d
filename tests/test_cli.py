"""The dispatcher, and the commands info, train and evaluate."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_training import held_out_set, run, small_config, train_set, trained_model

import erd_cuda
from erd_cuda.cli import COMMANDS, main
from erd_cuda.data import DetectorNoise, PoseDataset
from erd_cuda.evaluation import evaluate
from erd_cuda.modules import ERD
from erd_cuda.training import RECIPES

SMALL = [
    *("--stages", "2", "--width", "32", "--lifter-width", "48", "--lifter-blocks", "1"),
    *("--lifter-epochs", "2", "--stage-epochs", "2", "--batch-size", "100", "--seed", "5"),
]  # fmt: skip
"""The options that make small_config()."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.safetensors, test.safetensors and model.safetensors."""
    folder = tmp_path_factory.mktemp("files")
    train_set().save(folder / "train.safetensors")
    held_out_set().save(folder / "test.safetensors")
    trained_model().save(folder / "model.safetensors")
    return folder


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def environment() -> dict[str, str]:
    root = str(Path(erd_cuda.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def test_help_lists_the_commands_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from erd_cuda.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run(
        python("-c", code), env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for name, text in COMMANDS.items():
        # argparse puts the text of a long name on a line of its own.
        assert re.search(rf"^ +{name}\s+{text}$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: erd-cuda {command} ")


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text == f"erd-cuda {erd_cuda.__version__}\n"
    done = subprocess.run(
        python("-m", "erd_cuda", "--version"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, text)


@pytest.mark.parametrize("arguments", [["fly"], ["train"], ["info", "--fly"], ["evaluate"]])
def test_bad_options_are_argparses(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: erd-cuda" in capsys.readouterr().err


def test_an_unknown_option_shows_the_commands_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["refine", "in.npz", "-o", "out.npz", "--model", "m", "--foo", "3"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: erd-cuda refine [-h] -o OUTPUT")
    assert error.endswith("erd-cuda refine: error: unrecognized arguments: --foo 3\n")


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "COMMAND" in capsys.readouterr().out


def test_info_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["erd_cuda"] == erd_cuda.__version__
    assert facts["python"].endswith(platform.python_version())
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cores"] == os.cpu_count() and facts["cpu"]
    assert facts["build"] == erd_cuda.build_info()
    assert facts["bundled models"] == list(erd_cuda.bundled_models())
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"  +", line)[0] for line in lines] == list(facts)
    assert f"torch {torch.__version__}" in [" ".join(line.split()) for line in lines]


def test_info_still_works_where_the_extension_does_not_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ImportError("undefined symbol:\n  torch_something")

    monkeypatch.setattr(erd_cuda, "build_info", broken, raising=False)
    assert main(["info"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert (
        " build the compiled extension does not load: undefined symbol: torch_something " in words
    )


def test_train_makes_what_the_library_makes(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cli"
    data = str(files / "train.safetensors")
    assert main(["train", "--data", data, "-o", str(out), *SMALL, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"the model is in {out / 'model.safetensors'}\n"
    assert captured.err == ""
    run(tmp_path / "library", dataset=PoseDataset.load(data))
    ours, theirs = ((tmp_path / name / "model.safetensors") for name in ("cli", "library"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert json.loads((out / "config.json").read_text()) == small_config().to_dict()


def test_train_with_the_pose_as_a_feature(files: Path, tmp_path: Path) -> None:
    data = str(files / "train.safetensors")
    options = ["--features", "residual+pose", "--quiet"]
    assert main(["train", "--data", data, "-o", str(tmp_path), *SMALL, *options]) == 0
    erd = ERD.from_pretrained(tmp_path / "model.safetensors")
    mean3d = PoseDataset.load(data).pose.double().mean(0)
    assert erd.mean3d is not None and erd.std3d is not None
    torch.testing.assert_close(erd.mean3d, mean3d.float(), rtol=1e-4, atol=1e-3)
    assert (erd.std3d[1:] > 0).all() and not erd.std3d[0].any()


@pytest.mark.parametrize(
    ("options", "stages", "weights", "limit"),
    [
        ((), 4, False, None),
        (("--recipe", "best"), 2, True, RECIPES["best"]["residual_limit"]),
        (("--recipe", "best", "--stages", "1", "--no-confidence-weights"), 1, False, 25.0),
        (("--recipe", "best", "--residual-limit", "inf"), 2, True, None),
        (("--recipe", "paper", "--confidence-weights"), 4, True, None),
    ],
)
def test_a_recipe_and_what_overrides_it(
    files: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    stages: int,
    weights: bool,
    limit: float | None,
) -> None:
    small = ["--width", "8", "--lifter-width", "8", "--lifter-epochs", "1", "--stage-epochs", "1"]
    data = str(files / "train.safetensors")
    assert main(["train", "--data", data, "-o", str(tmp_path), *small, *options, "--quiet"]) == 0
    erd = ERD.from_pretrained(tmp_path / "model.safetensors")
    assert (erd.stages, erd.confidence_weights) == (stages, weights)
    assert erd.residual_limit == limit


def test_train_options_reach_the_model(files: Path, tmp_path: Path) -> None:
    options = [
        *("--block", "relu", "--features", "proj2d", "--pca", "12", "--root", "solve"),
        *("--dropout", "0.1", "--lr", "0.002", "--lr-decay", "0.9", "--stage-lr", "0.004"),
        *("--lifter-lr-decay", "0.8", "--stage-batch-size", "50", "--stride", "2"),
        *("--subjects", "Train1", "Train3", "--threads", str(torch.get_num_threads())),
        "--tensorboard",
    ]  # fmt: skip
    data = str(files / "train.safetensors")
    assert main(["train", "--data", data, "-o", str(tmp_path), *SMALL, *options, "--quiet"]) == 0
    erd = ERD.from_pretrained(tmp_path / "model.safetensors")
    config = small_config(
        block="relu", features="proj2d", pca=12, root="solve", dropout=0.1,
        lifter_lr=0.002, stage_lr=0.004, lifter_lr_decay=0.8, stage_lr_decay=0.9,
        stage_batch_size=50,
    )  # fmt: skip
    assert erd.notes["training"] == config.to_dict()
    assert erd.notes["data"]["subjects"] == ["Train1", "Train3"]
    assert 0 < erd.notes["data"]["poses"] < len(train_set()) // 4
    assert list((tmp_path / "tensorboard").iterdir())


def test_train_on_a_given_lifter_and_show_the_test_subjects(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = PoseDataset.concat([train_set(), held_out_set()])
    both.save(tmp_path / "both.safetensors")
    arguments = ["train", "--data", str(tmp_path / "both.safetensors"), "-o", str(tmp_path / "run")]
    arguments += ["--lifter", str(files / "model.safetensors"), *SMALL, "--eval-every", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("held out") == 4
    erd = ERD.from_pretrained(tmp_path / "run" / "model.safetensors")
    assert isinstance(erd.lifter, torch.nn.Module)
    given = trained_model().lifter
    assert isinstance(given, torch.nn.Module)
    for name, value in given.state_dict().items():
        assert torch.equal(erd.lifter.state_dict()[name], value)
    assert erd.notes["data"]["poses"] == len(train_set()), "the test subjects were trained on"


def test_ctrl_c_ends_with_advice_that_works(
    files: Path, tmp_path: Path, set_threads: Callable[[int], None]
) -> None:
    """A real SIGINT to a real process, then the command it recommends."""
    set_threads(1)
    options = ["train", "--data", str(files / "train.safetensors"), *SMALL]
    options += ["--lifter-epochs", "40", "--threads", "1"]
    assert main([*options, "-o", str(tmp_path / "whole"), "--quiet"]) == 0
    process = subprocess.Popen(
        python("-m", "erd_cuda", *options, "-o", str(tmp_path / "parts")),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    line = ""
    while not line.startswith("lifter epoch 3/40"):
        line = process.stderr.readline()
        assert line, "training ended before it was interrupted"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    last = error.splitlines()[-1]
    assert last.startswith("erd-cuda: training was interrupted in epoch ")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    advice = last.partition("; continue with: erd-cuda ")[2].split()
    assert advice[-1] == "--resume"
    assert main([*advice, "--quiet"]) == 0
    ours, theirs = ((tmp_path / name / "model.safetensors") for name in ("parts", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_ctrl_c_elsewhere_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("erd_cuda.cli.info.collect", pressed)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "erd-cuda: interrupted\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = python("-m", "erd_cuda", "info")
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(timeout=60)


def test_evaluate_prints_and_writes_the_librarys_table(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(files / "model.safetensors"), str(files / "test.safetensors")
    written = ["--csv", str(tmp_path / "t.csv"), "--json", str(tmp_path / "t.json")]
    assert main(["evaluate", model, "--data", data, *written, "--batch-size", "77"]) == 0
    expected = evaluate(
        ERD.from_pretrained(model), held_out_set(), model_name="model.safetensors", chunk=77
    )
    assert capsys.readouterr().out == expected.text()
    assert (tmp_path / "t.csv").read_text() == expected.to_csv()
    assert json.loads((tmp_path / "t.json").read_text()) == json.loads(expected.to_json())


def test_noise_makes_exact_keypoints_detected_ones(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(files / "model.safetensors"), str(files / "test.safetensors")
    arguments = ["evaluate", model, "--data", data, "--csv", str(tmp_path / "t.csv")]
    noise = ["--noise", "9", "--noise-seed", "4", "--noise-outliers", "0.03"]
    noise += ["--noise-swaps", "0.01", "--noise-missing", "0.1"]
    assert main([*arguments, *noise]) == 0
    detected = DetectorNoise(9.0, outliers=0.03, swaps=0.01, missing=0.1).apply(held_out_set(), 4)
    expected = evaluate(ERD.from_pretrained(model), detected)
    assert (tmp_path / "t.csv").read_text() == expected.to_csv()
    assert main([*arguments, "--noise", "6.7"]) == 0
    expected = evaluate(ERD.from_pretrained(model), DetectorNoise(6.7).apply(held_out_set()))
    assert (tmp_path / "t.csv").read_text() == expected.to_csv()
    capsys.readouterr()


def test_training_on_noise(files: Path, tmp_path: Path) -> None:
    data = str(files / "train.safetensors")
    short = ["--stages", "1", "--width", "8", "--lifter-width", "8", "--lifter-blocks", "1"]
    short += ["--lifter-epochs", "1", "--stage-epochs", "1", "--quiet"]
    place = tmp_path / "run"
    assert main(["train", "--data", data, "-o", str(place), "--noise", "6.7", *short]) == 0
    seen = ERD.from_pretrained(str(place / "model.safetensors")).notes["data"]["content_hash"]
    assert seen == DetectorNoise(6.7).apply(train_set()).content_hash()


def test_evaluate_chooses_split_root_and_rows(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(files / "model.safetensors"), str(files / "train.safetensors")
    options = ["--split", "train", "--root", "solve_each_stage", "--per-subject"]
    options += ["--actions", "Walking", "Boxing", "--csv", str(tmp_path / "t.csv")]
    assert main(["evaluate", model, "--data", data, *options]) == 0
    assert "root solved at each stage" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert {row["root"] for row in rows} == {"solve_each_stage"}
    assert len(rows) == 4 * (8 * 2 + 2) and rows[0]["action"] == "Train1 Boxing"


def test_evaluate_reports_human36m_with_and_without_drifted_takes(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    data = held_out_set()
    names = list(data.takes)
    names[int(data.take[0])] = "S9/Greeting"
    replace(data, takes=names).save(tmp_path / "h36m.safetensors")
    model = str(files / "model.safetensors")
    arguments = ["evaluate", model, "--data", str(tmp_path / "h36m.safetensors")]
    assert main([*arguments, "--root", "given"]) == 0
    both, _, without = capsys.readouterr().out.partition("without the takes whose 3D has drifted")
    with_them = re.findall(r"MPJPE +root given +([\d.]+)", both)
    left_out = re.findall(r"MPJPE +root given +([\d.]+)", without)
    assert len(with_them) == len(left_out) == 3 and with_them != left_out
    for choice, expected in (("in", with_them), ("out", left_out)):
        assert main([*arguments, "--root", "given", "--drifted", choice]) == 0
        printed = capsys.readouterr().out
        assert "has drifted" not in printed
        assert re.findall(r"MPJPE +root given +([\d.]+)", printed) == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("evaluate {0}/none.safetensors --data {0}/test.safetensors", "none.safetensors"),
        ("evaluate {0}/test.safetensors --data {0}/test.safetensors", "test.safetensors"),
        ("evaluate {0}/model.safetensors --data {0}/nowhere", "nowhere"),
        (
            "evaluate {0}/model.safetensors --data {0}/test.safetensors --actions Flying",
            "'Flying'",
        ),
        (
            "evaluate {0}/model.safetensors --data {0}/test.safetensors --csv {0}/no/t.csv",
            "there is no directory",
        ),
        (
            "evaluate {0}/model.safetensors --data {0}/test.safetensors --noise-missing 0.1",
            "--noise-missing needs --noise",
        ),
        (
            "evaluate {0}/model.safetensors --data {0}/test.safetensors --noise-seed 0",
            "--noise-seed needs --noise",
        ),
        ("train --data {0}/train.safetensors -o {0}/run --noise -1", "mean_error: expected a pos"),
        ("train --data {0}/train.safetensors -o {0}/run --width 0", None),
        ("train --data {0}/train.safetensors -o {0}/run --lr -1", "lifter_lr must be positive"),
        ("train --data {0}/train.safetensors -o {0}/run --resume", "no checkpoint to resume from"),
        ("train --data {0}/test.safetensors -o {0}/run", "test.safetensors"),
        (
            "train --data {0}/train.safetensors -o {0}/run --lifter nobody",
            "nobody",
        ),
    ],
)
def test_user_errors_end_with_one_sentence(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: str, sentence: str | None
) -> None:
    words = arguments.format(files).split()
    if sentence is None:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "expected an integer of at least 1, got 0" in capsys.readouterr().err
        return
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("erd-cuda: ") and captured.err.count("\n") == 1
    assert sentence in captured.err and "Traceback" not in captured.err


def test_a_second_run_needs_resume_or_another_directory(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", str(files / "train.safetensors"), "-o", str(tmp_path), *SMALL]
    assert main([*command, "--quiet"]) == 0
    model = (tmp_path / "model.safetensors").read_bytes()
    capsys.readouterr()
    began = time.monotonic()
    assert main([*command, "--quiet"]) == 2
    assert "continue it with --resume, or name another" in capsys.readouterr().err
    assert main([*command, "--quiet", "--width", "16", "--resume"]) == 2
    assert "width (32 there, 16 here)" in capsys.readouterr().err
    assert main([*command, "--quiet", "--resume"]) == 0
    assert time.monotonic() - began < 60
    assert (tmp_path / "model.safetensors").read_bytes() == model
