"""The weights of all stages in arrays, read from the same files as `erd_cuda.ERD`'s."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize, safe_open

from .._columns import weight_columns
from .._definitions import BLOCKS, FEATURES, check_choice
from .._folding import Affine, Norm, Principal, Spread, collapse_output, fold_input
from .._fragments import PRECISIONS, Fragments, collapsed_fragments, fits_tensor_cores
from .._fragments_relu import relu_fragments
from .._model_file import check_shapes, find_model, read_with
from .._shapes import as_limit, check_packed, seen_features
from .memory import CPU, Place, address_of, as_array, device_name
from .rows import SCALARS

_BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class Weights:
    """All K stages' weights for `refine`, folded and collapsed; `load_weights` makes them.

    What they mean is written at `erd_cuda.PackedRegressors`, whose fields have the same names.

    The arrays must not change any more, because for the GPU a second copy of them is kept in
    another order: NumPy's are read-only views, CuPy knows no such thing. `to` makes copies. The
    first `refine` of a precision on a GPU makes that copy on the CPU and waits for the GPU: make
    one such call, or call `for_tensor_cores`, before capturing a CUDA graph.

    Attributes:
        block: "linear" or "relu".
        features: "residual", "concat", "init2d", "proj2d" or "residual+pose".
        w_in: (K, H, F).
        b_in: (K, H).
        w_out: (K, 3 J, H).
        b_out: (K, 3 J).
        mean2d: (J, 2) px.
        w_hidden: (K, 2, H, H), relu block only.
        b_hidden: (K, 2, H), relu block only.
        confidence_weights: whether a call's confidences weigh the joints; False: they only say
            which are missing, those of 0.
        residual_limit: px, the most that each coordinate of a residual counts; infinity in the
            paper.

    Raises:
        TypeError: no arrays, or not all float32 or all float64.
        ValueError: shapes that do not fit together, or arrays on several devices.
    """

    block: str
    features: str
    w_in: Any
    b_in: Any
    w_out: Any
    b_out: Any
    mean2d: Any
    w_hidden: Any = None
    b_hidden: Any = None
    confidence_weights: bool = True
    residual_limit: float = math.inf

    _arranged: dict[str, Fragments | None] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            value = getattr(self, name)
            if value is not None or name not in ("w_hidden", "b_hidden"):
                array = as_array(name, value)
                if array.dtype not in SCALARS:
                    raise TypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
                # The kernels read the matrices without gaps.
                if not array.flags.c_contiguous:
                    array = Place(device_name(array)).copy(array)
                if isinstance(array, np.ndarray):
                    array = array.view()
                    array.flags.writeable = False
                object.__setattr__(self, name, array)
        check_packed(self)
        for name, array in self._arrays().items():
            if array.dtype != self.dtype:
                raise TypeError(f"{name} has dtype {array.dtype}, expected {self.dtype} like w_in")
            if device_name(array) != self.device:
                raise ValueError(
                    f"{name} is on {device_name(array)}, expected {self.device} like w_in"
                )

    @property
    def stages(self) -> int:
        """K."""
        return int(self.w_in.shape[0])

    @property
    def width(self) -> int:
        """H, the width of the hidden layers."""
        return int(self.w_in.shape[1])

    @property
    def num_joints(self) -> int:
        """J."""
        return int(self.mean2d.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every array: float32 or float64."""
        return np.dtype(self.w_in.dtype)

    @property
    def device(self) -> str:
        """``"cpu"``, or ``"cuda:0"`` and so on."""
        return device_name(self.w_in)

    def to(self, dtype: Any = None, device: str | None = None) -> Weights:
        """A copy in another dtype or on another device.

        Args:
            dtype: float32 or float64; as they are if None.
            device: "cpu" (NumPy), "cuda" or "cuda:N" (CuPy); where they are if None.
        """
        place = Place(self.device if device is None else device)
        dtype = self.dtype if dtype is None else dtype
        return replace(self, **{n: place.take(a, dtype) for n, a in self._arrays().items()})

    @cached_property
    def for_kernels(self) -> tuple[int, int, list[int]]:
        """K, H and where the matrices lie, as csrc/python/module.cpp takes them."""
        arrays = self._arrays()
        addresses = [address_of(arrays[n]) if n in arrays else 0 for n in _ARRAYS]
        return self.stages, self.width, addresses

    @cached_property
    def columns(self) -> Any:
        """The weights as the CPU kernel for few poses takes them, a NumPy array."""
        return self._columns("fp32")

    @cached_property
    def pairs(self) -> Any:
        """Float32 weights as the CPU kernels for bf16 take them, a NumPy array."""
        return self._columns("bf16")

    def _columns(self, precision: str) -> Any:
        matrices = {n: CPU.take(a, self.dtype) for n, a in self._arrays().items() if n != "mean2d"}
        no_hidden = {"w_hidden": None, "b_hidden": None}
        return weight_columns(**(no_hidden | matrices), precision=precision)

    def for_tensor_cores(self, precision: str) -> Fragments | None:
        """The weights as the GPU's tensor-core kernels take them, arranged once and kept.

        Args:
            precision: "fp16", "bf16", or "split" (float32 accuracy from pairs of fp16 numbers).

        Returns:
            Arrays on the weights' device; None for sizes that no such kernel serves.

        Raises:
            ValueError: an unknown word.
        """
        check_choice("precision", precision, [name for name in PRECISIONS if name != "fp32"])
        if precision not in self._arranged:
            made = None
            if fits_tensor_cores(self.block, self.features, self.num_joints, self.width):
                matrices = {n: CPU.take(a, self.dtype) for n, a in self._arrays().items()}
                del matrices["mean2d"]
                arrange = collapsed_fragments if self.block == "linear" else relu_fragments
                made = arrange(**matrices, precision=precision)
                place = Place(self.device)
                made = Fragments(
                    place.take(made.weights, made.weights.dtype),
                    place.take(made.biases, made.biases.dtype),
                    made.feature_scale,
                )
            self._arranged[precision] = made
        return self._arranged[precision]

    def _arrays(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return {name: array for name, array in arrays.items() if array is not None}


_ARRAYS = ("w_in", "b_in", "w_hidden", "b_hidden", "w_out", "b_out", "mean2d")


def load_weights(
    name: str | os.PathLike[str], dtype: Any = np.float32, device: str = "cpu"
) -> Weights:
    """Reads the stages of a model file, or of a bundled model by its name.

    BatchNorm, normalisation and PCA are folded in, and linear blocks collapsed, in float64, as
    `erd_cuda.ERD.packed` does it. A lifter in the file is not read.

    Args:
        name: a file that `erd_cuda.ERD.save` wrote, or one of `bundled_models`.
        dtype: float32 or float64.
        device: "cpu" for NumPy arrays, "cuda" or "cuda:N" for CuPy arrays.

    Raises:
        FileNotFoundError: there is neither such a file nor such a bundled model.
        ValueError: the file is truncated, foreign, damaged or of another format version.
    """
    path = find_model(name)
    description, tensors = read_with(_load, path)
    lifter = {key for key in tensors if key.startswith("lifter.")}
    tensors = {key: value for key, value in tensors.items() if key not in lifter}
    try:
        config = _Config.of(description["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes a model that cannot be built: {error}") from error
    found = {key: value.shape for key, value in tensors.items()}
    check_shapes(path, found, config.shapes())
    # As a model holds them: in the precision of mean2d, which is never stored in less.
    kept = tensors["mean2d"].dtype
    exact = {key: value.astype(kept).astype(np.float64) for key, value in tensors.items()}
    return _fold(config, exact).to(dtype, device)


@dataclass(frozen=True)
class _Config:
    """What a model's description says about its stages."""

    block: str
    features: str
    joints: int
    stages: int
    width: int
    components: int | None
    confidence_weights: bool
    residual_limit: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Config:
        check_choice("block", config["block"], BLOCKS)
        check_choice("features", config["features"], FEATURES)
        sizes = {key: config[key] for key in ("num_joints", "stages", "width", "pca")}
        for key, size in sizes.items():
            if not (isinstance(size, int) and size >= 1) and (key, size) != ("pca", None):
                raise ValueError(f"{key} is {size!r}, expected an integer of at least 1.")
        return cls(
            block=config["block"],
            features=config["features"],
            joints=sizes["num_joints"],
            stages=sizes["stages"],
            width=sizes["width"],
            components=sizes["pca"],
            # Models from before there was a choice weigh.
            confidence_weights=bool(config.get("confidence_weights", True)),
            residual_limit=as_limit(config.get("residual_limit")),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of such a model, by name."""
        width, coordinates = self.width, 2 * self.joints
        seen = seen_features(self.features, self.joints, self.components)
        shapes: dict[str, tuple[int, ...]] = {
            "mean2d": (self.joints, 2),
            "std2d": (self.joints, 2),
        }
        if self.features == "residual+pose":
            shapes |= {"mean3d": (self.joints, 3), "std3d": (self.joints, 3)}
        if self.components is not None:
            shapes["pca.mean"] = (coordinates,)
            shapes["pca.basis"] = (self.components, coordinates)
        layers = {
            "input": (width, seen),
            "hidden.0": (width, width),
            "hidden.1": (width, width),
            "output": (3 * self.joints, width),
        }
        for k in range(self.stages):
            for layer, shape in layers.items():
                shapes[f"regressors.{k}.{layer}.weight"] = shape
                shapes[f"regressors.{k}.{layer}.bias"] = shape[:1]
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"regressors.{k}.norm.{part}"] = (width,)
            shapes[f"regressors.{k}.norm.num_batches_tracked"] = ()
        return shapes


def _fold(config: _Config, tensors: Mapping[str, Any]) -> Weights:
    """The stages as the kernels take them, from a file's tensors in float64."""

    def scale_of(std: str) -> Any:
        flat = tensors[std].reshape(-1)
        return np.where(flat > 0, flat, 1.0)

    scale = scale_of("std2d")
    pca = pose = None
    if config.features == "residual+pose":
        pose = Spread(tensors["mean3d"].reshape(-1), scale_of("std3d"))
    if config.components is not None:
        pca = Principal(tensors["pca.mean"], tensors["pca.basis"])

    def affine(stage: str, layer: str) -> Affine:
        return Affine(tensors[f"{stage}.{layer}.weight"], tensors[f"{stage}.{layer}.bias"])

    folded: dict[str, list[Any]] = {name: [] for name in _ARRAYS}
    for stage in (f"regressors.{k}" for k in range(config.stages)):
        norm = Norm(
            weight=tensors[f"{stage}.norm.weight"],
            bias=tensors[f"{stage}.norm.bias"],
            running_mean=tensors[f"{stage}.norm.running_mean"],
            running_var=tensors[f"{stage}.norm.running_var"],
            eps=_BATCH_NORM_EPS,
        )
        columns, bias = fold_input(affine(stage, "input"), norm, scale, pca, config.features, pose)
        folded["w_in"].append(np.concatenate(columns, axis=1))
        folded["b_in"].append(bias)
        output = affine(stage, "output")
        hidden = [affine(stage, "hidden.0"), affine(stage, "hidden.1")]
        if config.block == "linear":
            output = collapse_output(output, hidden)
        else:
            folded["w_hidden"].append(np.stack([layer.weight for layer in hidden]))
            folded["b_hidden"].append(np.stack([layer.bias for layer in hidden]))
        folded["w_out"].append(output.weight)
        folded["b_out"].append(output.bias)
    stacked = {name: np.stack(values) for name, values in folded.items() if values}
    return Weights(
        config.block,
        config.features,
        mean2d=tensors["mean2d"],
        confidence_weights=config.confidence_weights,
        residual_limit=config.residual_limit,
        **stacked,
    )


def _load(path: Path) -> tuple[Mapping[str, str] | None, dict[str, Any]]:
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    # NumPy has no bfloat16, so safetensors' own NumPy reader stops at it.
    tensors = {}
    for name, entry in deserialize(path.read_bytes()):
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"{path} stores the tensor {name} as {entry['dtype']}, expected one of "
                f"{', '.join(_DTYPES)}."
            )
        values = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            # The upper half of a float32.
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = values
    return metadata, tensors


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
