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
bone_length (N,) if asked for. The result is refined (N, J, 3). What the written file takes is
printed.
""",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model file, or the name of a bundled model"
    )
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUTPUT",
        help="the file to write: .onnx, for aoti .pt2, for cpp .safetensors",
    )
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
    from erd_cuda.export.output_file import check_output
    from erd_cuda.export.signature import Signature
    from erd_cuda.modules import ERD

    check_output(args.output, args.format)
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
        about = f", {erd.stages} stages, {erd.num_joints} joints, root {args.root or erd.root}"
    else:
        signature = Signature.of(erd, root=args.root, **options)
        write = export.to_onnx if args.format == "onnx" else export.to_package
        write(erd, args.output, root=args.root, **options)
        about = "\n" + _calling(signature, str(erd.mean2d.dtype), by_name=args.format == "onnx")
    print(f"{args.output}: {args.output.stat().st_size:,} bytes{about}")
    return 0


def _calling(signature: Any, dtype: str, by_name: bool) -> str:
    """How the written file is called, as a table."""
    from tabulate import tabulate

    dtype = dtype.removeprefix("torch.")
    rows = [["", name, shape, dtype, meaning] for name, shape, meaning in signature.described()]
    rows[0][0] = "takes" if by_name else "takes, in this order"
    rows[-1][0] = "gives"
    return tabulate(rows, tablefmt="plain", disable_numparse=True)
