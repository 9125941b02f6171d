"""Model files: round trips, 16-bit storage, and one clear sentence for every broken file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from erd_models import inputs_of, make_lifter, scramble
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import erd_cuda._model_file as model_file
from erd_cuda import ERD, MartinezLifter, Skeleton, bundled_models, get_skeleton
from erd_cuda.benchmarks.problems import make_problem


def model(**options: Any) -> ERD:
    """Every tensor different from its initial value."""
    lifter = make_lifter(pca=12, blocks=1)
    defaults = {"stages": 2, "width": 24, "features": "concat", "pca": 20, "root": "solve"}
    erd = ERD(lifter, **{**defaults, **options})
    erd.fit_normalization(500 + 100 * torch.randn(64, 17, 2), 300 * torch.randn(64, 17, 3))
    scramble(erd)
    return erd.eval()


def arguments() -> dict[str, Any]:
    inputs = inputs_of(make_problem((5,)), "solve", torch.float32)
    return inputs | {"pose": None}


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["erd_cuda"]))


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any]) -> None:
    """Change a model file's description or tensors."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    header = header_of(path)
    change(header, tensors)
    save_file(tensors, path, metadata={"erd_cuda": json.dumps(header)})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block": "relu", "features": "residual", "pca": None, "root": "given", "dropout": 0.1},
        {"features": "proj2d", "root": "solve_each_stage", "skeleton": get_skeleton("h36m17")},
        {"features": "residual+pose"},
        {"features": "residual+pose", "pca": None},
    ],
    ids=str,
)
def test_round_trip(options: dict[str, Any], tmp_path: Path) -> None:
    """Every tensor, every option, the answer to the last bit."""
    erd = model(**options)
    erd.notes = {"epochs": 5, "data": ["a", "b"], "error": {"stage 1": 54.1}}
    erd.save(tmp_path / "model.safetensors")
    loaded = ERD.from_pretrained(tmp_path / "model.safetensors")
    assert loaded.config() == erd.config()
    assert loaded.notes == erd.notes
    assert loaded.skeleton == erd.skeleton
    assert isinstance(loaded.lifter, MartinezLifter)
    assert loaded.lifter.config() == erd.lifter.config()
    assert not any(module.training for module in loaded.modules())
    state, expected = loaded.state_dict(), erd.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name
    call = arguments() | {"root": torch.tensor([0.0, 0.0, 5000.0])}
    assert torch.equal(loaded(**call), erd(**call))
    assert all(p.requires_grad for p in loaded.parameters())


def test_the_loaded_model_owns_its_memory(tmp_path: Path) -> None:
    """The file may go away, and training may go on."""
    path = tmp_path / "model.safetensors"
    erd = model()
    erd.save(path)
    loaded = ERD.from_pretrained(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(loaded(**arguments()), erd(**arguments()))
    loaded.train()(**arguments()).sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=1e-6).step()


def test_float64_stays_float64(tmp_path: Path) -> None:
    erd = model().double()
    erd.save(tmp_path / "model.safetensors")
    loaded = ERD.from_pretrained(tmp_path / "model.safetensors")
    assert loaded.mean2d.dtype == torch.float64
    for name, value in erd.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    model().save(tmp_path / "model.safetensors")
    state = torch.get_rng_state()
    ERD.from_pretrained(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)


def test_same_model_same_bytes(tmp_path: Path) -> None:
    erd = model()
    erd.notes = {"b": 1, "a": 2}
    for name in ("one", "two"):
        erd.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_half_stores_matrices_in_16_bits_and_nothing_else(tmp_path: Path) -> None:
    erd = model()
    path = tmp_path / "model.safetensors"
    erd.save(path, half=True)
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    halved = {name for name, value in stored.items() if value.dtype == torch.float16}
    assert halved == {name for name, p in erd.named_parameters() if p.dim() == 2}
    loaded = ERD.from_pretrained(path)
    for name, value in erd.state_dict().items():
        got = loaded.state_dict()[name]
        assert got.dtype == value.dtype
        assert torch.equal(got, value.half().float() if name in halved else value), name
    difference = loaded(**arguments()) - erd(**arguments())
    assert 0 < difference.abs().max() < 5


def test_half_of_the_default_model_fits_the_package(tmp_path: Path) -> None:
    """At most 12 MB, as bundled."""
    path = tmp_path / "model.safetensors"
    ERD(MartinezLifter()).save(path, half=True)
    assert 9e6 < path.stat().st_size < 12e6


def test_half_refuses_what_16_bits_cannot_hold(tmp_path: Path) -> None:
    erd = model()
    with torch.no_grad():
        erd.regressors[0].output.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"regressors.0.output.weight holds values beyond 65504"):
        erd.save(tmp_path / "model.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []
    erd.save(tmp_path / "model.safetensors")


# ---- lifters -------------------------------------------------------------------------------------


class Subclass(MartinezLifter):
    pass


@pytest.mark.parametrize(
    ("lifter", "name"),
    [
        (torch.nn.Linear(34, 51), "Linear"),
        (lambda keypoints: keypoints, "function"),
        (Subclass(width=8), "Subclass"),
    ],
    ids=["module", "function", "subclass"],
)
def test_a_foreign_lifter_is_refused_or_left_out(lifter: Any, name: str, tmp_path: Path) -> None:
    erd = ERD(lifter, stages=1, width=8)
    path = tmp_path / "model.safetensors"
    message = f"the lifter is a {name}, which cannot be rebuilt from a file; .*include_lifter=False"
    with pytest.raises(TypeError, match=message):
        erd.save(path)
    assert not path.exists()
    erd.save(path, include_lifter=False)
    loaded = ERD.from_pretrained(path)
    assert loaded.lifter is None
    assert not any(key.startswith("lifter.") for key in loaded.state_dict())
    with pytest.raises(ValueError, match="pose is missing"):
        loaded(**inputs_of(make_problem((5,)), "given", torch.float32) | {"pose": None})
    loaded.lifter = lifter
    assert loaded.lifter is lifter


def test_no_lifter(tmp_path: Path) -> None:
    erd = ERD(stages=1, width=8).eval()
    erd.save(tmp_path / "model.safetensors")
    loaded = ERD.from_pretrained(tmp_path / "model.safetensors")
    inputs = inputs_of(make_problem((5,)), dtype=torch.float32)
    assert torch.equal(loaded(**inputs), erd(**inputs))


def test_a_subclass_loads_itself(tmp_path: Path) -> None:
    class Mine(ERD):
        pass

    model().save(tmp_path / "model.safetensors")
    assert type(Mine.from_pretrained(tmp_path / "model.safetensors")) is Mine


# ---- names and paths -----------------------------------------------------------------------------


def test_bundled_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "_BUNDLED", tmp_path)
    assert bundled_models() == []
    erd = model()
    for name in ("walk", "run"):
        erd.save(tmp_path / f"{name}.safetensors")
    (tmp_path / "walk.md").write_text("a model card")
    assert bundled_models() == ["run", "walk"]
    assert torch.equal(ERD.from_pretrained("walk")(**arguments()), erd(**arguments()))
    message = r"no file 'jump' and no bundled model of that name \(bundled: run, walk\)"
    with pytest.raises(FileNotFoundError, match=message):
        ERD.from_pretrained("jump")


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_load(name: str) -> None:
    assert ERD.from_pretrained(name).stages >= 1


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*model\.safetensors'"):
        ERD.from_pretrained(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        model().save(tmp_path / "nowhere" / "model.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    erd = model()
    erd.save(path)
    before = path.read_bytes()
    for notes in ({"value": torch.zeros(1)}, {"value": math.nan}, {(1, 2): 3}):
        erd.notes = notes
        with pytest.raises(ValueError, match="notes cannot be written as JSON"):
            erd.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---- broken files --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file(share: float, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="is truncated or no safetensors file") as caught:
        ERD.from_pretrained(path)
    assert "\n" not in str(caught.value)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save(model().state_dict(), path)
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        ERD.from_pretrained(path)
    path.write_text("mean2d,std2d\n" * 100)
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        ERD.from_pretrained(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="is a safetensors file, but not one that erd_cuda wrote"):
        ERD.from_pretrained(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"erd_cuda": "{not json"})
    with pytest.raises(ValueError, match=r"the description of the model in .* is damaged"):
        ERD.from_pretrained(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"erd_cuda": "[1]"})
    with pytest.raises(ValueError, match=r"the description of the model in .* is damaged"):
        ERD.from_pretrained(path)


def set_in(*keys: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("format_version", value=2), "has model format version 2, .* reads version 1"),
        (lambda header, tensors: header.pop("format_version"), "is damaged"),
        (lambda header, tensors: header.pop("lifter"), "lacks lifter"),
        (set_in("config", value=None), "describes a model that cannot be built"),
        (set_in("config", "stages", value=-1), "cannot be built: stages is -1"),
        (set_in("config", "colour", value="red"), "cannot be built: .*colour"),
        (
            set_in("config", "width", value=25),
            r"shape \(24,\), its description says \(25,\)",
        ),
        (set_in("config", "stages", value=3), "lacks the tensor regressors.2.hidden.0.bias"),
        (set_in("config", "stages", value=1), "holds a tensor regressors.1.hidden.0.bias that"),
        (set_in("lifter", "class", value="os.system"), "there is no lifter 'os.system'"),
        (set_in("lifter", value=None), "holds a tensor lifter"),
        (set_in("skeleton", value={"name": "x"}), "cannot be built"),
        (lambda header, tensors: tensors.pop("mean2d"), "lacks the tensor mean2d"),
        (set_in("config", "features", value="residual+pose"), "lacks the tensor mean3d"),
        (lambda header, tensors: tensors.update(mean2d=torch.zeros(3)), "mean2d in .* has shape"),
    ],
)
def test_a_damaged_file(
    change: Callable[[dict[str, Any], dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    model().save(path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        ERD.from_pretrained(path)


def test_the_file_describes_itself(tmp_path: Path) -> None:
    """What another program finds under the metadata key erd_cuda."""
    erd = model(skeleton=Skeleton("line", tuple("abcdefghijklmnopq"), tuple(range(-1, 16)), (), ()))
    erd.notes = {"seed": 3}
    erd.save(tmp_path / "model.safetensors")
    header = header_of(tmp_path / "model.safetensors")
    assert header["format_version"] == 1
    assert header["config"]["features"] == "concat"
    assert header["lifter"]["class"] == "MartinezLifter"
    assert header["lifter"]["config"]["blocks"] == 1
    assert header["skeleton"]["joints"] == list("abcdefghijklmnopq")
    assert header["notes"] == {"seed": 3}
