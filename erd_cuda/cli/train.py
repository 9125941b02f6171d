"""``erd-cuda train``: train a lifter, then the refinement stages."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from erd_cuda._definitions import FEATURES, LIFTER_SIZES
from erd_cuda.cli.options import (
    add_data_options,
    add_predictions,
    add_threads_option,
    load_data,
    positive,
    set_threads,
)

__all__ = ["add_parser", "run"]

# Options whose value goes into the field of TrainConfig of the same name.
CONFIG_OPTIONS = (
    "stages",
    "width",
    "block",
    "features",
    "pca",
    "root",
    "dropout",
    "confidence_weights",
    "residual_limit",
    "lifter_width",
    "lifter_blocks",
    "lifter_epochs",
    "stage_epochs",
    "seed",
)
# Schedule options: one name for both phases, and one each.
SCHEDULE_OPTIONS = ("batch_size", "lr", "lr_decay")


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "train",
        description="Train a lifter, then the stages one after the other with everything before "
        "them frozen. The defaults are the paper's schedule. The test subjects are never used to "
        "choose anything.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
several processes:
  torchrun --standalone --nproc-per-node N --max-restarts M -m erd_cuda train ...
trains on N processes, with --device cuda on a GPU each. Every process takes its part of every batch
(--batch-size is the whole one's), and losses and model are those of one process up to rounding. The
first process writes and shows. Where one dies, torchrun starts them all again, up to M times, and
they go on after the last finished epoch; --resume does that by hand, with any number of processes.
""",
    )
    add_data_options(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of the run: model.safetensors, config.json, log.csv, checkpoint.pt",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in DIR after its last finished epoch",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="where to train: cpu, or a GPU as cuda or cuda:N, which has been tested with emulated "
        "kernels only (default: %(default)s)",
    )
    add_threads_option(parser)

    model = parser.add_argument_group("model")
    model.add_argument(
        "--recipe",
        choices=("paper", "best"),
        default="paper",
        help="paper: the paper's settings; best: two stages, joints that weigh as much as their "
        "confidence, and a residual limit; other options override either (default: %(default)s)",
    )
    model.add_argument(
        "--lifter",
        metavar="KIND",
        help="the network to train, one of "
        + ", ".join(LIFTER_SIZES)
        + "; or a trained model (file or bundled name) whose lifter is kept as it is (default: "
        "martinez)",
    )
    model.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="poses that a lifter of your own predicted for the training samples, in place of "
        "--lifter: a pose file whose pose is the prediction, or an .npz with an array pose "
        "(N, J, 3), root-relative, mm",
    )
    model.add_argument(
        "--test-predictions",
        type=Path,
        metavar="FILE",
        help="the same for the test subjects that --eval-every shows (default: the file of "
        "--predictions)",
    )
    model.add_argument(
        "--lifter-width",
        type=positive,
        metavar="N",
        help="hidden width of the lifter, of lcn and semgcn per joint (default: " + _sizes(0) + ")",
    )
    model.add_argument(
        "--lifter-blocks",
        type=int,
        metavar="N",
        help=f"residual blocks of the lifter (default: {_sizes(1)})",
    )
    model.add_argument(
        "--stages", type=positive, metavar="K", help="refinement stages (default: 4; best: 2)"
    )
    model.add_argument(
        "--width", type=positive, metavar="N", help="hidden width of a stage (default: 256)"
    )
    model.add_argument(
        "--block",
        choices=("linear", "relu"),
        help="the paper's linear block, or one with a ReLU (default: linear)",
    )
    model.add_argument(
        "--features",
        choices=FEATURES,
        help="input of a stage: the residual, one of the paper's ablations, or the residual and "
        "the current pose (default: residual)",
    )
    model.add_argument(
        "--pca",
        type=positive,
        metavar="N",
        help="principal components of the 2D, not for lcn and semgcn (default: no PCA)",
    )
    model.add_argument(
        "--root",
        choices=("given", "solve", "solve_each_stage"),
        help="root joint: the data's, solved once from the lifter's pose, or again before each "
        "stage (default: given)",
    )
    model.add_argument(
        "--confidence-weights",
        action=argparse.BooleanOptionalAction,
        help="let the joints weigh as much as their confidence in residual and root solve, or all "
        "that are not missing alike (default: alike; best: as much as their confidence)",
    )
    model.add_argument(
        "--residual-limit",
        type=float,
        metavar="PX",
        help="px, the most that each coordinate of a residual counts; inf: no limit (default: "
        "inf; best: 25)",
    )
    model.add_argument(
        "--dropout",
        type=float,
        metavar="P",
        help="dropout of lifter and stages; semgcn has none (default: 0.25)",
    )

    schedule = parser.add_argument_group("schedule")
    schedule.add_argument(
        "--lifter-epochs", type=positive, metavar="N", help="epochs of the lifter (default: 200)"
    )
    schedule.add_argument(
        "--stage-epochs", type=positive, metavar="N", help="epochs of each stage (default: 5)"
    )
    for name, kind, metavar, text in (
        ("batch-size", positive, "N", "batch size (default: 200)"),
        ("lr", float, "LR", "Adam's learning rate (default: 0.001)"),
        (
            "lr-decay",
            float,
            "D",
            "learning rate factor, every epoch of the lifter, every 2 of a stage (default: 0.96)",
        ),
    ):
        schedule.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
        schedule.add_argument(
            f"--lifter-{name}", type=kind, metavar=metavar, help=f"--{name} of the lifter only"
        )
        schedule.add_argument(
            f"--stage-{name}", type=kind, metavar=metavar, help=f"--{name} of the stages only"
        )
    schedule.add_argument(
        "--seed", type=int, metavar="N", help="seed of everything random (default: 0)"
    )

    display = parser.add_argument_group("display")
    display.add_argument(
        "--eval-every",
        type=positive,
        metavar="N",
        help="show the error on the test subjects every N epochs (default: never; only shown)",
    )
    display.add_argument(
        "--tensorboard",
        nargs="?",
        type=Path,
        const=True,
        metavar="DIR",
        help="write TensorBoard logs, to the run's own directory if none is named",
    )
    display.add_argument("--quiet", action="store_true", help="no progress")


def _sizes(which: int) -> str:
    """The lifters' own widths (0) or blocks (1), for a help text."""
    return ", ".join(f"{name} {size[which]}" for name, size in LIFTER_SIZES.items())


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from erd_cuda.modules import ERD, Lifter
    from erd_cuda.training import RECIPES, TrainConfig, TrainingInterrupted, train
    from erd_cuda.training.ranks import Ranks, group_of_torchrun, restarted_by_torchrun

    set_threads(args)
    _check_lifter_options(args)
    values = {name: getattr(args, name) for name in CONFIG_OPTIONS}
    if args.lifter in LIFTER_SIZES:
        values["lifter"] = args.lifter
    for name in SCHEDULE_OPTIONS:
        for phase in ("lifter", "stage"):
            own = getattr(args, f"{phase}_{name}")
            values[f"{phase}_{name}"] = getattr(args, name) if own is None else own
    chosen = {name: value for name, value in values.items() if value is not None}
    config = TrainConfig(**(RECIPES[args.recipe] | chosen))

    lifter, skeleton = None, None
    if args.lifter is not None and args.lifter not in LIFTER_SIZES:
        trained = ERD.from_pretrained(args.lifter)
        if not isinstance(trained.lifter, Lifter):
            raise ValueError(f"the model {args.lifter} holds no lifter")
        lifter, skeleton = trained.lifter, trained.skeleton
    begun = (args.out / "checkpoint.pt").exists()
    resume = args.resume or (begun and restarted_by_torchrun())
    if begun and not resume:
        raise ValueError(
            f"{args.out} already holds a training run: continue it with --resume, or name another "
            "directory"
        )
    dataset = add_predictions(load_data(args, "train"), args.predictions)
    if dataset.initial is not None and args.lifter in LIFTER_SIZES:
        raise ValueError(
            f"{args.data} holds a lifter's predictions, which the stages begin with, so --lifter "
            f"{args.lifter} would not be trained; leave it out"
        )
    if skeleton is not None and skeleton.joints != dataset.skeleton.joints:
        raise ValueError(
            f"the lifter of {args.lifter} was trained on the skeleton {skeleton.name!r}, "
            f"the data has {dataset.skeleton.name!r}"
        )
    held_out = None
    if args.eval_every is not None:
        held_out = add_predictions(_test_subjects(args), args.test_predictions or args.predictions)
    with group_of_torchrun(args.device) as device:
        ranks = Ranks.of_this_process()
        leads = ranks is None or ranks.rank == 0
        try:
            train(
                config,
                dataset,
                args.out,
                lifter=lifter,
                held_out=held_out,
                eval_every=args.eval_every or 1,
                resume=resume,
                tensorboard=args.out / "tensorboard"
                if args.tensorboard is True
                else args.tensorboard,
                progress=not args.quiet,
                device=device,
            )
        except TrainingInterrupted as interruption:
            if not leads:
                return 130
            advice = ""
            if interruption.resumable:
                again = shlex.join([*args.command_line, *(() if args.resume else ("--resume",))])
                advice = f"; continue with: erd-cuda {again}"
            raise KeyboardInterrupt(f"{interruption}{advice}") from None
    if leads:
        print(f"the model is in {args.out / 'model.safetensors'}")
    return 0


def _check_lifter_options(args: argparse.Namespace) -> None:
    if args.predictions is not None and args.lifter is not None:
        raise ValueError(
            "--lifter and --predictions exclude each other: the stages begin with one or the other"
        )
    if args.test_predictions is not None and (args.predictions is None or not args.eval_every):
        raise ValueError(
            "--test-predictions needs --predictions and --eval-every, which shows the test error"
        )


def _test_subjects(args: argparse.Namespace) -> Any:
    """The test split, whose subjects are others than ``--subjects`` names."""
    return load_data(argparse.Namespace(**{**vars(args), "subjects": None}), "test")
