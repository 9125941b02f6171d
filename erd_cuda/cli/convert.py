"""``erd-cuda convert``: a data set into the package's own pickle-free pose file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erd_cuda.cli.options import JOINTS_HELP, UNDISTORT_HELP, positive

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "convert",
        description="Convert a data set into one pose file without pickles, which loads at once.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
INPUT is one of
  a folder with data_3d_NAME.npz, or that file: VideoPose3D's h36m and humaneva15; for any other
      NAME, cameras_NAME.json and meta_NAME.json must lie beside it
  a pose file (.safetensors), to take a part of it
  synthetic, or synthetic:SEED, for procedural motion
  cmu DIR, for the CMU motion capture database's own files: DIR/.../35/35.asf, 35_01.amc and so on
Pickles in the input are read by a restricted reader: arrays and builtin containers, nothing else.
""",
    )
    parser.add_argument("input", metavar="INPUT", nargs="+", help="folder or file, see below")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUTPUT",
        help="pose file (.safetensors)",
    )
    parser.add_argument(
        "--split",
        choices=("train", "test", "all"),
        default="all",
        help="subjects to write; a file of all still knows which are which (default: all)",
    )
    parser.add_argument(
        "--keypoints",
        metavar="KIND",
        help="2D keypoints: 'pinhole' or 'distorted' projections of the truth, or a detector's "
        "name such as 'cpn_ft_h36m_dbb' for its file data_2d_*_NAME.npz (default: pinhole, or "
        "whatever a pose file holds)",
    )
    parser.add_argument("--subjects", nargs="+", metavar="S", help="only these subjects")
    parser.add_argument("--actions", nargs="+", metavar="A", help="only these actions or takes")
    parser.add_argument(
        "--cameras",
        type=Path,
        metavar="PATH",
        help="camera JSON file, or HumanEva-I's own folder with S1/Calibration_Data/C1.cal",
    )
    parser.add_argument(
        "--joints",
        type=int,
        choices=(14, 15, 16, 17),
        help=JOINTS_HELP,
    )
    parser.add_argument("--undistort", action="store_true", help=UNDISTORT_HELP)
    parser.add_argument(
        "--drifted",
        choices=("in", "out"),
        default="in",
        help="whether to write the takes of Human3.6M's S9 whose 3D has drifted (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--stride", type=positive, default=1, metavar="N", help="every N-th frame (default: all)"
    )
    cmu = parser.add_argument_group("cmu DIR")
    cmu.add_argument(
        "--fps",
        type=float,
        metavar="N",
        help="frames per second to reduce the database's 120 to, before --stride (default: 30)",
    )
    cmu.add_argument(
        "--seed", type=int, metavar="N", help="seed that places the cameras (default: 0)"
    )
    cmu.add_argument(
        "--meta",
        type=Path,
        metavar="FILE",
        help="JSON with subjects_train and subjects_test, and perhaps actions, such as "
        '{"35_01": "Walk"} (default: the last fifth of the subjects is for testing)',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert as the options say, and print what was written."""
    from erd_cuda.data.posefile import check_name

    check_name(args.output)
    dataset = _cmu(args) if args.input[0] == "cmu" and len(args.input) == 2 else _load(args)
    dataset.save(args.output)
    size = args.output.stat().st_size / 1e6
    print(
        f"{args.output}: {len(dataset)} samples of {dataset.num_joints} joints "
        f"({dataset.skeleton.name}), {len(dataset.subjects)} subjects, {len(dataset.takes)} takes, "
        f"2D {dataset.keypoint_source}, {size:.1f} MB"
    )
    return 0


def _load(args: argparse.Namespace) -> PoseDataset:
    """What `erd_cuda.data.load_dataset` reads."""
    from erd_cuda.data import load_dataset

    if len(args.input) > 1:
        raise ValueError(
            f"INPUT: expected one path, or 'cmu' and a folder, got {' '.join(args.input)}."
        )
    for name in ("fps", "seed", "meta"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is only for 'convert cmu DIR'.")
    return load_dataset(
        args.input[0],
        args.split,
        keypoints=args.keypoints,
        subjects=args.subjects,
        actions=args.actions,
        cameras=args.cameras,
        joints=args.joints,
        stride=args.stride,
        undistort=args.undistort,
        drifted=args.drifted == "in",
    )


def _cmu(args: argparse.Namespace) -> PoseDataset:
    """The CMU database's files, with cameras of our own."""
    from erd_cuda.data import assemble, cmu_capture, undistorted

    keypoints = args.keypoints or "pinhole"
    if keypoints not in ("pinhole", "distorted"):
        raise ValueError(
            f"--keypoints: the CMU database has no images, so 2D is 'pinhole' or 'distorted', got "
            f"{keypoints!r}."
        )
    if args.drifted == "out":
        raise ValueError("--drifted: only Human3.6M has drifted takes, the CMU database has none.")
    if args.cameras is not None:
        raise ValueError(
            "--cameras: cameras are placed around the CMU database's people by --seed."
        )
    given = {name: getattr(args, name) for name in ("fps", "seed", "meta")}
    options = {name: value for name, value in given.items() if value is not None}
    capture = cmu_capture(args.input[1], subjects=args.subjects, **options)
    pairs = capture.choose(args.split, args.subjects, args.actions)
    dataset = assemble(
        capture, pairs, keypoints, detections=None, joints=args.joints, stride=args.stride
    )
    return undistorted(dataset) if args.undistort else dataset
