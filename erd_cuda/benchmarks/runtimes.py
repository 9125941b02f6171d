"""ONNX Runtime, OpenVINO and AOTInductor on the CPU, called in the way that costs them least.

The first two run the model that `erd_cuda.export` writes. Inputs and outputs are bound once for
each set of inputs, so a call copies nothing and converts nothing. The batch is open in the file and
fixed before the runtime compiles it. Of few poses no setting is always the best: there both try one
thread and all, ONNX Runtime also the open batch, and keep what is fastest.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erd_cuda import PackedRegressors
from erd_cuda.benchmarks.inputs import Inputs
from erd_cuda.benchmarks.peers import Layers
from erd_cuda.export.onnx_stages import Stages, model_of
from erd_cuda.export.signature import Signature

Refine = Callable[..., Tensor]

#: The model's inputs, in the order in which the benchmarks have them.
_NAMES = ("keypoints", "pose", "root", "intrinsics")
#: Batches of so few poses take less time than it takes to call for them, in some runtimes, and may
#: take longer on several threads than on one.
FEW = 16


def refiner_model(weights: PackedRegressors, relu: bool) -> bytes:
    """The file that both runtimes read, with a given root and a pinhole camera.

    Args:
        weights: on the CPU, float32; two layers a stage where they have no hidden ones, else four.
        relu: whether a ReLU follows the hidden layers.

    Raises:
        ImportError: onnx is not installed.
    """
    stages = Stages(weights, rectified=relu)
    signature = Signature(stages.joints, "given", "pinhole", False, True, False)
    written: bytes = model_of(stages, signature).SerializeToString()
    return written


def onnx_runtime(weights: PackedRegressors, relu: bool, inputs: Inputs) -> Refine:
    """refine(*inputs[i]) by ONNX Runtime, for these sets of inputs only.

    Args:
        weights, relu: as in `refiner_model`.

    Raises:
        ImportError: onnxruntime or onnx is not installed.
    """
    runtime: Any = importlib.import_module("onnxruntime")
    model = refiner_model(weights, relu)

    def prepare(threads: int, fixed: bool) -> Refine:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if fixed:
            options.add_free_dimension_override_by_name("batch", len(inputs[0][0]))
            options.add_free_dimension_override_by_name("cameras", 1)
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        bound: dict[int, tuple[Any, Tensor]] = {}
        for values in inputs:
            result = np.empty(tuple(values[1].shape), np.float32)
            binding = session.io_binding()
            for name, array in _arrays(values):
                binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            binding.bind_output("refined", "cpu", 0, np.float32, result.shape, result.ctypes.data)
            bound[id(values[0])] = binding, torch.from_numpy(result)
        run = session.run_with_iobinding

        def refine(keypoints: Tensor, *_: Tensor) -> Tensor:
            binding, result = bound[id(keypoints)]
            run(binding)
            return result

        return refine

    forms = (True, False) if _are_few(inputs) else (True,)
    return _fastest([prepare(n, fixed) for n in _thread_counts(inputs) for fixed in forms], inputs)


def openvino(weights: PackedRegressors, relu: bool, inputs: Inputs, precision: str) -> Refine:
    """refine(*inputs[i]) by OpenVINO, for these sets of inputs only.

    Args:
        weights, relu: as in `refiner_model`.
        precision: of the matrix products, "fp32" or "bf16".

    Raises:
        ImportError: openvino or onnx is not installed, or the former has no such precision on this
            processor.
    """
    runtime: Any = importlib.import_module("openvino")
    core = runtime.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ImportError("OpenVINO has no bf16 on this processor")
    model = core.read_model(refiner_model(weights, relu))
    if precision == "bf16":
        _round_products(model)
    model.reshape({name: list(array.shape) for name, array in _arrays(inputs[0])})

    def prepare(threads: int) -> Refine:
        settings = {
            # "bf16" would round projections, too, by pixels.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(model, "CPU", settings)
        bound: dict[int, tuple[Any, Tensor]] = {}
        for values in inputs:
            request = compiled.create_infer_request()
            for name, array in _arrays(values):
                request.set_tensor(name, runtime.Tensor(array, shared_memory=True))
            result = np.empty(tuple(values[1].shape), np.float32)
            request.set_tensor("refined", runtime.Tensor(result, shared_memory=True))
            bound[id(values[0])] = request, torch.from_numpy(result)

        def refine(keypoints: Tensor, *_: Tensor) -> Tensor:
            request, result = bound[id(keypoints)]
            request.infer(share_outputs=True)
            return result

        return refine

    return _fastest([prepare(n) for n in _thread_counts(inputs)], inputs)


def _round_products(model: Any) -> None:
    """Turns the matrix products of an OpenVINO model into products in bf16 with rounded sums.

    OpenVINO fuses the conversions: biases and ReLU in bf16 take as long.
    """
    runtime: Any = importlib.import_module("openvino")
    operators: Any = importlib.import_module("openvino.opset13")
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        weights = product.input_value(1).get_node().data  # (inputs, outputs)
        rounded = operators.constant(np.ascontiguousarray(weights.T), dtype=runtime.Type.bf16)
        inputs = operators.convert(product.input_value(0), "bf16")
        sums = operators.convert(operators.matmul(inputs, rounded, False, True), "f32")
        for use in list(product.output(0).get_target_inputs()):
            use.replace_source_output(sums.output(0))
    model.validate_nodes_and_infer_types()


def aot_inductor(layers: Layers, inputs: Inputs) -> Refine:
    """refine(*inputs) by torch's layers compiled ahead of time, for batches of this size.

    Torch's own Python wrapper of a package takes as long as a small model, so the package's runner
    is called without it. Compiling takes up to half a minute.
    """

    class Module(nn.Module):
        def forward(self, *values: Tensor) -> Tensor:
            return layers(*values)

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Of torch's own use of what torch deprecates.
        warnings.simplefilter("ignore")
        program = torch.export.export(Module(), tuple(inputs[0]))
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/a.pt2")
        run = torch._inductor.aoti_load_package(path).loader.run

    def refine(*values: Tensor) -> Tensor:
        refined: Tensor = run(list(values))[0]
        return refined

    return refine


def _arrays(values: Sequence[Tensor]) -> Iterator[tuple[str, Any]]:
    """A set of inputs as the model takes them, by name; the tensors' own memory."""
    for name, value in zip(_NAMES, values, strict=True):
        array = value.numpy()
        yield name, array[None] if name == "intrinsics" else array


def _are_few(inputs: Inputs) -> bool:
    return len(inputs[0][0]) <= FEW


def _thread_counts(inputs: Inputs) -> list[int]:
    """Those worth a try: torch's, and one where there are few poses."""
    threads = torch.get_num_threads()
    return [1, threads] if _are_few(inputs) and threads > 1 else [threads]


def _fastest(candidates: Sequence[Refine], inputs: Inputs) -> Refine:
    """The one whose calls take least, by the medians of turns."""
    if len(candidates) == 1:
        return candidates[0]
    taken: list[list[float]] = [[] for _ in candidates]
    for _ in range(5):
        for seconds, candidate in zip(taken, candidates, strict=True):
            for values in itertools.islice(itertools.cycle(inputs), 40):
                begin = time.perf_counter()
                candidate(*values)
                seconds.append(time.perf_counter() - begin)
    return candidates[min(range(len(candidates)), key=lambda i: statistics.median(taken[i]))]
