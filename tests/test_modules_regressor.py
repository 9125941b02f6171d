"""The regressor against the oracle's equations, its size, its modes."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from erd_models import load_stage
from precision import assert_exact
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from erd_cuda import ERD, ResidualRegressor
from erd_cuda.benchmarks.problems import make_network
from erd_cuda.modules import regressor as module
from erd_cuda.ops import regressor as operator


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_eval_is_the_papers_network(block: str) -> None:
    stage = make_network(17, 1, 48, block).stages[0]
    regressor = ResidualRegressor(34, width=48, block=block).double()
    load_stage(regressor, stage)
    features = torch.randn(20, 34, dtype=torch.float64)
    got = regressor.eval()(features).detach()
    assert_exact(got, stage(features.numpy(), block))


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_number_of_parameters(block: str) -> None:
    regressor = ResidualRegressor(34, block=block)
    assert sum(p.numel() for p in regressor.parameters()) == 154_163
    assert sum(p.numel() for p in ERD(block=block).parameters()) == 616_652


def test_dropout_sits_after_every_hidden_layer_in_train_mode_only() -> None:
    regressor = ResidualRegressor(34, width=64, dropout=0.5)
    calls = []
    regressor.dropout.register_forward_hook(lambda module, inputs, out: calls.append(out.shape))
    features = torch.randn(8, 34)
    regressor(features)
    assert calls == [(8, 64)] * 3
    assert not torch.equal(regressor(features), regressor(features))
    regressor.eval()
    assert torch.equal(regressor(features), regressor(features))


def layers_of(regressor: ResidualRegressor) -> ResidualRegressor:
    """A copy that runs its torch layers one by one."""
    twin = copy.deepcopy(regressor)
    twin.norm.register_forward_hook(lambda *_: None)
    return twin


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("block", ["linear", "relu"])
def test_train_mode_is_that_of_the_layers(block: str, momentum: float | None) -> None:
    fused = ResidualRegressor(34, width=48, dropout=0.0, block=block).double()
    fused.norm.momentum = momentum  # type: ignore[assignment]
    layers = layers_of(fused)
    for _ in range(3):
        features = 2 * torch.randn(3, 5, 34, dtype=torch.float64) + 7
        inputs = [features.clone().requires_grad_() for _ in range(2)]
        outputs = [fused(inputs[0]), layers(inputs[1])]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.square().sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for ours, theirs in zip(fused.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-9)
    state = layers.state_dict()
    assert list(state) == list(fused.state_dict())
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(value, state[name], msg=name)


def test_running_statistics_are_kept_without_gradients_too() -> None:
    regressor = ResidualRegressor(34, width=8)
    with torch.no_grad():
        regressor(torch.randn(9, 34) + 5)
    assert regressor.norm.num_batches_tracked == 1
    assert regressor.norm.running_mean is not None
    assert regressor.norm.running_mean.abs().max() > 0.01
    before = copy.deepcopy(regressor.state_dict())
    regressor.eval()(torch.randn(9, 34))
    assert all(torch.equal(value, before[name]) for name, value in regressor.state_dict().items())


def test_one_row_has_no_variance() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        ResidualRegressor(34)(torch.zeros(1, 34))


def freeze_statistics(regressor: ResidualRegressor) -> None:
    regressor.norm.eval()


def without_dropout(regressor: ResidualRegressor) -> None:
    regressor.dropout.eval()


def replace_norm(regressor: ResidualRegressor) -> None:
    regressor.norm = nn.LayerNorm(8)  # type: ignore[assignment]


def replace_layer(regressor: ResidualRegressor) -> None:
    regressor.hidden[1] = nn.Sequential(nn.Linear(8, 8), nn.Tanh())


def drop_bias(regressor: ResidualRegressor) -> None:
    regressor.hidden[0].bias = None  # type: ignore[assignment]


def no_affine(regressor: ResidualRegressor) -> None:
    regressor.norm = nn.BatchNorm1d(8, affine=False)


def no_running_statistics(regressor: ResidualRegressor) -> None:
    regressor.norm = nn.BatchNorm1d(8, track_running_stats=False)


def one_more_layer(regressor: ResidualRegressor) -> None:
    regressor.hidden.append(nn.Linear(8, 8))


def parametrize(regressor: ResidualRegressor) -> None:
    nn.utils.parametrizations.weight_norm(regressor.output)


def hook(regressor: ResidualRegressor) -> None:
    regressor.input.register_forward_hook(lambda layer, inputs, output: output + 1)


def backward_hook(regressor: ResidualRegressor) -> None:
    regressor.output.register_full_backward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change",
    [
        freeze_statistics,
        without_dropout,
        replace_norm,
        replace_layer,
        drop_bias,
        no_affine,
        no_running_statistics,
        one_more_layer,
        parametrize,
        hook,
        backward_hook,
    ],
)
def test_layers_that_are_no_longer_the_plain_ones_run_themselves(
    change: Callable[[ResidualRegressor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(module, "regress_batch", lambda *_, **__: calls.append(1))
    regressor = ResidualRegressor(34, width=8)
    change(regressor)
    features = torch.randn(9, 34)
    torch.manual_seed(1)
    got = regressor(features)
    torch.manual_seed(1)
    h = regressor.dropout(torch.relu(regressor.norm(regressor.input(features))))
    for layer in regressor.hidden:
        h = h + regressor.dropout(layer(h))
    assert torch.equal(got, regressor.output(h))
    assert not calls


@pytest.mark.parametrize(("dtype", "widest"), [(torch.float32, 512), (torch.float64, 256)])
def test_the_widest_layer_of_the_operator_on_a_gpu(
    dtype: torch.dtype, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "_DEVICES", ("cpu", "cuda"))
    with FakeTensorMode():
        for device, width, fits in (
            ("cuda", widest, True),
            ("cuda", widest + 1, False),
            ("cpu", widest + 1, True),
        ):
            features = torch.empty(9, 34, dtype=dtype, device=device)
            weight = torch.empty(width, 34, dtype=dtype, device=device)
            assert operator.can_regress_batch(features, weight) is fits


SHARED_BYTES = """
#include <cstdio>
#include "cuda/training_kernels.h"

template <class T>
void print(int64_t bytes) {
  erd::RegressorShape shape = {};
  shape.width = bytes / static_cast<int64_t>(sizeof(T));
  const int64_t needed =
      erd::chain_shared_bytes<T>(shape, erd::Share<2>::kRows, erd::kShallowRing);
  std::printf("%lld ", static_cast<long long>(needed));
}

int main() {
  for (const int64_t bytes : {WIDEST, 2 * WIDEST}) {
    print<float>(bytes);
    print<double>(bytes);
  }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_widest_layer_is_what_the_kernels_have_room_for(tmp_path: Path) -> None:
    """In the smallest tile, on the GPUs with the least shared memory, compute capability 7.5."""
    program = tmp_path / "widest"
    command = ["g++", "-std=c++17", "-xc++", "-", "-o", str(program)]
    command += ["-DERD_ARCH=cuda", f"-DWIDEST=int64_t{{{operator._WIDEST_ON_GPU}}}"]
    # The tests' folder holds what device.h includes in place of CUDA.
    tests = Path(__file__).parent
    command += ["-I", str(tests.with_name("csrc")), "-I", str(tests)]
    subprocess.run(command, input=SHARED_BYTES, text=True, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    single, double, *twice_as_wide = map(int, done.stdout.split())
    assert max(single, double) <= 64 * 1024 < min(twice_as_wide)


def test_autocast_means_the_layers() -> None:
    regressor = ResidualRegressor(34, width=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert regressor(torch.randn(9, 34)).dtype == torch.bfloat16


def test_forward_mode_and_torch_func_mean_the_layers() -> None:
    regressor = ResidualRegressor(34, width=8, dropout=0.0).double()
    features = torch.randn(9, 34, dtype=torch.float64)
    leaf = features.clone().requires_grad_()
    (expected,) = torch.autograd.grad(regressor(leaf).square().sum(), leaf)
    direction = torch.randn_like(features)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(features, direction)
        loss = torch.autograd.forward_ad.unpack_dual(regressor(dual).square().sum())
    assert loss.tangent is not None
    torch.testing.assert_close(loss.tangent, (expected * direction).sum())
    # torch.func takes BatchNorm only without running statistics, and changes it so.
    torch.func.replace_all_batch_norm_modules_(regressor)
    found = torch.func.grad(lambda x: regressor(x).square().sum())(features)
    torch.testing.assert_close(found, expected)


def test_a_compiled_training_step() -> None:
    regressor = ResidualRegressor(34, width=24)
    twin = copy.deepcopy(regressor)
    features, target = torch.randn(20, 34), torch.randn(20, 51)

    def loss_of(model: ResidualRegressor) -> torch.Tensor:
        return (model(features) - target).square().mean()

    torch.manual_seed(3)
    loss_of(regressor).backward()
    step = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    step(twin).backward()
    for ours, theirs in zip(twin.parameters(), regressor.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(twin.buffers(), regressor.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_train_mode_takes_batch_statistics() -> None:
    regressor = ResidualRegressor(34, width=64, dropout=0.0)
    regressor(torch.randn(8, 34) + 5)
    assert regressor.norm.running_mean is not None
    assert regressor.norm.running_mean.abs().max() > 0.01


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3), (2, 0, 3)], ids=str)
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    regressor = ResidualRegressor(10, num_joints=5, width=8).eval()
    features = torch.randn(*batch, 10)
    got = regressor(features)
    assert got.shape == (*batch, 15)
    one_by_one = [regressor(f) for f in features.reshape(-1, 10)]
    if one_by_one:
        torch.testing.assert_close(got.reshape(-1, 15), torch.stack(one_by_one))


def test_every_parameter_is_trained() -> None:
    regressor = ResidualRegressor(34, width=16)
    regressor(torch.randn(8, 34)).square().sum().backward()
    for name, parameter in regressor.named_parameters():
        assert parameter.grad is not None, name
    assert regressor.output.weight.grad is not None
    assert regressor.output.weight.grad.abs().sum() > 0
    assert isinstance(regressor.hidden, nn.ModuleList)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "num_features is 0, expected an integer of at least 1"),
        ({"num_joints": 1.5}, "num_joints is 1.5, expected an integer"),
        ({"width": -1}, "width is -1"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a number from 0 to below 1"),
        ({"dropout": "no"}, "dropout is 'no'"),
        ({"block": "residual"}, "block is 'residual', expected one of 'linear', 'relu'"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualRegressor(**{"num_features": 34, **options})


def test_wrong_number_of_features() -> None:
    with pytest.raises(ValueError, match=r"features has shape \(5, 32\), expected \(..., 34\)"):
        ResidualRegressor(34)(torch.zeros(5, 32))
