"""Refine a data set of any size by parts, in this process or on Ray workers, or go on doing so."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from erd_cuda._files import remove_leftovers
from erd_cuda.refining.parts import Refused, part_warnings, plan, source_files, try_part
from erd_cuda.refining.ray_workers import check_installed, refine_parts
from erd_cuda.refining.record import begin_or_continue
from erd_cuda.refining.refiner import Cost, RefineOptions, Refiner

__all__ = ["Summary", "refine_dataset"]

#: How many parts that cannot be refined are named one by one.
NAMED = 20


@dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
        cost: of the parts that this run refined.
        parts: how many those were.
        found: how many parts an earlier run had finished.
        mode: where the roots came from.
        refused: how many parts could not be refined, and Parquet files that have none.
    """

    cost: Cost
    parts: int
    found: int
    mode: str
    refused: int = 0


def refine_dataset(
    source: Path,
    out: Path,
    options: RefineOptions,
    *,
    part_rows: int,
    workers: int | None = None,
    threads: int | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Summary:
    """Refine a Parquet file or the files of a folder into a folder; finished parts are left alone.

    Args:
        source: the input.
        out: the folder of the results, made if it is missing.
        options: the model and how it is run.
        part_rows: rows of a Parquet file that are refined as one part, in whole row groups.
        workers: how many Ray workers share the parts, each with a GPU of its own if the device is
            one; None for this process alone.
        threads: CPU threads of each worker.
        warn: told what the user may not have meant, and which parts cannot be refined; the others
            are refined all the same.

    Raises:
        ValueError: the input, the model or the output are not what they should be; or no file can
            be refined.
        ImportError: what Ray, or for Parquet files pyarrow, needs is not installed.
        KeyboardInterrupt: Ctrl-C; the message says what is kept.
    """
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"the output {out} must not lie in the input {source}")
    here = options
    if workers is not None:
        check_installed()
        # The GPUs are theirs, and all that is refined.
        here = replace(options, device="cpu", precision="auto")
    refiner = Refiner(here)
    folder, sources = source_files(source)
    parts, refused, rooted = plan(folder, sources, refiner, part_rows)
    for sentence in refiner.warnings(rooted is not None, rooted or source):
        warn(sentence)
    begin_or_continue(out, folder, sources, options, refiner.mode, part_rows)
    waiting = [part for part in parts if not (out / part.output).exists()]
    finished = len(parts) - len(waiting)
    summary = Summary(Cost(), 0, finished, refiner.mode)
    for sentence in part_warnings(waiting, folder, refiner):
        warn(sentence)
    costs: Iterator[Cost | Refused]
    if workers is None or not waiting:
        costs = (try_part(part, folder, out, refiner) for part in waiting)
    else:
        costs = refine_parts(waiting, folder, out, options, workers, threads)
    total = len(parts) + len(refused)
    try:
        for cost in _shown(chain(refused, costs), finished, total):
            if isinstance(cost, Refused):
                summary = replace(summary, refused=summary.refused + 1)
                if summary.refused <= NAMED:
                    warn(cost.sentence)
                continue
            summary = replace(summary, cost=summary.cost + cost, parts=summary.parts + 1)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"refining was interrupted; {finished + summary.parts} of {total} parts are "
            f"finished in {out}, and the same command goes on from there"
        ) from None
    if summary.refused > NAMED:
        warn(f"and {summary.refused - NAMED:,} more of this kind")
    if workers is not None:
        # Of workers that died on the way.
        remove_leftovers(out)
    return summary


def _shown(costs: Iterator[Cost | Refused], finished: int, parts: int) -> Iterator[Cost | Refused]:
    """The costs as they come, counted by a bar if someone looks at a terminal."""
    with tqdm(total=parts, initial=finished, unit="part", disable=not sys.stderr.isatty()) as bar:
        for cost in costs:
            bar.update()
            yield cost
