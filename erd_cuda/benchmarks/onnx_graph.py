"""The whole refiner as one ONNX graph of standard operators, for the runtimes that read ONNX.

One stage of the linear block is two matrix products, as the collapse leaves it, or four; the
geometry around them is written with as few operators as it takes.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from torch import Tensor

from erd_cuda import PackedRegressors
from erd_cuda._definitions import MIN_DEPTH

#: Inputs in the order of the graph's.
INPUT_NAMES = ("keypoints", "pose", "root", "intrinsics")
_OPSET = 17


class _Graph:
    """Nodes and constants as they are added; every method returns the name of its result."""

    def __init__(self) -> None:
        # A module from pip that a user may not have.
        self.helper: Any = importlib.import_module("onnx.helper")
        self._numpy_helper: Any = importlib.import_module("onnx.numpy_helper")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: object, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        array = np.ascontiguousarray(values, dtype=dtype)
        self.constants.append(self._numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def linear(self, features: str, weight: Tensor, bias: Tensor) -> str:
        """x W' + b, which runtimes fuse into one product."""
        product = self.add("MatMul", features, self.constant(weight.t().numpy()))
        return self.add("Add", product, self.constant(bias.numpy()))


def refiner(weights: PackedRegressors, batch: int, activation: bool = False) -> Any:
    """An ONNX model of keypoints, pose, root and one pinhole camera (4,) for `batch` poses.

    Args:
        weights: on the CPU, float32; two layers a stage where they have no hidden ones, else four.
        batch: N of the inputs (N, J, 2) px, (N, J, 3) mm, (N, 3) mm; fixed, the best for runtimes.
        activation: a ReLU in the hidden layers.

    Returns:
        The model; its output "refined" is (N, J, 3) mm.

    Raises:
        ImportError: onnx is not installed.
    """
    graph = _Graph()
    joints = weights.num_joints
    shapes = ((batch, joints, 2), (batch, joints, 3), (batch, 3), (4,))
    pose = "pose"
    where = graph.add("Reshape", "root", graph.constant((batch, 1, 3), np.int64))
    focal, centre = (
        graph.add(
            "Slice",
            "intrinsics",
            graph.constant([first], np.int64),
            graph.constant([first + 2], np.int64),
        )
        for first in (0, 2)
    )
    flat = graph.constant((batch, 2 * joints), np.int64)
    deep = graph.constant((batch, joints, 3), np.int64)
    parts = graph.constant((2, 1), np.int64)
    nearest = graph.constant(MIN_DEPTH)
    for k in range(len(weights.w_in)):
        point = graph.add("Add", pose, where)
        image, depth = f"image{k}", f"depth{k}"
        graph.nodes.append(graph.helper.make_node("Split", [point, parts], [image, depth], axis=2))
        over = graph.add("Div", image, graph.add("Max", depth, nearest))
        projection = graph.add("Add", graph.add("Mul", over, focal), centre)
        features = graph.add("Reshape", graph.add("Sub", "keypoints", projection), flat)
        hidden = graph.add("Relu", graph.linear(features, weights.w_in[k], weights.b_in[k]))
        if weights.w_hidden is not None and weights.b_hidden is not None:
            for weight, bias in zip(weights.w_hidden[k], weights.b_hidden[k], strict=True):
                inner = graph.linear(hidden, weight, bias)
                hidden = graph.add("Add", hidden, graph.add("Relu", inner) if activation else inner)
        step = graph.add("Reshape", graph.linear(hidden, weights.w_out[k], weights.b_out[k]), deep)
        last = k == len(weights.w_in) - 1
        pose = graph.add("Add", pose, step, output="refined" if last else "")
    helper, floats = graph.helper, 1  # TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(name, floats, shape)
        for name, shape in zip(INPUT_NAMES, shapes, strict=True)
    ]
    outputs = [helper.make_tensor_value_info("refined", floats, shapes[1])]
    made = helper.make_graph(graph.nodes, "refiner", inputs, outputs, graph.constants)
    # The oldest file format that has all of this: every runtime reads it.
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
