"""Writes ONNX graphs in the notation of arithmetic: operators on values become nodes."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from .._version import __version__

#: Version of ONNX's operators that the graphs use, and of the file format that came with it: old
#: enough for the runtimes of 2022.
OPSET = 17
IR_VERSION = 8


def import_onnx() -> ModuleType:
    """The package onnx.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "ONNX files are written with the package onnx, which does not import "
            f'({error}): run `pip install "erd-cuda[onnx]"`.'
        ) from error
    return onnx


class Graph:
    """An ONNX graph that grows node by node.

    Args:
        dtype: float32 or float64, of every value that is not a truth value.
    """

    def __init__(self, dtype: Any) -> None:
        self._onnx = import_onnx()
        self.dtype = np.dtype(dtype)
        self._inputs: list[Any] = []
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[Any] = []
        self._names = 0

    def input(self, name: str, *shape: int | str) -> Value:
        """A tensor that the caller of the model gives; a word for a size that is open."""
        self._inputs.append(self._info(name, shape))
        return Value(self, name)

    def constant(self, values: Any, dtype: Any = None) -> Value:
        """A tensor that is part of the model, stored once however often it is used."""
        array = np.ascontiguousarray(np.asarray(values, dtype=dtype or self.dtype))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self._constants[key] = name
            self._initializers.append(self._onnx.numpy_helper.from_array(array, name))
        return Value(self, self._constants[key])

    def op(self, kind: str, *operands: Any, **attributes: Any) -> Value:
        """The one result of a node; operands that are no values become constants."""
        return self.ops(kind, 1, *operands, **attributes)[0]

    def ops(self, kind: str, results: int, *operands: Any, **attributes: Any) -> list[Value]:
        """The results of a node that has several."""
        values = [x if isinstance(x, Value) else self.constant(x) for x in operands]
        names = [f"v{self._names + i}" for i in range(results)]
        self._names += results
        node = self._onnx.helper.make_node(kind, [v.name for v in values], names, **attributes)
        self._nodes.append(node)
        return [Value(self, name) for name in names]

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """The values one after the other along an axis."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)

    def model(self, name: str, outputs: dict[str, tuple[Value, tuple[int | str, ...]]]) -> Any:
        """The finished, checked ``onnx.ModelProto``.

        Args:
            name: what the graph is called.
            outputs: the results and their shapes, by the names they get.
        """
        helper = self._onnx.helper
        results = []
        for output, (value, shape) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value.name], [output]))
            results.append(self._info(output, shape))
        graph = helper.make_graph(self._nodes, name, self._inputs, results, self._initializers)
        model = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="erd_cuda",
            producer_version=__version__,
        )
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _info(self, name: str, shape: Sequence[int | str]) -> Any:
        helper = self._onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        return helper.make_tensor_value_info(name, kind, list(shape))


class Value:
    """A tensor of a graph."""

    # Arrays on the left of an operator leave the work to this class.
    __array_ufunc__ = None

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        self.name = name

    def __add__(self, other: Any) -> Value:
        return self.graph.op("Add", self, other)

    def __radd__(self, other: Any) -> Value:
        return self.graph.op("Add", other, self)

    def __sub__(self, other: Any) -> Value:
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self.graph.op("Sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return self.graph.op("Mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self.graph.op("Mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self.graph.op("Div", self, other)

    def __neg__(self) -> Value:
        return self.graph.op("Neg", self)

    def __matmul__(self, other: Any) -> Value:
        return self.graph.op("MatMul", self, other)

    def __rmatmul__(self, other: Any) -> Value:
        return self.graph.op("MatMul", other, self)

    def __gt__(self, other: Any) -> Value:
        return self.graph.op("Greater", self, other)

    def __lt__(self, other: Any) -> Value:
        return self.graph.op("Less", self, other)

    def __and__(self, other: Value) -> Value:
        return self.graph.op("And", self, other)

    def where(self, first: Any, second: Any) -> Value:
        """``first`` where this truth value holds, else ``second``."""
        return self.graph.op("Where", self, first, second)

    def number(self) -> Value:
        """1 where this truth value holds, else 0."""
        helper = self.graph._onnx.helper
        return self.graph.op("Cast", self, to=helper.np_dtype_to_tensor_dtype(self.graph.dtype))

    def at_least(self, bound: Any) -> Value:
        """The larger of the two; NaN stays NaN."""
        return self.graph.op("Max", self, bound)

    def at_most(self, bound: Any) -> Value:
        """The smaller of the two; NaN stays NaN."""
        return self.graph.op("Min", self, bound)

    def relu(self) -> Value:
        """0 where this is negative."""
        return self.graph.op("Relu", self)

    def affine(self, weight: Any, bias: Any) -> Value:
        """(N, inputs) to (N, outputs): times ``weight`` (outputs, inputs), plus ``bias``."""
        return self.graph.op("Gemm", self, np.asarray(weight).T, bias)

    def sum(self, *axes: int) -> Value:
        """Sums over axes, which stay with size 1."""
        return self.graph.op("ReduceSum", self, self.graph.constant(axes, np.int64), keepdims=1)

    def reshape(self, *shape: int) -> Value:
        """Another shape, one size of which may be -1: what is left."""
        return self.graph.op("Reshape", self, self.graph.constant(shape, np.int64))

    def transpose(self, *order: int) -> Value:
        """The axes in another order."""
        return self.graph.op("Transpose", self, perm=list(order))

    def split(self, sizes: Sequence[int], axis: int) -> list[Value]:
        """Parts of these sizes along an axis."""
        constant = self.graph.constant(sizes, np.int64)
        return self.graph.ops("Split", len(sizes), self, constant, axis=axis)
