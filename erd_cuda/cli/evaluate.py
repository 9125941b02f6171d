"""``erd-cuda evaluate``: the errors of a trained model per action."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from erd_cuda.cli.options import (
    add_data_options,
    add_predictions,
    add_threads_option,
    load_data,
    positive,
    set_threads,
)

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "evaluate",
        description="Print MPJPE, P-MPJPE and N-MPJPE of the lifter and after every stage, per "
        "action and as the mean over actions.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model file, or the name of a bundled model"
    )
    add_data_options(parser)
    parser.add_argument(
        "--split",
        choices=("train", "test", "all"),
        default="test",
        help="which subjects (default: %(default)s)",
    )
    parser.add_argument(
        "--drifted",
        choices=("both", "in", "out"),
        default="both",
        help="Human3.6M's takes of S9 whose 3D has drifted (Greeting, SittingDown 1, Waiting 1): "
        "the table with them and the means without, the table with them, or the table without "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--root",
        choices=("given", "solve", "solve_each_stage", "both"),
        default="both",
        help="where the root comes from; both: given, and solved as the model was trained or once "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--per-subject",
        action="store_true",
        help="a row per subject and action (HumanEva's tables)",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="a lifter's poses for the chosen samples, in place of the model's own lifter: a pose "
        "file whose pose is the prediction, or an .npz with an array pose (N, J, 3), "
        "root-relative, mm",
    )
    parser.add_argument(
        "--known-size",
        action="store_true",
        help="tell the model every person's size, the mean length of the bones in the true poses",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument(
        "--batch-size", type=positive, default=16384, metavar="N", help="poses at a time"
    )
    add_threads_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from erd_cuda._files import check_directory, write_text
    from erd_cuda.evaluation import DRIFTED_TAKES, evaluate, without_drifted_takes
    from erd_cuda.modules import ERD

    for path in filter(None, (args.csv, args.json)):
        check_directory(path)
    set_threads(args)
    erd = ERD.from_pretrained(args.model)
    dataset = load_data(args, args.split, drifted=args.drifted != "out")
    dataset = add_predictions(dataset, args.predictions)
    roots = None if args.root == "both" else (args.root,)
    options: dict[str, Any] = {
        "roots": roots,
        "per_subject": args.per_subject,
        "known_size": args.known_size,
        "model_name": Path(args.model).name,
        "chunk": args.batch_size,
    }
    table = evaluate(erd, dataset, **options)
    sys.stdout.write(table.text())
    if args.csv is not None:
        write_text(args.csv, table.to_csv())
    if args.json is not None:
        write_text(args.json, table.to_json() + "\n")
    undrifted = without_drifted_takes(dataset) if args.drifted == "both" else None
    if undrifted is not None:
        print(f"\nwithout the takes whose 3D has drifted ({', '.join(DRIFTED_TAKES)}):")
        print(evaluate(erd, undrifted, **options).summary())
    return 0
