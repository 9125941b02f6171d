"""A whole ERD, lifter and stages, as an ONNX model of standard operators."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import replacing
from .onnx_geometry import GraphCamera, Joints
from .onnx_graph import Graph, Value, import_onnx
from .onnx_lifter import lift
from .onnx_stages import Stages, finished, graph_inputs
from .output_file import check_output
from .signature import ExportOptions, Signature

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..data.skeleton import Skeleton
    from ..modules import ERD


def onnx_model(erd: ERD, **options: Unpack[ExportOptions]) -> Any:
    """An ONNX model that does what the ERD does in eval mode, for any size of batch.

    Its inputs, by name: ``keypoints`` (N, J, 2) px; ``intrinsics`` (N or 1, 4) px; ``distortion``
    (N or 1, 5) unless the camera is a pinhole; ``root`` (N, 3) mm if it is given; and those of
    ``confidence`` (N, J), ``pose`` (N, J, 3) mm and ``bone_length`` (N,) mm that are asked for. Its
    output: ``refined`` (N, J, 3) mm. All are in the ERD's dtype.

    Args:
        erd: in eval mode; weights are folded and linear blocks collapsed.
        options: what the model takes, see `ExportOptions`.

    Returns:
        An ``onnx.ModelProto``, operators of opset 17.

    Raises:
        ImportError: the package onnx is not installed.
        TypeError: the lifter is none of this package's.
        ValueError: an unknown word, the ERD is in train mode, or it lacks the lifter or skeleton
            that this would need.
    """
    signature = Signature.of(erd, **options)
    stages = Stages(erd.packed())
    graph = Graph(stages.dtype)
    inputs = graph_inputs(graph, signature)
    keypoints = inputs["keypoints"].transpose(0, 2, 1)
    seen = inputs.get("confidence")
    if "pose" in inputs:
        initial = inputs["pose"].transpose(0, 2, 1)
    else:
        found = Joints.of(seen, stages.joints, weigh=False)
        initial = lift(erd.lifter, _placed(keypoints, found, _numpy(erd.mean2d).T))
    if "bone_length" in inputs:
        assert erd.skeleton is not None
        initial = _scaled(initial, inputs["bone_length"].reshape(-1, 1, 1), erd.skeleton)
    refined = stages.refine(
        keypoints,
        initial,
        GraphCamera.of(inputs["intrinsics"], inputs.get("distortion"), signature.camera_model),
        Joints.of(seen, stages.joints, stages.confidence_weights),
        inputs["root"].reshape(-1, 3, 1) if "root" in inputs else signature.root,
        solved_from=_without_root_joint(initial, erd.root_joint, stages.joints),
    )
    return finished(graph, "erd", refined, stages.joints)


def to_onnx(erd: ERD, path: str | os.PathLike[str], **options: Unpack[ExportOptions]) -> None:
    """Writes `onnx_model` to a file.

    Args:
        erd: in eval mode.
        path: the file to write, ``.onnx``; it is replaced in one step.
        options: what the model takes, see `ExportOptions`.

    Raises:
        FileNotFoundError: there is no such directory.
        ImportError, TypeError, ValueError: the name does not end in .onnx, or as `onnx_model`.
    """
    check_output(path, "onnx")
    model = onnx_model(erd, **options)
    with replacing(path) as temporary:
        import_onnx().save_model(model, str(temporary))


def _placed(keypoints: Value, joints: Joints, mean2d: Any) -> Value:
    """Keypoints (N, 2, J) as a lifter is to see them, see `erd_cuda.modules.missing`."""
    if joints.seen is None:
        return keypoints
    moved = joints.mean(joints.keep(keypoints - mean2d))
    return joints.seen.where(keypoints, mean2d + moved)


def _scaled(pose: Value, length: Value, skeleton: Skeleton) -> Value:
    """Poses (N, 3, J) with bones of a length (N, 1, 1) in all, see `erd_cuda.body_size`."""
    graph = pose.graph
    ends = [graph.constant(end, np.int64) for end in zip(*skeleton.bones, strict=True)]
    parents, children = (graph.op("Gather", pose, end, axis=2) for end in ends)
    bones = children - parents
    own = graph.op("Sqrt", (bones * bones).sum(1)).sum(2)
    known = (length > 0.0) & (own > 0.0)
    return pose * known.where(length / known.where(own, 1.0), 1.0)


def _without_root_joint(pose: Value, root_joint: int | None, joints: int) -> Value:
    """Poses (N, 3, J) with the root joint, if it has one, at 0."""
    if root_joint is None:
        return pose
    return pose.graph.constant(np.arange(joints) == root_joint, bool).where(0.0, pose)


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy()
