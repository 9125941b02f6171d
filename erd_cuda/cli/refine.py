"""``erd-cuda refine``: a trained model over 2D keypoints, a file of them or a whole data set."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from erd_cuda._refine_arguments import PRECISIONS
from erd_cuda.cli.options import add_threads_option, positive, set_threads

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "refine",
        description="Lift 2D keypoints to 3D poses and refine them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
INPUT is a pose file of this package (.safetensors; its truth is not looked at, a lifter's
predictions in it are started from) or an .npz with the arrays
  keypoints   (N, J, 2) px, or (N, J, 3) with the confidence as third channel
  camera      (4,) or (N, 4): fx, fy, cx, cy in px
  confidence  (N, J), optional; 0 marks a missing joint
  root        (N, 3) mm in the camera frame, optional
  pose        (N, J, 3) mm relative to the root, optional: start from these, not the lifter's
  bone_length () or (N,) mm, optional: total length of the person's bones (erd_cuda.bone_length),
              to which the lifter's poses are scaled; 0 where unknown
OUTPUT (.npz or .safetensors) gets
  pose        (N, J, 3) mm, the refined poses
  root        (N, 3) mm, given or solved
  status      (N,) 0 where the root is known, else the reason why not (erd_cuda.RootStatus); such
              poses stay as the lifter made them
  stages      (K + 1, N, J, 3) mm with --stages: the lifter's poses, then those after each stage

data sets of any size:
INPUT may also be a Parquet file, or a folder with Parquet files, .npz files and pose files at any
depth; OUTPUT then is a folder. A row of a Parquet file is a sample, with columns named as the
arrays above:
  keypoints   list of J lists of 2 or 3 numbers, or one list of 2 J or 3 J
  camera      list of 4: a camera for every sample
  confidence  list of J, optional
  root        list of 3, optional
  pose        list of J lists of 3, or one list of 3 J, optional
  bone_length number, optional
Lists may be fixed-size lists or not. All other columns (names, frame numbers) are passed on, and
the output has them beside pose, root, status and, with --stages, stages (K + 1 poses a row).
Parquet files are streamed: memory does not grow with them. Other files are read one at a time.
Each .npz or pose file, and each --part-rows rows of a Parquet file, is a part with a file of its
own in OUTPUT. Stopped or killed, the same command goes on where it was; with another model, other
options or changed input it refuses to. A part whose numbers are wrong (NaN where a joint is not
missing, say) and a file that is damaged or has wrong columns are left out and named, the first 20
of them; all else is refined, the exit code is 2, and the same command tries them again, also if
their files have changed and have no results yet.
""",
    )
    parser.add_argument(
        "input", type=Path, metavar="INPUT", help="pose file, .npz, .parquet or folder, see below"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUTPUT",
        help=".npz or .safetensors; a folder for a folder or Parquet",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a model file, or the name of a bundled model",
    )
    parser.add_argument(
        "--root",
        choices=("given", "solve", "solve_each_stage"),
        help="where the root comes from (default: as the model was trained)",
    )
    parser.add_argument(
        "--stages", action="store_true", help="also write the poses after every stage"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16384, metavar="N", help="poses at a time"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="cpu, or a GPU as cuda or cuda:N (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="arithmetic of the stages: auto and fp32 are as exact as float32, bf16 and, on a GPU "
        "only, fp16 round to 16 bits (default: %(default)s)",
    )
    add_threads_option(parser)
    group = parser.add_argument_group("data sets of any size")
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="share the parts among N workers of Ray Data, each with --threads CPU threads (1), "
        "with --device cuda each with a GPU; on the cluster that RAY_ADDRESS names, else on this "
        "machine (default: this process alone, without Ray)",
    )
    group.add_argument(
        "--part-rows",
        type=positive,
        default=1_000_000,
        metavar="N",
        help="rows of a Parquet file that make a part, in whole row groups (default: 1000000)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from erd_cuda.refining.refiner import RefineOptions

    options = RefineOptions(
        args.model, args.root, args.stages, args.batch_size, args.device, args.precision
    )
    set_threads(args)
    if args.input.is_dir() or args.input.suffix == ".parquet":
        return _refine_dataset(args, options)
    if args.workers is not None:
        raise ValueError("--workers needs a folder or a Parquet file as INPUT")
    return _refine_file(args, options)


def _refine_file(args: argparse.Namespace, options: Any) -> int:
    from erd_cuda._files import check_directory
    from erd_cuda.refining.keypoint_input import read_input
    from erd_cuda.refining.refiner import Refiner, Stopwatch
    from erd_cuda.refining.result_file import RESULT_SUFFIXES, write_results

    if args.output.suffix not in RESULT_SUFFIXES:
        raise ValueError(f"the output must end in .npz or .safetensors, got {args.output.name!r}")
    check_directory(args.output)
    data = read_input(args.input)
    refiner = Refiner(options)
    refiner.check(data, args.input)
    found = refiner.warnings(data.root is not None, args.input)
    for sentence in found + refiner.unit_warnings(data, args.input):
        _warn(sentence)
    watch = Stopwatch()
    results = refiner(data)
    write_results(args.output, results)
    cost = watch.cost(len(data), int((results["status"] != 0).sum()))
    print(_report(args.output, cost, cost.wall, refiner.mode, options.device))
    return 0


def _refine_dataset(args: argparse.Namespace, options: Any) -> int:
    import time

    from erd_cuda._files import check_directory
    from erd_cuda.refining.dataset import refine_dataset

    if not args.input.exists():
        raise FileNotFoundError(f"there is no file {args.input}")
    if args.output.suffix in (".npz", ".safetensors", ".parquet") or args.output.is_file():
        raise ValueError(
            f"{args.input} makes many files, so the output must be a folder, got "
            f"{args.output.name!r}"
        )
    check_directory(args.output)
    began = time.perf_counter()
    summary = refine_dataset(
        args.input,
        args.output,
        options,
        part_rows=args.part_rows,
        workers=args.workers,
        threads=args.threads,
        warn=_warn,
    )
    seconds = time.perf_counter() - began
    report = _report(args.output, summary.cost, seconds, summary.mode, options.device)
    print(f"{report}; {summary.parts:,} parts, {summary.found:,} were there already")
    if summary.refused:
        total = summary.parts + summary.found + summary.refused
        raise ValueError(
            f"{summary.refused:,} of {total:,} parts could not be refined and have no results in "
            f"{args.output}; the same command tries them again"
        )
    return 0


def _warn(sentence: str) -> None:
    print(f"erd-cuda: {sentence}", file=sys.stderr)


def _report(output: Path, cost: Any, seconds: float, mode: str, device: str) -> str:
    return (
        f"{output}: {cost.poses:,} poses in {seconds:.2f} s, {cost.per_million(device)}, "
        f"root {mode}"
        + (f", {cost.failed:,} roots not solvable (see status)" if cost.failed else "")
    )
