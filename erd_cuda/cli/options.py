"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset

__all__ = [
    "add_data_options",
    "add_predictions",
    "add_threads_option",
    "load_data",
    "positive",
    "set_threads",
]


JOINTS_HELP = (
    "16 drops Neck/Nose from Human3.6M's 17 joints, 14 Hip and Spine too, poses staying relative "
    "to the Hip (default: what the 2D has)"
)
UNDISTORT_HELP = (
    "take the lens distortion out of the 2D on reading; the cameras then are pinholes, as in the "
    "paper's projection"
)


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {value}")
    return value


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a dataset."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="folder of a dataset, a pose file (.safetensors), or 'synthetic' ('synthetic:SEED')",
    )
    group.add_argument(
        "--keypoints",
        metavar="KIND",
        help="2D keypoints: 'pinhole' or 'distorted' projections of the truth, or a detector's "
        "name such as 'cpn_ft_h36m_dbb' for its file data_2d_*_NAME.npz (default: pinhole, or "
        "whatever a pose file holds)",
    )
    group.add_argument(
        "--subjects", nargs="+", metavar="S", help="only these subjects (default: all of the split)"
    )
    group.add_argument(
        "--actions", nargs="+", metavar="A", help="only these actions (default: all)"
    )
    group.add_argument(
        "--cameras",
        type=Path,
        metavar="PATH",
        help="cameras file or folder, if it is not in the folder of the data",
    )
    group.add_argument(
        "--joints",
        type=int,
        choices=(14, 15, 16, 17),
        help=JOINTS_HELP,
    )
    group.add_argument("--undistort", action="store_true", help=UNDISTORT_HELP)
    group.add_argument(
        "--stride", type=positive, default=1, metavar="N", help="every N-th frame (default: all)"
    )
    group.add_argument(
        "--noise",
        type=float,
        metavar="PX",
        help="make exact 2D look detected, with this mean error (6.7 is CPN's on Human3.6M) and "
        "with confidences",
    )
    for name, text in (
        ("outliers", "share of the joints that lie anywhere on the person (default: 0.02)"),
        ("swaps", "share of left-right pairs that change places (default: 0.005)"),
        ("missing", "share of the joints that are not found (default: 0.02)"),
    ):
        group.add_argument(
            f"--noise-{name}", type=float, metavar="SHARE", help=f"with --noise: {text}"
        )
    group.add_argument(
        "--noise-seed", type=int, metavar="N", help="with --noise: its seed (default: 0)"
    )


def load_data(args: argparse.Namespace, split: str, *, drifted: bool = True) -> PoseDataset:
    """The dataset that the options of :func:`add_data_options` choose.

    ``drifted`` is that of :func:`erd_cuda.data.load_dataset`.
    """
    from erd_cuda.data import DetectorNoise, load_dataset

    shares = {
        name: getattr(args, f"noise_{name}")
        for name in ("outliers", "swaps", "missing")
        if getattr(args, f"noise_{name}") is not None
    }
    if args.noise is None:
        for name in (*shares, *(["seed"] if args.noise_seed is not None else [])):
            raise ValueError(f"--noise-{name} needs --noise")
        noise = None
    else:
        noise = DetectorNoise(args.noise, **shares)
    dataset = load_dataset(
        args.data,
        split,
        keypoints=args.keypoints,
        subjects=args.subjects,
        actions=args.actions,
        cameras=args.cameras,
        joints=args.joints,
        stride=args.stride,
        undistort=args.undistort,
        drifted=drifted,
    )
    return dataset if noise is None else noise.apply(dataset, args.noise_seed or 0)


def add_predictions(dataset: PoseDataset, path: Path | None) -> PoseDataset:
    """The dataset with the predictions of that file as initial poses, if one is named."""
    if path is None:
        return dataset
    from erd_cuda.data import with_predictions

    return with_predictions(dataset, path)


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``."""
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)"
    )


def set_threads(args: argparse.Namespace) -> None:
    """Obey ``--threads``."""
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
