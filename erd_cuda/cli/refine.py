"""``erd-cuda refine``: a trained model over a file of 2D keypoints."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from erd_cuda.cli.options import add_threads_option, positive, set_threads

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "refine",
        description="Lift 2D keypoints to 3D poses and refine them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
INPUT is a pose file of this package (.safetensors; its truth is not looked at, a lifter's
predictions in it are started from) or an .npz with the arrays
  keypoints   (N, J, 2) px, or (N, J, 3) with the confidence as third channel
  camera      (4,) or (N, 4): fx, fy, cx, cy in px
  confidence  (N, J), optional; 0 marks a missing joint
  root        (N, 3) mm in the camera frame, optional
  pose        (N, J, 3) mm relative to the root, optional: start from these, not the lifter's
  bone_length () or (N,) mm, optional: total length of the person's bones (erd_cuda.bone_length),
              to which the lifter's poses are scaled; 0 where unknown
OUTPUT (.npz or .safetensors) gets
  pose        (N, J, 3) mm, the refined poses
  root        (N, 3) mm, given or solved
  status      (N,) 0 where the root is known, else the reason why not (erd_cuda.RootStatus); such
              poses stay as the lifter made them
  stages      (K + 1, N, J, 3) mm with --stages: the lifter's poses, then those after each stage
""",
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="pose file or .npz, see below")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUTPUT", help=".npz or .safetensors"
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a model file, or the name of a bundled model",
    )
    parser.add_argument(
        "--root",
        choices=("given", "solve", "solve_each_stage"),
        help="where the root comes from (default: as the model was trained)",
    )
    parser.add_argument(
        "--stages", action="store_true", help="also write the poses after every stage"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16384, metavar="N", help="poses at a time"
    )
    add_threads_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from erd_cuda._files import check_directory
    from erd_cuda.cli.keypoint_input import check_against_model, read_input
    from erd_cuda.evaluation import staged_poses
    from erd_cuda.modules import ERD

    if args.output.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"the output must end in .npz or .safetensors, got {args.output.name!r}")
    check_directory(args.output)
    set_threads(args)
    data = read_input(args.input)
    erd = ERD.from_pretrained(args.model)
    check_against_model(data, erd, args.input)
    mode = args.root or erd.root
    if mode == "given" and data.root is None:
        if args.root == "given":
            raise ValueError(f"{args.input} holds no root, so --root given is impossible")
        raise ValueError(
            f"{args.input} holds no root and the model was trained with given ones: add an array "
            "root, take a model trained with --root solve, or try --root solve with this one"
        )
    if mode != "given" and erd.root == "given":
        print(
            "erd-cuda: the model was trained with given roots; with solved ones its poses can be "
            "worse than the lifter's (evaluate tells, --stages writes both)",
            file=sys.stderr,
        )
    if mode != "given" and data.root is not None:
        print(
            f"erd-cuda: {args.input} holds a root, which is not used: it is solved for, as the "
            "model was trained or --root asks; --root given takes the file's",
            file=sys.stderr,
        )

    count, joints, _ = data.keypoints.shape
    kept = len(erd.regressors) + 1 if args.stages else 1
    stages = torch.empty(kept, count, joints, 3)
    root = torch.empty(count, 3)
    status = torch.empty(count, dtype=torch.int32)
    began = time.perf_counter()
    for part, result in staged_poses(
        erd,
        data.keypoints,
        data.camera,
        data.root if mode == "given" and data.root is not None else mode,
        data.confidence,
        data.pose,
        chunk=args.batch_size,
        bone_length=data.bone_length,
    ):
        stages[:, part] = result.stages[-kept:]
        root[part], status[part] = result.root, result.status
    seconds = time.perf_counter() - began

    # safetensors refuses tensors that share memory.
    arrays = {"pose": stages[-1].clone(), "root": root, "status": status}
    if args.stages:
        arrays["stages"] = stages
    _write(args.output, arrays)
    failed = int((status != 0).sum())
    print(
        f"{args.output}: {count:,} poses in {seconds:.2f} s, root {mode}"
        + (f", {failed:,} roots not solvable (see status)" if failed else "")
    )
    return 0


def _write(path: Path, arrays: dict[str, Any]) -> None:
    from erd_cuda._files import replacing

    with replacing(path) as temporary:
        if path.suffix == ".npz":
            import numpy as np

            np.savez(temporary, **{name: value.numpy() for name, value in arrays.items()})
        else:
            from safetensors.torch import save_file

            save_file(arrays, temporary, metadata={"format": "erd_cuda.refined"})
