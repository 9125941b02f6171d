"""Training runs with every lifter, and the example of a lifter of one's own."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import held_out_set, run, small_config, train_set

from erd_cuda import LCNLifter, MartinezLifter, SemGCNLifter
from erd_cuda.cli import main
from erd_cuda.data import load_dataset
from erd_cuda.evaluation import evaluate
from erd_cuda.modules import ERD
from erd_cuda.training import TrainConfig, train, trainer

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "own_lifter.py"
SMALL: dict[str, Any] = {"stages": 1, "lifter_width": 16, "lifter_blocks": 1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lcn", LCNLifter), ("semgcn", SemGCNLifter), ("semgcn-nonlocal", SemGCNLifter)],
)
def test_every_lifter_trains_resumes_and_is_saved(
    name: str, kind: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(lifter=name, **{**SMALL, "lifter_epochs": 6, "lifter_lr": 3e-3})
    erd = run(tmp_path / "whole", config)
    assert type(erd.lifter) is kind
    assert erd.lifter.width == 16 and erd.lifter.skeleton == train_set().skeleton
    assert getattr(erd.lifter, "non_local", False) == (name == "semgcn-nonlocal")
    lines = (tmp_path / "whole" / "log.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[3]) for line in lines if line.startswith("lifter")]
    assert losses[-1] < 0.7 * losses[0]
    table = evaluate(erd, held_out_set())
    lifter, first = table.mean("given").tolist()
    assert first < lifter

    saves = 0

    def pressed_while_saving(*args: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 4:
            raise KeyboardInterrupt
        save(*args)

    save = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", pressed_while_saving)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", config)
    monkeypatch.undo()
    run(tmp_path / "parts", config, resume=True)
    files = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "parts")]
    assert files[0] == files[1]
    loaded = ERD.from_pretrained(tmp_path / "whole" / "model.safetensors")
    data = held_out_set()
    with torch.no_grad():
        assert torch.equal(loaded.lift(data.keypoints), erd.lift(data.keypoints))


def test_a_size_not_given_is_the_lifters_own() -> None:
    sizes = {"martinez": (1024, 2), "lcn": (64, 3), "semgcn": (128, 4), "semgcn-nonlocal": (128, 4)}
    for name, size in sizes.items():
        config = TrainConfig(lifter=name)
        assert (config.lifter_width, config.lifter_blocks) == size
        assert config == TrainConfig(lifter=name, lifter_width=size[0], lifter_blocks=size[1])
        assert TrainConfig(lifter=name, lifter_blocks=0).lifter_blocks == 0
    with pytest.raises(ValueError, match="lifter must be one of martinez, lcn, semgcn"):
        TrainConfig(lifter="gcn")
    with pytest.raises(ValueError, match="pca is 30, expected None with the lifter 'semgcn'"):
        TrainConfig(lifter="semgcn", pca=30)
    for name in ("lifter_width", "lifter_blocks"):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            TrainConfig(**{name: -1})


def test_checkpoints_from_before_there_was_a_choice_of_lifters_can_be_resumed() -> None:
    older = TrainConfig().to_dict()
    del older["lifter"]
    assert TrainConfig().differences(older) == []
    assert (
        TrainConfig(lifter="lcn").differences(older)[0] == "lifter ('martinez' there, 'lcn' here)"
    )


def test_a_lifter_for_other_bones_is_refused(tmp_path: Path) -> None:
    skeleton = train_set().skeleton
    parents = (*skeleton.parents[:10], 8, *skeleton.parents[11:])
    other = replace(skeleton, name="other", parents=parents)
    with pytest.raises(ValueError, match=r"made for the skeleton 'other', but .* bones are others"):
        run(tmp_path, lifter=LCNLifter(other, width=4, blocks=0))


def test_the_command_line_trains_every_lifter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_set()[::4].save(tmp_path / "data.safetensors")
    options = ["train", "--data", str(tmp_path / "data.safetensors"), "--quiet", "--stages", "1"]
    options += ["--width", "8", "--lifter-epochs", "1", "--stage-epochs", "1"]
    kinds = {"martinez": MartinezLifter, "lcn": LCNLifter, "semgcn-nonlocal": SemGCNLifter}
    for name, kind in kinds.items():
        out = tmp_path / name
        size = ["--lifter-width", "8", "--lifter-blocks", "1"]
        assert main([*options, "-o", str(out), "--lifter", name, *size]) == 0
        assert type(ERD.from_pretrained(out / "model.safetensors").lifter) is kind
    # The lifter of a trained model, whatever its kind.
    trained = str(tmp_path / "lcn" / "model.safetensors")
    assert main([*options, "-o", str(tmp_path / "kept"), "--lifter", trained]) == 0
    assert type(ERD.from_pretrained(tmp_path / "kept" / "model.safetensors").lifter) is LCNLifter
    capsys.readouterr()
    assert main([*options, "-o", str(tmp_path / "x"), "--lifter", "lcn", "--pca", "9"]) == 2
    assert "pca is 9, expected None with the lifter 'lcn'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["info"]) == 0
    assert "martinez, lcn, semgcn, semgcn-nonlocal" in capsys.readouterr().out


class Halved(MartinezLifter):
    """A lifter of the user's own that is nearly one of ours."""


def test_a_subclass_of_a_lifter_is_trained_on_and_left_out_of_the_file(tmp_path: Path) -> None:
    lifter = Halved(width=8, blocks=0)
    lifter.fit_normalization(train_set().keypoints, train_set().pose)
    erd = run(tmp_path, small_config(stages=1), lifter=lifter)
    assert erd.lifter is lifter
    assert ERD.from_pretrained(tmp_path / "model.safetensors").lifter is None


def test_another_function_is_another_lifter(tmp_path: Path) -> None:
    mean = train_set().pose.mean(dim=0)
    config = small_config(stages=1)
    run(tmp_path, config, lifter=lambda x: mean.expand(len(x), 17, 3))
    run(tmp_path, config, lifter=lambda x: mean.expand(len(x), 17, 3), resume=True)
    with pytest.raises(ValueError, match="another given lifter"):
        run(tmp_path, config, lifter=lambda x: 2 * mean.expand(len(x), 17, 3), resume=True)


def test_the_example_of_a_lifter_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(code) < 20
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    with pytest.raises(SystemExit, match=r"python own_lifter\.py RUN_DIRECTORY"):
        runpy.run_path(str(EXAMPLE))
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / "run")])
    # The same on fewer poses and for fewer epochs.
    monkeypatch.setattr(
        "erd_cuda.load_dataset", lambda path, split, stride: load_dataset(path, split, stride=80),
        raising=False,
    )  # fmt: skip
    monkeypatch.setattr("erd_cuda.training.TrainConfig", lambda stages: small_config(stages=stages))
    monkeypatch.setattr(
        "erd_cuda.training.train", lambda *args, **options: train(*args, progress=False, **options)
    )
    result = runpy.run_path(str(EXAMPLE))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    table = evaluate(result["erd"], held_out_set())
    assert table.mean("given")[2] < table.mean("given")[0]
    assert "stage 2" in capsys.readouterr().out
