"""torch.compile and torch.export of a whole model: one graph, any batch, the right weights."""

from __future__ import annotations

import importlib
import io
from typing import Any

import pytest
import torch
from erd_models import inputs_of, make_erd, make_lifter, through_stages
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import erd_cuda
from erd_cuda import ERD
from erd_cuda._fragments import PRECISIONS
from erd_cuda.benchmarks.problems import ROOT_MODES, make_network, make_problem

# The package has a function of that name.
refine_module = importlib.import_module("erd_cuda.ops.refine")


class Call(nn.Module):
    """A model with positional tensors, as export wants them."""

    def __init__(self, erd: ERD) -> None:
        super().__init__()
        self.erd = erd

    def forward(self, keypoints: Tensor, camera: Tensor, pose: Tensor, root: Tensor) -> Tensor:
        given = root if self.erd.root == "given" else None
        return self.erd(keypoints, camera, given, pose=pose)


def model(root: str = "given", features: str = "concat", **options: Any) -> ERD:
    return make_erd(make_network(17, 2, 24, features=features, components=20), root, **options)


def tensors(batch: int = 5, seed: int = 0) -> tuple[Tensor, ...]:
    inputs = inputs_of(make_problem((batch,), seed=seed))
    return tuple(inputs[name] for name in ("keypoints", "camera", "pose", "root"))


@pytest.mark.parametrize("root", ROOT_MODES)
@pytest.mark.parametrize("features", ["concat", "residual+pose"])
@pytest.mark.parametrize("grad", [False, True])
def test_one_graph_for_any_batch(root: str, features: str, grad: bool) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    call = Call(model(root, features))
    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    for batch in (5, 9, 2):
        results = []
        for run in (call, compiled):
            arguments = tensors(batch)
            for value in arguments:
                value.requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                out = run(*arguments)
            if grad:
                results.append(torch.autograd.grad(out.square().sum(), arguments[0])[0])
            results.append(out)
        half = len(results) // 2
        for eager, got in zip(results[:half], results[half:], strict=True):
            torch.testing.assert_close(got, eager)
    assert counter.frame_count == 1


def test_inductor_with_a_lifter() -> None:
    torch._dynamo.reset()
    erd = make_erd(make_network(17, 2, 24), "solve", torch.float32, make_lifter())
    keypoints, camera, *_ = (value.float() for value in tensors())
    compiled = torch.compile(erd, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(keypoints, camera), erd(keypoints, camera), rtol=1e-4, atol=0.05
        )


def test_train_mode_compiles() -> None:
    torch._dynamo.reset()
    erd = model("solve").train()
    twin = model("solve").train()
    keypoints, camera, pose, _ = tensors()
    compiled = torch.compile(erd, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(keypoints, camera, pose=pose), twin(keypoints, camera, pose=pose)
    )


def test_a_compiled_model_follows_its_weights() -> None:
    """Without compiling again."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    erd = model()
    call = Call(erd)
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    arguments = tensors()
    outputs = [compiled(*arguments)]

    def check() -> None:
        outputs.append(compiled(*arguments))
        torch.testing.assert_close(outputs[-1], call(*arguments))
        inputs = inputs_of(make_problem((5,)))
        torch.testing.assert_close(outputs[-1], through_stages(erd, inputs).detach())
        assert not torch.allclose(outputs[-1], outputs[-2])

    state = {name: value * 1.5 for name, value in erd.state_dict().items()}
    with torch.no_grad():
        erd.load_state_dict(state)
        check()
        erd.load_state_dict({k: v * 1.1 for k, v in state.items()}, assign=True)
        check()
        erd.regressors[0].output.weight.mul_(2)
        erd.eval()
        check()
    assert counter.frame_count == 2  # once more for the parameters that load_state_dict assigned


def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`refine` asks the op for what it would on a GPU, with tensors of the CPU."""
    chosen = refine_module.kernel_precision

    def on_gpu(precision: str, float32: bool, _: bool, *others: Any) -> str:
        return chosen(precision, float32, True, *others)

    monkeypatch.setattr(refine_module, "kernel_precision", on_gpu)


class PrecisionsAsked:
    """A backend that runs nothing, and keeps the precision that each graph's op is asked for."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        for node in graph.graph.nodes:
            if "erd_cuda.refine" in str(node.target):
                self.numbers.append(node.args[-3])
        return lambda *_: (torch.zeros(5, 17, 3),)


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_a_compiled_model_keeps_the_precision(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the first call ever is a compiled one."""
    torch._dynamo.reset()
    erd = make_erd(make_network(17, 2, 32), dtype=torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        erd.eval()
    as_if_on_a_gpu(monkeypatch)
    asked = PrecisionsAsked()
    compiled = torch.compile(erd, backend=asked, fullgraph=True)
    keypoints, camera, pose, root = (value.float() for value in tensors())
    with torch.no_grad():
        compiled(keypoints, camera, root, pose=pose, precision=precision)
    assert asked.numbers == [PRECISIONS["split" if precision == "auto" else precision]]


def test_a_compiled_model_runs_in_bf16_on_the_cpu() -> None:
    torch._dynamo.reset()
    erd = make_erd(make_network(17, 2, 32), dtype=torch.float32)
    compiled = torch.compile(erd, backend="eager", fullgraph=True)
    keypoints, camera, pose, root = (value.float() for value in tensors())
    with torch.no_grad():
        got = compiled(keypoints, camera, root, pose=pose, precision="bf16")
        assert torch.equal(got, erd(keypoints, camera, root, pose=pose, precision="bf16"))
        assert not torch.equal(got, erd(keypoints, camera, root, pose=pose))


@pytest.mark.parametrize("arranged", [False, True])
def test_bare_weights_in_a_compiled_function(
    arranged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have to be arranged before, else it is plain float32: `refine` says so."""
    torch._dynamo.reset()
    weights = make_erd(make_network(17, 2, 32), dtype=torch.float32).packed()
    if arranged:
        weights.for_tensor_cores("fp16")
    as_if_on_a_gpu(monkeypatch)
    asked = PrecisionsAsked()
    keypoints, camera, pose, root = (value.float() for value in tensors())

    @torch.compile(backend=asked, fullgraph=True)
    def run() -> Tensor:
        return erd_cuda.refine(keypoints, pose, root, camera, weights, precision="fp16")

    with torch.no_grad():
        run()
    assert asked.numbers == [PRECISIONS["fp16" if arranged else "fp32"]]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_reaches_a_compiled_model(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    erd = make_erd(make_network(17, 2, 32), dtype=torch.float32).to("cuda")
    keypoints, camera, pose, root = (value.float().cuda() for value in tensors())
    compiled = torch.compile(erd, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cuda", dtype):
        got = compiled(keypoints, camera, root, pose=pose)
        assert torch.equal(got, erd(keypoints, camera, root, pose=pose))
    with torch.no_grad():
        assert not torch.equal(got, erd(keypoints, camera, root, pose=pose, precision="fp32"))


def test_compiled_functional_call_uses_its_own_parameters() -> None:
    torch._dynamo.reset()
    call, arguments = Call(model()), tensors()
    call(*arguments)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(state: dict[str, Tensor], *arguments: Tensor) -> Tensor:
        return torch.func.functional_call(call, state, arguments)

    state = {name: value * 1.5 for name, value in call.state_dict().items()}
    got = run(state, *arguments)
    call.load_state_dict(state)
    torch.testing.assert_close(got, call(*arguments))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("root", ROOT_MODES)
def test_export_save_and_load(root: str, strict: bool) -> None:
    torch._dynamo.reset()
    call = Call(model(root)).requires_grad_(False)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(call, tensors(), dynamic_shapes=[{0: batch}] * 4, strict=strict)
    folded = [node for node in program.graph.nodes if "matmul" in str(node.target)]
    assert not folded, "the weights are folded before the export, not in the graph"
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in (5, 11):
        arguments = tensors(size, seed=size)
        torch.testing.assert_close(loaded(*arguments), call(*arguments))
