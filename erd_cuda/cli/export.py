"""``erd-cuda export``: a trained model for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "export",
        description="Write a trained model for programs without this package.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
The formats
  onnx  lifter and stages in standard operators, opset 17 (needs the package onnx)
  aoti  lifter and stages as an AOTInductor package (.pt2) for Python and C++ programs with torch,
        compiled for this machine's kind of processor (needs a C++ compiler)
  cpp   the stages' weights for the C++ library, find_package(erd_cuda), without torch and Python
onnx and aoti take N samples at once: keypoints (N, J, 2) and pose (N, J, 3) if asked for,
intrinsics (N, 4), distortion (N, 5) with a lens, root (N, 3) if it is given, confidence (N, J) and
bone_length (N,) if asked for. The result is refined (N, J, 3).
""",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model file, or the name of a bundled model"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the file to write")
    parser.add_argument("--format", required=True, choices=("onnx", "aoti", "cpp"))
    parser.add_argument(
        "--root",
        choices=("given", "solve", "solve_each_stage"),
        help="where the root comes from (default: as the model was trained)",
    )
    group = parser.add_argument_group("inputs of onnx and aoti")
    group.add_argument(
        "--camera",
        choices=("pinhole", "opencv", "h36m"),
        help="the camera's lens (default: pinhole)",
    )
    group.add_argument("--confidence", action="store_true", help="take confidences")
    group.add_argument(
        "--pose", action="store_true", help="take the poses to refine, and leave out the lifter"
    )
    group.add_argument("--bone-length", action="store_true", help="take the person's size")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from erd_cuda import export
    from erd_cuda._files import check_directory
    from erd_cuda.modules import ERD

    check_directory(args.output)
    asked = {
        "camera_model": args.camera,
        "confidence": args.confidence,
        "pose": args.pose,
        "bone_length": args.bone_length,
    }
    options = {name: value for name, value in asked.items() if value}
    if args.format == "cpp" and options:
        name = next(iter(options)).replace("camera_model", "camera").replace("_", "-")
        raise ValueError(f"--{name} is for --format onnx and aoti: a C++ call says what it brings")
    erd = ERD.from_pretrained(args.model)
    if args.format == "cpp":
        export.to_cpp(erd, args.output, root=args.root)
    else:
        write = export.to_onnx if args.format == "onnx" else export.to_package
        write(erd, args.output, root=args.root, **options)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")
    return 0
