"""The result of refining one file: an .npz or a safetensors file of plain arrays."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from erd_cuda._files import replacing

__all__ = ["RESULT_SUFFIXES", "write_results"]

RESULT_SUFFIXES = (".npz", ".safetensors")


def write_results(path: Path, results: dict[str, Tensor]) -> None:
    """Replace ``path`` by the results of `Refiner`; its suffix says in which format."""
    with replacing(path) as temporary:
        if path.suffix == ".npz":
            import numpy as np

            arrays = {name: value.numpy() for name, value in results.items()}
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
        else:
            from safetensors.torch import save_file

            save_file(results, temporary, metadata={"format": "erd_cuda.refined"})
