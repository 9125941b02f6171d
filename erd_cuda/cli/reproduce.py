"""``erd-cuda reproduce``: the paper's tables and figures, from training on."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erd_cuda.cli.options import add_threads_option, positive, set_threads

if TYPE_CHECKING:
    from erd_cuda.reproduce import Schedule, Source, Sources

__all__ = ["add_parser", "run"]

WHAT = {
    "table1": "errors per action",
    "table2": "what a stage sees",
    "table3": "three lifters",
    "table4": "HumanEva-I",
    "figure2": "poses beside the truth",
    "figure3": "error by stage",
    "backprojection": "lifting the projected pose once more",
    "pca": "PCA on and off",
    "beyond": "options that the paper does not have",
    "all": "everything",
}

#: What the paper's table 4 is of; HumanEva-I has other actions too.
HUMANEVA_ACTIONS = ("Walking", "Jog", "Box")


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "reproduce",
        description="Train what is missing and print the paper's tables, with its numbers beside "
        "ours where the data are the paper's. What has been trained is kept; after an interruption "
        "the same command goes on. WHAT: "
        + "; ".join(f"{name}, {text}" for name, text in WHAT.items())
        + ".",
    )
    parser.add_argument("what", nargs="+", choices=list(WHAT), metavar="WHAT")
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="folder of Human3.6M in VideoPose3D's files, or of other motion, or a pose file",
    )
    parser.add_argument(
        "--detections",
        metavar="NAME",
        help="detected 2D: NAME of data_2d_*_NAME.npz beside the poses (default: a simulated "
        "detector)",
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=6.7,
        metavar="PX",
        help="mean error of the simulated detector (default: %(default)s, CPN's on Human3.6M)",
    )
    parser.add_argument(
        "--humaneva",
        metavar="PATH",
        help="folder of HumanEva-I for table4, or its data_3d_humaneva15.npz (default: motion of "
        "--data in HumanEva's format)",
    )
    parser.add_argument(
        "--humaneva-cameras",
        type=Path,
        metavar="PATH",
        help="its cameras: folder with S1/Calibration_Data/C1.cal, or a JSON file (default: the "
        "folder of --humaneva)",
    )
    parser.add_argument(
        "--humaneva-detections",
        metavar="NAME",
        help="its detected 2D, as --detections (default: a simulated detector)",
    )
    parser.add_argument(
        "--cameras",
        type=Path,
        metavar="PATH",
        help="camera JSON file, if it is not in the folder of --data",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("reproduction"),
        metavar="DIR",
        help="folder of tables, figures, report.html and runs/ (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, fewer poses and epochs, a narrower lifter",
    )
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="number of seeds (default: 3, --quick: 1)"
    )
    parser.add_argument(
        "--lifter-epochs", type=positive, metavar="N", help="default: 200, --quick: 8"
    )
    parser.add_argument(
        "--max-poses",
        type=positive,
        metavar="N",
        help="training poses, thinned out evenly (default: all, --quick: 40000)",
    )
    add_threads_option(parser)


def schedule_of(args: argparse.Namespace) -> Schedule:
    """The schedule that the options ask for."""
    from erd_cuda.reproduce import Schedule

    schedule = Schedule()
    if args.quick:
        schedule = Schedule(
            seeds=(0,), most_poses=40_000, lifter_epochs=8, lifter_lr_decay=0.7, martinez_width=512
        )
    changes: dict[str, Any] = {}
    if args.seeds is not None:
        changes["seeds"] = tuple(range(args.seeds))
    if args.lifter_epochs is not None:
        changes["lifter_epochs"] = args.lifter_epochs
    if args.max_poses is not None:
        changes["most_poses"] = args.max_poses
    return replace(schedule, **changes)


def sources_of(args: argparse.Namespace, what: list[str]) -> Sources:
    """The data; HumanEva-I's stand-in is written into the folder of the results."""
    from erd_cuda.reproduce import Source, Sources

    main = Source(args.data, args.detections, args.noise, args.cameras)
    by_name = {"main": main}
    if "table4" in what:
        by_name["humaneva"] = _humaneva(args, main)
    return Sources(by_name)


def _humaneva(args: argparse.Namespace, main: Source) -> Source:
    from erd_cuda.reproduce import Source
    from erd_cuda.reproduce.humaneva_stand_in import write_stand_in

    if args.humaneva is None:
        path = write_stand_in(args.data, args.out / "humaneva_stand_in")
        return Source(str(path), None, args.noise, path, same_detector=main)
    path = Path(args.humaneva)
    cameras = args.humaneva_cameras or (path.parent if path.is_file() else path)
    return Source(
        args.humaneva, args.humaneva_detections, args.noise, cameras, actions=HUMANEVA_ACTIONS
    )


def chosen(args: argparse.Namespace) -> list[str]:
    """The experiments that are asked for, in the paper's order.

    A pose file has no world coordinates to make the stand-in of HumanEva-I from: "all" then leaves
    table 4 out, and says so.
    """
    from erd_cuda.data.posefile import SUFFIX

    names = [name for name in WHAT if name != "all" and (name in args.what or "all" in args.what)]
    if "table4" in args.what or args.humaneva is not None or not args.data.endswith(SUFFIX):
        return names
    if "table4" in names:
        print(
            "erd-cuda: table4 is left out, it needs --humaneva DIR beside a pose file",
            file=sys.stderr,
        )
        names.remove("table4")
    return names


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from erd_cuda.data.videopose3d import H36M
    from erd_cuda.reproduce import EXPERIMENTS, Bench, Runner
    from erd_cuda.reproduce.figures import (
        FIGURE2_JOB,
        can_draw,
        check_drawing,
        draw_figure2,
        draw_figure3,
    )
    from erd_cuda.reproduce.report import configuration, write_report, write_table

    set_threads(args)
    what = chosen(args)
    if {"figure2", "figure3"} & set(what):
        check_drawing()
    args.out.mkdir(parents=True, exist_ok=True)
    schedule, sources = schedule_of(args), sources_of(args, what)
    runner = Runner(args.out, sources, schedule)
    main = sources.test("main", "GT2D")
    printed = set()
    if main.name == H36M:
        printed = {"GT2D"} if args.detections is None else {"GT2D", "DET2D"}
    bench = Bench(
        runner,
        schedule,
        frozenset(printed),
        args.humaneva is not None,
        sources.by_name["main"].kinds(),
        main.num_joints,
    )
    jobs = {name: bench.jobs(experiment) for name, experiment in EXPERIMENTS.items()}
    jobs["figure2"] = bench.seeds(FIGURE2_JOB)[:1]
    began = time.monotonic()
    runner.run(job for name in what for job in jobs[name])

    tables, pictures = [], []
    # The page also keeps what an earlier call has made, figures if there is something to draw with.
    for name in WHAT:
        if name not in jobs or not runner.have(jobs[name]):
            continue
        if name == "figure2":
            pictures += draw_figure2(args.out, bench, sources)[:1] if can_draw() else []
            continue
        table = EXPERIMENTS[name].table(bench)
        write_table(args.out, table)
        tables.append(table)
        if name in what:
            sys.stdout.write(table.markdown() + "\n")
        if name == "figure3" and can_draw():
            pictures += draw_figure3(args.out, table)[:1]
    facts = configuration(schedule, sources, runner, time.monotonic() - began)
    page = write_report(args.out, tables, pictures, facts)
    print(f"everything is in {page}")
    return 0
