"""Eval mode's packed weights: kept while nothing changes, made anew by every kind of change."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from erd_models import inputs_of, make_erd, through_stages
from torch import Tensor

from erd_cuda import ERD, PCA, ResidualRegressor
from erd_cuda.benchmarks.problems import make_network, make_problem


def model(**options: Any) -> ERD:
    return make_erd(make_network(17, 2, 24, features="concat", components=20), **options)


def count_packings(erd: ERD, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    packed = type(erd).packed

    def counting(self: ERD, *arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return packed(self, *arguments, **options)

    monkeypatch.setattr(ERD, "packed", counting)
    return calls


def test_unchanged_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    erd, inputs = model(), inputs_of(make_problem((5,)))
    erd(**inputs)
    calls = count_packings(erd, monkeypatch)
    for grad in (True, False, True):
        with torch.set_grad_enabled(grad):
            erd(**inputs)
    with torch.inference_mode():
        erd(**inputs)
    assert calls == []
    erd.eval()
    erd(**inputs)
    assert len(calls) == 1


def optimizer_step(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[[ERD], None]:
    """One step on the stages while the model stays in eval mode: fine-tuning, BatchNorm fixed."""

    def change(erd: ERD) -> None:
        optimizer = kind(erd.regressors.parameters(), lr=0.01, **options)
        through_stages(erd, inputs_of(make_problem((5,)))).square().mean().backward()
        optimizer.step()

    return change


def in_place(name: str) -> Callable[[ERD], None]:
    def change(erd: ERD) -> None:
        with torch.no_grad():
            erd.get_parameter(name).mul_(1.5)

    return change


def buffer_in_place(name: str) -> Callable[[ERD], None]:
    def change(erd: ERD) -> None:
        erd.get_buffer(name).mul_(1.5)

    return change


def load(assign: bool) -> Callable[[ERD], None]:
    def change(erd: ERD) -> None:
        state = {name: value * 2 for name, value in erd.state_dict().items()}
        erd.load_state_dict(state, assign=assign)

    return change


def train_mode(erd: ERD) -> None:
    """BatchNorm's statistics move."""
    erd.train()
    erd(**inputs_of(make_problem((5,))))
    erd.eval()


def new_data(erd: ERD) -> None:
    weight = erd.regressors[1].output.weight
    weight.data = weight.data * 2


def new_parameter(erd: ERD) -> None:
    layer = erd.regressors[1].hidden[0]
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 2)


def new_buffer(erd: ERD) -> None:
    erd.mean2d = erd.mean2d + 30


def new_layer(erd: ERD) -> None:
    erd.regressors[0].hidden[1] = torch.nn.Linear(24, 24).double()


def new_stage(erd: ERD) -> None:
    erd.regressors[1] = ResidualRegressor(40, width=24).double().eval()


def fewer_stages(erd: ERD) -> None:
    erd.regressors = erd.regressors[:1]


def new_pca(erd: ERD) -> None:
    erd.pca = PCA(20).double()


def without_pca_twice(erd: ERD) -> None:
    """From no PCA to one: where nothing lay, something lies."""
    erd.pca = None
    for regressor in erd.regressors:
        regressor.input = torch.nn.Linear(68, 24).double()
    erd(**inputs_of(make_problem((5,))))
    for regressor in erd.regressors:
        regressor.input.weight = torch.nn.Parameter(regressor.input.weight[:, :40].contiguous())
    erd.pca = PCA(20).double()


def stage_loads(erd: ERD) -> None:
    stage = erd.regressors[0]
    stage.load_state_dict({name: value * 2 for name, value in stage.state_dict().items()})


def normalisation(erd: ERD) -> None:
    erd.fit_normalization(torch.rand(50, 17, 2, dtype=torch.float64) * 1000)


def written_through_data(erd: ERD) -> None:
    """No counter sees it; eval() packs anew all the same."""
    erd.regressors[0].input.weight.data.mul_(1.5)
    erd.eval()


@pytest.mark.parametrize("name", ["mean3d", "std3d"])
def test_statistics_of_poses_are_noticed(name: str) -> None:
    erd = make_erd(make_network(17, 2, 24, features="residual+pose"))
    inputs = inputs_of(make_problem((5,)))
    before = erd(**inputs)
    for change in (lambda old: old.mul_(1.5), lambda old: setattr(erd, name, old * 1.5)):
        change(getattr(erd, name))
        after = erd(**inputs)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, through_stages(erd, inputs))
        before = after


CHANGES = {
    "sgd": optimizer_step(torch.optim.SGD),
    "adam": optimizer_step(torch.optim.Adam),
    "adam_foreach": optimizer_step(torch.optim.Adam, foreach=True),
    "adam_fused": optimizer_step(torch.optim.Adam, fused=True),
    "weight": in_place("regressors.1.hidden.0.weight"),
    "bias": in_place("regressors.0.output.bias"),
    "norm": in_place("regressors.0.norm.weight"),
    "running_var": buffer_in_place("regressors.1.norm.running_var"),
    "mean2d": buffer_in_place("mean2d"),
    "std2d": buffer_in_place("std2d"),
    "pca_basis": buffer_in_place("pca.basis"),
    "pca_mean": buffer_in_place("pca.mean"),
    "load_state_dict": load(assign=False),
    "load_state_dict_assign": load(assign=True),
    **{
        change.__name__: change
        for change in (
            train_mode,
            new_data,
            new_parameter,
            new_buffer,
            new_layer,
            new_stage,
            new_pca,
            without_pca_twice,
            stage_loads,
            normalisation,
            written_through_data,
        )
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_noticed(name: str) -> None:
    erd, inputs = model(), inputs_of(make_problem((5,)))
    if name == "pca_mean":
        erd.get_buffer("pca.mean").add_(0.5)
    before = erd(**inputs)
    CHANGES[name](erd)
    after = erd(**inputs)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, through_stages(erd, inputs))


def test_a_shorter_list_of_stages_is_noticed() -> None:
    erd, inputs = model(), inputs_of(make_problem((5,)))
    stages = erd(**inputs, return_stages=True)
    fewer_stages(erd)
    assert torch.equal(erd(**inputs), stages[1])


def test_dtype_changes_are_noticed() -> None:
    erd, problem = model(), make_problem((5,)).rounded(torch.float32)
    exact = erd(**inputs_of(problem))
    single = erd.float()(**inputs_of(problem, dtype=torch.float32))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0.1)
    double = erd.double()(**inputs_of(problem))
    torch.testing.assert_close(double, through_stages(erd, inputs_of(problem)))


def test_a_parent_module_moves_loads_and_toggles_it() -> None:
    parent = torch.nn.ModuleDict({"erd": model()})
    inputs = inputs_of(make_problem((5,)))
    parent.train().eval()
    torch.testing.assert_close(parent["erd"](**inputs), through_stages(parent["erd"], inputs))
    parent.load_state_dict({k: v * 2 for k, v in parent.state_dict().items()})
    torch.testing.assert_close(parent["erd"](**inputs), through_stages(parent["erd"], inputs))
    parent.float()
    single = inputs_of(make_problem((5,)), dtype=torch.float32)
    assert parent["erd"](**single).dtype == torch.float32


def test_functional_call_uses_its_own_parameters() -> None:
    erd, inputs = model(), inputs_of(make_problem((5,)))
    before = erd(**inputs)
    state = {name: value * 2 for name, value in erd.state_dict().items()}
    swapped = torch.func.functional_call(erd, state, (), inputs)
    assert torch.equal(erd(**inputs), before)
    erd.load_state_dict(state)
    assert torch.equal(erd(**inputs), swapped)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_on_their_own(how: str) -> None:
    erd, inputs = model(), inputs_of(make_problem((5,)))
    before = erd(**inputs)
    if how == "deepcopy":
        twin = copy.deepcopy(erd)
    else:
        file = io.BytesIO()
        torch.save(erd, file)
        parameters = sum(v.numel() * v.element_size() for v in erd.state_dict().values())
        assert file.tell() < 1.5 * parameters + 30_000  # the cache does not travel along
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert torch.equal(twin(**inputs), before)
    with torch.no_grad():
        erd.regressors[0].input.weight.mul_(2)
    assert torch.equal(twin(**inputs), before)
    with torch.no_grad():
        twin.regressors[0].output.weight.mul_(2)
    assert not torch.allclose(twin(**inputs), before)
    torch.testing.assert_close(erd(**inputs), through_stages(erd, inputs))


@pytest.mark.parametrize("made", [False, True], ids=["packed", "made"])
def test_inference_mode_leaves_weights_that_can_be_differentiated_through(made: bool) -> None:
    erd, inputs = model(), inputs_of(make_problem((5,)))
    with torch.inference_mode():
        if made:
            erd = model()
        else:
            erd.regressors[0].input.weight.data = erd.regressors[0].input.weight.data.clone()
        erd(**inputs)
    inputs["pose"].requires_grad_()
    erd(**inputs).sum().backward()
    assert inputs["pose"].grad.any()


def test_threads_share_one_model() -> None:
    """All of them find old weights and pack at once."""
    erd, inputs = model(), inputs_of(make_problem((5,)))
    erd(**inputs)
    wrong = []

    def run() -> None:
        for _ in range(10):
            if not torch.equal(erd(**inputs), expected):
                wrong.append(None)

    for _ in range(5):
        with torch.no_grad():
            erd.regressors[0].output.bias.add_(1)
        expected = copy.deepcopy(erd)(**inputs)
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_transforms_of_the_weights_are_refused(transform: str) -> None:
    """A gradient of zeros would look like an answer."""
    erd, inputs = model(), inputs_of(make_problem((5,)))
    weights = {name: value.detach() for name, value in erd.named_parameters()}

    def error(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(erd, weights, (), inputs).square().mean()

    if transform == "grad":
        run = torch.func.grad(error)
    else:
        weights = {name: torch.stack([value, 2 * value]) for name, value in weights.items()}
        run = torch.vmap(error)
    with pytest.raises(RuntimeError, match=r"torch\.func transforms of the stages' weights need"):
        run(weights)
    inputs["keypoints"].requires_grad_()
    erd(**inputs).sum().backward()
    assert inputs["keypoints"].grad.any()


def test_stage_has_gradients_for_the_weights_under_func() -> None:
    class Stages(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.erd = model()

        def forward(self) -> Tensor:
            return through_stages(self.erd, inputs).square().mean()

    inputs, stages = inputs_of(make_problem((5,))), Stages()
    weights = {name: value.detach() for name, value in stages.named_parameters()}
    gradients = torch.func.grad(lambda w: torch.func.functional_call(stages, w, ()))(weights)
    stages().backward()
    for name, parameter in stages.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
        assert gradients[name].any()


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_a_gpus_weights_are_arranged_for_every_precision(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anyone asks: a compiled graph cannot do it and would run in plain float32."""
    erd = make_erd(make_network(17, 2, 32, block), dtype=torch.float32)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    erd.eval()
    assert erd._cache is not None
    assert sorted(erd._cache.weights._arranged) == ["bf16", "fp16", "split"]


def test_fake_and_meta_models_run() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = inputs_of(make_problem((5,)), dtype=torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        erd = ERD(stages=2, width=24).eval()
        assert erd(**inputs).shape == (5, 17, 3)
    erd = ERD(stages=2, width=24).to("meta").eval()
    meta = {k: None if v is None else v.to("meta") for k, v in inputs.items()}
    assert erd(**meta).shape == (5, 17, 3)
