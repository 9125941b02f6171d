"""The stages' packed weights in the file that the C++ library reads (csrc/cpp/weights_file.h)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save

from .._definitions import ROOTS, check_choice
from .._files import replacing
from .output_file import check_output

if TYPE_CHECKING:
    from ..modules import ERD

_FORMAT_VERSION = "1"


def to_cpp(erd: ERD, path: str | os.PathLike[str], *, root: str | None = None) -> None:
    """Writes a model's stages, folded and collapsed, for ``erd_cuda::Refiner::load``.

    The lifter is not written: a C++ program brings the poses that are to be refined.

    Args:
        erd: its stages' weights become float32.
        path: the file to write, ``.safetensors``; it is replaced in one step.
        root: what the C++ library does where it is given no root: "solve" or "solve_each_stage";
            "given" refuses that. By default the ERD's own.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: the name does not end in .safetensors, or an unknown word.
    """
    check_output(path, "cpp")
    root = erd.root if root is None else root
    check_choice("root", root, ROOTS)
    packed = erd.packed(device="cpu")
    tensors = {
        name: value.numpy().astype(np.float32)
        for name in ("w_in", "b_in", "w_hidden", "b_hidden", "w_out", "b_out", "mean2d")
        if (value := getattr(packed, name)) is not None
    }
    tensors["residual_limit"] = np.array([packed.residual_limit], np.float32)
    words = {
        "format_version": _FORMAT_VERSION,
        "block": packed.block,
        "features": packed.features,
        "root": root,
        "confidence_weights": str(packed.confidence_weights).lower(),
    }
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=words))
