"""A whole ERD compiled ahead of time: one file that Python and C++ programs with torch run.

`torch.export` writes the model down as a graph, AOTInductor compiles that to machine code. The
stages stay one call of this package's own operator, so whoever runs the file loads the operators'
library first: in Python `erd_cuda` does, a C++ program opens `operator_library`'s file
(examples/aoti).
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._files import replacing
from .._library import PATH
from ..camera import Camera
from .output_file import check_output
from .signature import ExportOptions, Signature, sample_shape

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from typing_extensions import Unpack

    from ..modules import ERD


def operator_library() -> Path:
    """The compiled operators, for programs without Python: ``dlopen`` it once torch is loaded."""
    return PATH


class _Call(nn.Module):
    """An ERD whose arguments are tensors, one after the other."""

    def __init__(self, erd: ERD, signature: Signature) -> None:
        super().__init__()
        self.erd = erd
        self.signature = signature

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.signature.inputs(), tensors, strict=True))
        camera = Camera(given["intrinsics"], given.get("distortion"), self.signature.camera_model)
        return self.erd(
            given["keypoints"],
            camera,
            given.get("root", self.signature.root),
            given.get("confidence"),
            given.get("pose"),
            bone_length=given.get("bone_length"),
        )


def exported_program(erd: ERD, **options: Unpack[ExportOptions]) -> ExportedProgram:
    """The ERD in eval mode as a graph of torch, for any size of batch.

    Its arguments, in this order: ``keypoints`` (N, J, 2) px; ``intrinsics`` (N, 4) px;
    ``distortion`` (N, 5) unless the camera is a pinhole; ``root`` (N, 3) mm if it is given; and
    those of ``confidence`` (N, J), ``pose`` (N, J, 3) mm and ``bone_length`` (N,) mm that are asked
    for. Its result: the refined poses (N, J, 3) mm. All are in the ERD's dtype and on its device.

    Args:
        erd: in eval mode; its weights are folded and linear blocks collapsed.
        options: what the graph takes, see `ExportOptions`.

    Raises:
        ValueError: an unknown word, the ERD is in train mode, or it lacks the lifter or skeleton
            that this would need.
    """
    return _exported(erd, Signature.of(erd, **options))


def _exported(erd: ERD, signature: Signature) -> ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=2**31 - 1)
    # Sizes of 0 and 1 would be taken for fixed.
    examples = tuple(
        erd.mean2d.new_ones(2, *sample_shape(name, signature.joints)) for name in signature.inputs()
    )
    with torch.no_grad():
        return torch.export.export(
            _Call(erd, signature).eval(),
            examples,
            dynamic_shapes=(tuple({0: batch} for _ in examples),),
        )


def to_package(erd: ERD, path: str | os.PathLike[str], **options: Unpack[ExportOptions]) -> None:
    """Compiles `exported_program` and writes it to a file, which takes up to a minute.

    The machine code is for this machine's kind of processor, or of GPU if the ERD is on one. The
    file's metadata say, to C++ programs too, what it takes: ``inputs``, the arguments' names with
    blanks between them, ``joints`` and ``dtype``.

    Args:
        erd: in eval mode.
        path: the file to write, ``.pt2``; it is replaced in one step.
        options: what the package takes, see `ExportOptions`.

    Raises:
        FileNotFoundError: there is no such directory, or no C++ compiler.
        ValueError: the name does not end in .pt2, or as `exported_program`.
    """
    check_output(path, "aoti")
    signature = Signature.of(erd, **options)
    _check_compiler()
    metadata = {
        "inputs": " ".join(signature.inputs()),
        "joints": str(signature.joints),
        "dtype": str(erd.mean2d.dtype).removeprefix("torch."),
    }
    program = _exported(erd, signature)
    _spell_out_infinity(program)
    with replacing(path) as temporary:
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(temporary),
            inductor_configs={"aot_inductor.metadata": metadata},
        )


def _spell_out_infinity(program: ExportedProgram) -> None:
    """A package keeps an operator's numbers as JSON, which knows no infinity.

    The largest double is infinity in float32, and in float64 no residual exceeds it.
    """
    for node in program.graph.nodes:
        node.args = tuple(sys.float_info.max if arg == math.inf else arg for arg in node.args)


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise FileNotFoundError(
            "AOTInductor compiles with a C++ compiler, and there is none: install g++, or set CXX "
            "to one."
        ) from error


class Package:
    """A file of `to_package`, loaded; call it with the inputs that it takes, by name or in order.

    Args:
        path: the file.
        device: where it runs: that for which it was compiled.

    Attributes:
        inputs: names of what it takes, in order, as in `exported_program`.
        joints: J.
        dtype: of every input and of the result.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or none that `to_package` wrote.
    """

    def __init__(self, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}.")
        self.device = torch.device(device)
        index = -1 if self.device.index is None else self.device.index
        try:
            self._run = torch._inductor.aoti_load_package(str(path), device_index=index)
            metadata = self._run.get_metadata()
            self.inputs = metadata["inputs"].split()
            self.joints = int(metadata["joints"])
            self.dtype = getattr(torch, metadata["dtype"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{path} is damaged, or no package that erd_cuda.export.to_package wrote "
                f"({' '.join(str(error).split())})."
            ) from error

    def __call__(self, *ordered: Tensor, **tensors: Tensor) -> Tensor:
        """Refined poses (N, J, 3), mm. One camera (4,) or (1, 4) serves all samples.

        Args:
            ordered: tensors in the order of `inputs`.
            tensors: the others, by name.

        Raises:
            TypeError: an input is missing, unknown or given twice, no tensor, or of another dtype.
            ValueError: a shape or device does not fit.
        """
        first, rest = self.inputs[: len(ordered)], self.inputs[len(ordered) :]
        if len(first) < len(ordered) or tensors.keys() != set(rest):
            got = [*(f"{len(ordered)} in order" for _ in ordered[:1]), *tensors]
            raise TypeError(
                f"the package takes {', '.join(self.inputs)}, got {', '.join(got) or 'nothing'}"
            )
        tensors |= zip(first, ordered, strict=True)
        given = [self._checked(name, tensors[name]) for name in self.inputs]
        batch = max(t.shape[0] for t in given)
        for name, t in zip(self.inputs, given, strict=True):
            if t.shape[0] != batch and not (t.shape[0] == 1 and name in _SHARED):
                raise ValueError(f"{name} has a batch of {t.shape[0]}, expected {batch}.")
        # The compiled code reads its inputs without gaps and does not look whether there are any.
        return self._run(*(t.expand(batch, *t.shape[1:]).contiguous() for t in given))

    def _checked(self, name: str, value: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or value.dtype != self.dtype:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} is {found}, expected a {self.dtype} tensor.")
        if value.device.type != self.device.type:
            raise ValueError(f"{name} is on {value.device}, expected {self.device}.")
        shape = sample_shape(name, self.joints)
        if name in _SHARED and value.ndim == 1:
            value = value[None]
        if value.ndim != len(shape) + 1 or tuple(value.shape[1:]) != shape:
            expected = ", ".join(map(str, ("N", *shape)))
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected ({expected}).")
        return value


_SHARED = ("intrinsics", "distortion")
