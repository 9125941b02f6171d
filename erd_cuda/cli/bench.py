"""``erd-cuda bench``: everything beside its peers, as a page, as JSON, against an earlier run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from erd_cuda.cli.options import add_threads_option, set_threads

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "bench",
        description="Time the operators, a training step and the whole model beside torch eager, "
        "torch.compile, ONNX Runtime and OpenVINO (on a GPU: CUDA graphs, Triton and CuPy), each "
        "checked against float64 first. Needs pip install 'erd-cuda[bench]'. Ends with status 1 "
        "if a contender gave wrong results, or if --compare finds something slower.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes and shorter timings: within 5 minutes"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="what is measured (default: a GPU, if there is one for which this build has kernels)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("erd-bench.html"),
        metavar="FILE",
        help="the page (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same figures as JSON")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="the JSON file of an earlier run: what got slower by more than the noise of both?",
    )
    # Everything runs and nothing is measured.
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    add_threads_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from erd_cuda._files import check_directory, write_text
    from erd_cuda.benchmarks import compare, results, targets
    from erd_cuda.benchmarks.machine import machine_facts
    from erd_cuda.benchmarks.measure import SuitesFailedError, check_installed, measure
    from erd_cuda.benchmarks.report import write_report

    # All that can be wrong is found before minutes have passed.
    check_installed()
    set_threads(args)
    device = choose_device(args.device)
    for path in filter(None, (args.out, args.json)):
        check_directory(path)
    old = None
    if args.compare is not None:
        old = results.read(args.compare)
        compare.check_comparable(old, machine_facts(device), device)
    begin = time.monotonic()
    plan = "tiny" if args.tiny else "quick" if args.quick else "full"
    try:
        found = measure(plan, device, args.threads)
    except SuitesFailedError as error:
        print(f"erd-cuda: {error}", file=sys.stderr)
        return 1
    write_text(args.out, write_report(found))
    if args.json is not None:
        write_text(args.json, json.dumps(found, indent=1) + "\n")
    status = 0
    if found["targets"]:
        print(targets.table(found["targets"]) + "\n")
    for row in found["rows"]:
        if "failed" in row:
            status = 1
            print(f"FAILED {row['suite']}, batch {row['batch']:,}, {row['contender']}: ", end="")
            print(row["failed"])
    absent = {(row["contender"], row["missing"]) for row in found["rows"] if "missing" in row}
    for contender, reason in sorted(absent):
        print(f"not measured: {contender}: {reason}")
    if old is not None:
        changes = compare.changes(old, found)
        print(f"\n{compare.table(changes)}\n")
        if not compare.has_fractions(old):
            print(
                f"{args.compare} is older than fractions of the ceilings by turns: its fractions "
                "are of ceilings that were measured minutes apart, and are not compared"
            )
        slower = sum(change["slower"] for change in changes)
        print(f"{slower} of {len(changes)} figures got slower by more than the noise of both runs")
        status = 1 if slower else status
    print(f"page  {args.out}  ({time.monotonic() - begin:.0f} s)")
    return status


def choose_device(asked: str) -> str:
    """ "cpu" or "cuda".

    Raises:
        ValueError: a GPU was asked for that cannot be measured.
    """
    import torch

    import erd_cuda

    reason = None
    if not torch.cuda.is_available():
        reason = "torch finds no GPU"
    elif not erd_cuda.build_info()["cuda"]:
        reason = "this build of erd_cuda has no CUDA kernels"
    if asked == "cuda" and reason is not None:
        raise ValueError(f"--device is cuda, but {reason}")
    return "cpu" if asked == "cpu" or reason is not None else "cuda"
