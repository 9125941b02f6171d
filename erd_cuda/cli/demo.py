"""``erd-cuda demo``: the bundled model on motion it has not seen, as table, page and picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erd_cuda.cli.options import add_threads_option, set_threads

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset
    from erd_cuda.demo import Clip, StageErrors
    from erd_cuda.modules import ERD

__all__ = ["add_parser", "run"]

MODEL = "cmu17-given-root"
BATCHES = (1, 200, 4096)
POSES, POSES_QUICK = 24_000, 3_000  # measured at most, spread evenly over the data
ROUNDS, ROUNDS_QUICK = 15, 5


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "demo",
        description="Show a model on motion it has not seen: errors stage by stage, speed against "
        "torch eager, a page with 3D skeletons to turn and play, and a picture.",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("erd-demo"),
        metavar="DIR",
        help="directory for demo.html and demo.png, made if need be (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        default=MODEL,
        metavar="NAME",
        help="name of a bundled model, or a model file (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        default="synthetic",
        metavar="PATH",
        help="data whose test subjects are shown: a folder, a pose file (.safetensors), or "
        "procedural motion, 'synthetic' or 'synthetic:SEED' (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure fewer poses and take shorter timings"
    )
    add_threads_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from erd_cuda.data import load_dataset
    from erd_cuda.demo import choose_clips, measure_errors
    from erd_cuda.modules import ERD

    set_threads(args)
    erd = ERD.from_pretrained(args.model)
    dataset = load_dataset(args.data, "test")
    args.out.mkdir(parents=True, exist_ok=True)
    limit = POSES_QUICK if args.quick else POSES
    errors = measure_errors(erd, dataset[:: -(-len(dataset) // limit)])
    name = Path(args.model).stem if Path(args.model).is_file() else args.model
    print_errors(name, erd, dataset, errors)
    print_speed(erd, dataset, ROUNDS_QUICK if args.quick else ROUNDS)
    clips = choose_clips(erd, dataset, errors)
    write_files(args.out, name, erd, clips, errors)
    return 0


def print_errors(name: str, erd: ERD, dataset: PoseDataset, errors: StageErrors) -> None:
    """Print the table of errors by action and stage."""
    subjects = [dataset.subjects[index] for index in dataset.subject.unique().tolist()]
    root = "given root" if erd.root == "given" else "root solved from the 2D"
    measured = len(errors.dataset)
    some = "" if measured == len(dataset) else f" of {len(dataset):,}"
    print(f"{name} on {dataset.name}, subjects it has not seen: {', '.join(subjects)}")
    print(f"MPJPE in mm, {root}, {measured:,}{some} poses\n")
    print(errors.table() + "\n")
    print(errors.verdict())
    if dataset.name == "synthetic":
        print(
            "This motion is procedural; its people and movements are simpler than real ones. "
            "--data DIR shows real motion capture."
        )
    print()


def print_speed(erd: ERD, dataset: PoseDataset, rounds: int) -> None:
    """Print the table of poses per second."""
    from tabulate import tabulate

    from erd_cuda.demo import compare_speed, machine

    print(f"Poses per second through {erd.stages} stages, without the lifter")
    print(f"{machine()}; medians, both timed in turn\n")
    rows = []
    for batch in BATCHES:
        speed = compare_speed(erd, dataset, batch, rounds)
        rows.append(
            [
                f"{batch:,}",
                f"{speed.fused:,.0f}",
                f"{speed.eager:,.0f}",
                f"{speed.ratio:.1f}x",
                f"{speed.lowest:.1f}x to {speed.highest:.1f}x",
                speed.rounds,
                f"{speed.difference:.0e} mm",
            ]
        )
    headers = ["batch", "fused op", "torch eager", "ratio", "range", "rounds", "largest difference"]
    print(tabulate(rows, headers, colalign=["right"] * len(headers), disable_numparse=True) + "\n")


def write_files(out: Path, name: str, erd: ERD, clips: list[Clip], errors: StageErrors) -> None:
    """Write demo.html and demo.png and print where they are."""
    from erd_cuda.viewer import write_page, write_picture

    mean = errors.mean()
    data = f"{errors.dataset.name} motion"
    page = write_page(
        out / "demo.html",
        [clip.sequence for clip in clips],
        description="A lifter guesses a 3D pose from 2D keypoints. Each stage projects it back "
        f"into the image, sees where it misses, and corrects it. {erd.stages} stages of {name} on "
        f"{data} it has not seen: {mean[0]:.1f} mm before, {mean[-1]:.1f} mm after.",
        notes=page_notes(erd),
    )
    print(f"page     {page}")
    # The page has every clip; the picture has room for four of them, spread evenly.
    shown = clips
    if len(clips) > 4:
        shown = [clips[round(i * (len(clips) - 1) / 3)] for i in range(4)]
    try:
        picture = write_picture(
            out / "demo.png",
            [clip.sequence for clip in shown],
            [clip.frame for clip in shown],
            title=f"{name} on {data} it has not seen",
        )
    except ImportError as error:
        print(f"picture  not drawn: {error}", file=sys.stderr)
    else:
        print(f"picture  {picture}")


def page_notes(erd: ERD) -> list[str]:
    """How the clips were chosen, and whom the model's data are owed to."""
    notes = [
        "MPJPE is the mean distance of the joints from the truth, with the root joints aligned. "
        "For every action the clip shown is the one with the median error of all its takes and "
        "cameras, not the best one."
    ]
    acknowledgement = erd.notes.get("acknowledgement")
    return notes if acknowledgement is None else [*notes, str(acknowledgement)]
