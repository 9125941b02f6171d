"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erd_cuda.data import PoseDataset

__all__ = ["add_data_options", "add_threads_option", "load_data", "positive", "set_threads"]


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


def load_data(args: argparse.Namespace, split: str, *, drifted: bool = True) -> PoseDataset:
    """The dataset that the options of :func:`add_data_options` choose.

    ``drifted`` is that of :func:`erd_cuda.data.load_dataset`.
    """
    from erd_cuda.data import load_dataset

    return load_dataset(
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
