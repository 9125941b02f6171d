"""The parts of a data set shared among the workers of Ray Data, on this machine or a cluster.

What flows through Ray are the numbers of the parts and their costs: a worker reads and writes the
files itself, and does to a part what a single process would do, to the same bits. When a worker
dies, Ray starts another and gives it the dead one's parts again; what was half written has a
temporary name, so nobody mistakes it for a result.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erd_cuda.refining.parts import Part, Refused, try_part
from erd_cuda.refining.record import model_hash
from erd_cuda.refining.refiner import Cost, RefineOptions, Refiner

__all__ = ["check_installed", "refine_parts"]

# Ray's store is made for data; numbers of parts are all that it gets here. This is near its least.
STORE_BYTES = 100_000_000

# Ray can be installed without what its part for data imports.
_NEEDED = ("ray", "pandas", "pyarrow")


def check_installed() -> None:
    """Raise ImportError, with what to do, if something is missing that workers need."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"--workers needs {' and '.join(missing)}; install with: pip install 'erd-cuda[scale]'"
        )


class _Worker:
    """One actor: a model that is loaded once and refines part after part."""

    def __init__(
        self,
        parts: list[Part],
        folder: Path,
        out: Path,
        options: RefineOptions,
        model: str,
        threads: int | None,
    ) -> None:
        self._parts, self._folder, self._out = parts, folder, out
        self._options, self._model, self._threads = options, model, threads
        self._refiner: Refiner | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The cost of a part, or a sentence: what is wrong with it, or with this worker."""
        cost, error, refused = Cost(), "", ""
        try:
            if self._refiner is None:
                self._refiner = self._start()
            done = try_part(self._parts[row["part"]], self._folder, self._out, self._refiner)
            if isinstance(done, Refused):
                refused = done.sentence
            else:
                cost = done
        except (ValueError, OSError) as failure:
            error = str(failure) or repr(failure)
        return {**asdict(cost), "error": error, "refused": refused}

    def _start(self) -> Refiner:
        import torch

        torch.set_num_threads(self._threads or 1)
        if model_hash(self._options.model) != self._model:
            raise ValueError(
                f"a worker finds another model than the driver at {self._options.model}"
            )
        return Refiner(self._options)


def refine_parts(
    parts: list[Part],
    folder: Path,
    out: Path,
    options: RefineOptions,
    workers: int,
    threads: int | None,
) -> Iterator[Cost | Refused]:
    """Refine the parts on ``workers`` workers; the costs come as parts are finished.

    Ray is started here and stopped at the end, or joined if RAY_ADDRESS names a cluster, all of
    whose machines then have to see the files under the same paths.

    Args:
        parts, folder, out: as in `erd_cuda.refining.parts`.
        options: the model and how it is run; with a CUDA device every worker has a GPU of its own.
        workers: how many.
        threads: CPU threads of each worker; None for one.

    Raises:
        ValueError: there are not as many GPUs, or a worker cannot read or write.
        ImportError: Ray cannot be imported.
    """
    # Set before Ray is imported, which reads it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    joins = bool(os.environ.get("RAY_ADDRESS"))
    on_gpus = options.device.startswith("cuda")
    local: dict[str, Any] = {
        "num_cpus": workers * (threads or 1),
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
    }
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if joins else local))
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if on_gpus and gpus < workers:
            raise ValueError(
                f"--workers is {workers} with --device {options.device}, one worker a GPU, but Ray "
                f"finds {gpus} GPUs"
            )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        costs = ray.data.from_items(
            [{"part": number} for number in range(len(parts))], override_num_blocks=len(parts)
        ).map(
            _Worker,  # type: ignore[arg-type]
            fn_constructor_args=(
                parts,
                folder.resolve(),
                out.resolve(),
                options,
                model_hash(options.model),
                threads,
            ),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
            num_cpus=threads or 1,
            num_gpus=1 if on_gpus else 0,
        )
        for row in costs.iter_rows():
            error, refused = row.pop("error"), row.pop("refused")
            if error:
                raise ValueError(error)
            yield Refused(refused) if refused else Cost(**row)
    finally:
        ray.shutdown()
