"""ONNX Runtime and OpenVINO on the CPU, called in the way that costs them least.

Inputs and outputs are bound once for each set of inputs, so a call copies nothing and converts
nothing; the batch is fixed, and as many threads run as torch has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erd_cuda.benchmarks.inputs import Inputs
from erd_cuda.benchmarks.onnx_graph import INPUT_NAMES

Refine = Callable[..., Tensor]


def onnx_runtime(model: Any, inputs: Inputs) -> Refine:
    """refine(*inputs[i]) by ONNX Runtime, for these sets of inputs only.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    bound: dict[int, tuple[Any, Tensor]] = {}
    for values in inputs:
        result = np.empty(tuple(values[1].shape), np.float32)
        binding = session.io_binding()
        for name, value in zip(INPUT_NAMES, values, strict=True):
            array = value.numpy()
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_output("refined", "cpu", 0, np.float32, result.shape, result.ctypes.data)
        bound[id(values[0])] = binding, torch.from_numpy(result)
    run = session.run_with_iobinding

    def refine(keypoints: Tensor, *_: Tensor) -> Tensor:
        binding, result = bound[id(keypoints)]
        run(binding)
        return result

    return refine


def openvino(model: Any, inputs: Inputs, precision: str) -> Refine:
    """refine(*inputs[i]) by OpenVINO, for these sets of inputs only.

    Args:
        precision: of the matrix products, "fp32" or "bf16".

    Raises:
        ImportError: openvino is not installed, or has no such precision on this processor.
    """
    runtime: Any = importlib.import_module("openvino")
    core = runtime.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ImportError("OpenVINO has no bf16 on this processor")
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    bound: dict[int, tuple[Any, Tensor]] = {}
    for values in inputs:
        request = compiled.create_infer_request()
        for name, value in zip(INPUT_NAMES, values, strict=True):
            request.set_tensor(name, runtime.Tensor(value.numpy(), shared_memory=True))
        result = np.empty(tuple(values[1].shape), np.float32)
        request.set_tensor("refined", runtime.Tensor(result, shared_memory=True))
        bound[id(values[0])] = request, torch.from_numpy(result)

    def refine(keypoints: Tensor, *_: Tensor) -> Tensor:
        request, result = bound[id(keypoints)]
        request.infer(share_outputs=True)
        return result

    return refine
