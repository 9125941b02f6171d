"""What confidences mean to a model: weights of the joints, or marks of those that are missing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_training import held_out_set, run, small_config, train_set, trained_model

import erd_cuda
import erd_cuda.array as array
from erd_cuda import ERD
from erd_cuda._model_file import METADATA_KEY
from erd_cuda.data import DetectorNoise
from erd_cuda.evaluation.inference import solved_root
from erd_cuda.training import RECIPES, TrainConfig

COUNT = 20


def confidences() -> tuple[torch.Tensor, torch.Tensor]:
    """Some, a tenth of them 0; and the same with 1 for all others."""
    random = torch.Generator().manual_seed(3)
    some = torch.rand(COUNT, 17, generator=random)
    some[torch.rand(COUNT, 17, generator=random) < 0.1] = 0.0
    return some, (some > 0).float()


def answer(erd: ERD, confidence: torch.Tensor | None, root: Any) -> torch.Tensor:
    data = held_out_set()[:COUNT]
    root = data.root if root == "given" else root
    # Not the lifter's: its dropout would differ from call to call.
    pose = 0.9 * data.pose
    with torch.no_grad():
        return erd(data.keypoints, data.camera, root, confidence, pose, return_stages=True)


@pytest.mark.parametrize("root", ["given", "solve", "solve_each_stage"])
@pytest.mark.parametrize("train", [False, True])
def test_without_weights_joints_are_there_or_not(root: str, train: bool) -> None:
    some, marks = confidences()
    weighs = copy.deepcopy(trained_model(dropout=0.0)).train(train)
    marked = copy.deepcopy(trained_model(dropout=0.0, confidence_weights=False)).train(train)
    assert torch.equal(answer(marked, some, root), answer(marked, marks, root))
    assert torch.equal(answer(marked, some, root), answer(weighs, marks, root))
    assert not torch.allclose(answer(marked, some, root), answer(weighs, some, root))
    assert not torch.allclose(answer(marked, some, root), answer(marked, None, root))


def test_parts_of_a_model_agree_with_it() -> None:
    some, marks = confidences()
    erd, data = trained_model(confidence_weights=False), held_out_set()[:COUNT]
    pose = erd.lift(data.keypoints, some).detach()
    root = erd.resolve_root(data.keypoints, pose, data.camera, some)
    assert torch.equal(root, erd.resolve_root(data.keypoints, pose, data.camera, marks))
    solved, status = solved_root(erd, data.keypoints, pose, data.camera, some, "solve")
    assert torch.equal(solved, root) and not status.any()
    for part in (erd.features_of, lambda *inputs: erd.stage(0, *inputs)):
        inputs = (data.keypoints, pose, data.root, data.camera)
        assert torch.equal(part(*inputs, some), part(*inputs, marks))


@pytest.mark.parametrize("weights", [False, True])
def test_files_keep_it(weights: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    trained_model(confidence_weights=weights).save(path)
    assert ERD.from_pretrained(path).confidence_weights is weights


def test_files_from_before_the_setting_weigh(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    trained_model(confidence_weights=False).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
    del header["config"]["confidence_weights"]
    save_file(load_file(path), path, metadata={METADATA_KEY: json.dumps(header)})
    assert ERD.from_pretrained(path).confidence_weights is True


def test_packed_weights_know_it() -> None:
    """So that the operators, torch's and NumPy's, do as the model does."""
    some, marks = confidences()
    data = held_out_set()[:COUNT]
    inputs = (data.keypoints, 0.9 * data.pose, data.root, data.camera)
    for weighs in (False, True):
        packed = trained_model(confidence_weights=weighs).packed()
        assert packed.to(torch.float64).confidence_weights is weighs
        results = [erd_cuda.refine(*inputs, packed, confidence=c) for c in (some, marks)]
        assert torch.equal(*results) is not weighs


@pytest.mark.parametrize("weighs", [False, True])
def test_arrays_know_it(weighs: bool, tmp_path: Path) -> None:
    trained_model(confidence_weights=weighs).save(tmp_path / "model.safetensors")
    weights = array.load_weights(tmp_path / "model.safetensors")
    assert weights.to(np.float64).confidence_weights is weighs
    some, marks = confidences()
    data = held_out_set()[:COUNT]
    inputs = (data.keypoints, 0.9 * data.pose, data.root, data.camera.intrinsics)
    arrays = [tensor.numpy() for tensor in inputs]
    results = [array.refine(*arrays, weights, confidence=c.numpy()) for c in (some, marks)]
    assert np.array_equal(*results) is not weighs


def test_a_run_from_before_the_setting_weighed() -> None:
    older = TrainConfig().to_dict()
    del older["confidence_weights"]
    assert TrainConfig(confidence_weights=True).differences(older) == []
    assert TrainConfig().differences(older) == ["confidence_weights (True there, False here)"]


def test_training_looks_at_weights_only_if_told_to(tmp_path: Path) -> None:
    """And then the stages differ, on one and the same lifter."""
    data = DetectorNoise(8.0).apply(train_set())
    assert data.confidence is not None and 0 < float(data.confidence[data.confidence > 0].min()) < 1
    marked = run(tmp_path / "marked", dataset=data)
    weighs = run(tmp_path / "weighs", small_config(confidence_weights=True), dataset=data)
    assert (marked.confidence_weights, weighs.confidence_weights) == (False, True)
    ours, theirs = marked.state_dict(), weighs.state_dict()
    for name, value in ours.items():
        if name.startswith("lifter."):
            assert torch.equal(value, theirs[name]), name
    name = "regressors.0.output.weight"
    assert not torch.equal(ours[name], theirs[name])


def test_recipes_are_settings() -> None:
    assert TrainConfig(**RECIPES["paper"]) == TrainConfig()
    best = TrainConfig(**RECIPES["best"])
    assert best.confidence_weights and best.stages < TrainConfig().stages
    assert best.residual_limit is not None and TrainConfig().residual_limit is None
