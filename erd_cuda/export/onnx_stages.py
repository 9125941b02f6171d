"""The refinement stages as an ONNX graph of standard operators: two matrix products a stage."""

from __future__ import annotations

from typing import Any

import numpy as np

from .onnx_geometry import GraphCamera, Joints, solve_root
from .onnx_graph import Graph, Value
from .signature import Signature, sample_shape


def onnx_refiner(
    weights: Any,
    *,
    root: str = "given",
    camera_model: str = "pinhole",
    confidence: bool = False,
) -> Any:
    """An ONNX model that does what `erd_cuda.refine` does, for any size of batch.

    Its inputs, by name: ``keypoints`` (N, J, 2) px; ``pose`` (N, J, 3) mm; ``intrinsics`` (N or 1,
    4) px; ``distortion`` (N or 1, 5) unless the camera is a pinhole; ``root`` (N, 3) mm if it is
    given; ``confidence`` (N, J) if asked for. Its output: ``refined`` (N, J, 3) mm.

    Args:
        weights: the stages of a trained model, from `erd_cuda.ERD.packed` or
            `erd_cuda.array.load_weights`. Their dtype is that of all inputs.
        root: "given", "solve" or "solve_each_stage".
        camera_model: "pinhole", "opencv" or "h36m".
        confidence: whether the model takes confidences.

    Returns:
        An ``onnx.ModelProto``, operators of opset 17.

    Raises:
        ImportError: the package onnx is not installed.
        ValueError: an unknown word.
    """
    stages = Stages(weights)
    return model_of(stages, Signature(stages.joints, root, camera_model, confidence, True, False))


def model_of(stages: Stages, signature: Signature) -> Any:
    """The model of `onnx_refiner`; a benchmark has other stages than any trained model's."""
    graph = Graph(stages.dtype)
    inputs = graph_inputs(graph, signature)
    given = inputs.get("root")
    refined = stages.refine(
        inputs["keypoints"].transpose(0, 2, 1),
        inputs["pose"].transpose(0, 2, 1),
        GraphCamera.of(inputs["intrinsics"], inputs.get("distortion"), signature.camera_model),
        Joints.of(inputs.get("confidence"), stages.joints, stages.confidence_weights),
        signature.root if given is None else given.reshape(-1, 3, 1),
    )
    return finished(graph, "refiner", refined, stages.joints)


def graph_inputs(graph: Graph, signature: Signature) -> dict[str, Value]:
    """The inputs of a model, by name; cameras may be one for all samples."""
    shared = ("intrinsics", "distortion")
    return {
        name: graph.input(
            name, "cameras" if name in shared else "batch", *sample_shape(name, signature.joints)
        )
        for name in signature.inputs()
    }


def finished(graph: Graph, name: str, pose: Value, joints: int) -> Any:
    """The model whose result are these poses (N, 3, J)."""
    return graph.model(name, {"refined": (pose.transpose(0, 2, 1), ("batch", joints, 3))})


class Stages:
    """A trained model's stages as constants of graphs.

    Args:
        weights: `erd_cuda.PackedRegressors` or `erd_cuda.array.Weights`.
        rectified: whether a ReLU follows the hidden layers, if there are any. Without it they are
            the layers of a linear block that nobody collapsed.
    """

    def __init__(self, weights: Any, rectified: bool = True) -> None:
        self.rectified = rectified
        self._w = {name: _as_numpy(getattr(weights, name)) for name in _ARRAYS}
        self.features: str = weights.features
        self.block: str = weights.block
        self.confidence_weights: bool = weights.confidence_weights
        self.limit: float = weights.residual_limit
        self.dtype: np.dtype[Any] = self._w["w_in"].dtype
        self.count = len(self._w["w_in"])
        self.joints = len(self._w["mean2d"])
        # The layers see and return planes of coordinates instead of joint after joint.
        pairs, triples = (planar(self.joints, channels) for channels in (2, 3))
        seen = {"concat": (pairs, pairs), "residual+pose": (pairs, triples)}
        order, start = [], 0
        for part in seen.get(self.features, (pairs,)):
            order.append(start + part)
            start += len(part)
        self._w["w_in"] = self._w["w_in"][:, :, np.concatenate(order)]
        self._w["w_out"] = self._w["w_out"][:, triples]
        self._w["b_out"] = self._w["b_out"][:, triples]

    def refine(
        self,
        keypoints: Value,
        pose: Value,
        camera: GraphCamera,
        joints: Joints,
        root: Value | str,
        solved_from: Value | None = None,
    ) -> Value:
        """Poses (N, 3, J) after all stages.

        Args:
            keypoints: (N, 2, J) px.
            pose: (N, 3, J) mm.
            camera, joints: of each sample.
            root: (N, 3, 1) mm, "solve" or "solve_each_stage".
            solved_from: (N, 3, J) mm, what "solve" finds the root of, if that is not the pose.
        """
        offsets = keypoints - camera.center
        if isinstance(root, Value):
            for k in range(self.count):
                pose = self._moved(k, keypoints, offsets, pose, camera, joints, root)
            return pose
        points = camera.undistorted(joints.keep(offsets))
        for k in range(self.count):
            if root == "solve_each_stage":
                position, solved = solve_root(points, pose, camera, joints)
            elif k == 0:
                start = pose if solved_from is None else solved_from
                position, solved = solve_root(points, start, camera, joints)
            moved = self._moved(k, keypoints, offsets, pose, camera, joints, position)
            pose = solved.where(moved, pose)
        return pose

    def _moved(self, k: int, keypoints: Value, offsets: Value, pose: Value, *where: Any) -> Value:
        """The pose after stage ``k``."""
        features = self._features(keypoints, offsets, pose, *where)
        return pose + self._increment(k, features).reshape(-1, 3, self.joints)

    def _features(
        self,
        keypoints: Value,
        offsets: Value,
        pose: Value,
        camera: GraphCamera,
        joints: Joints,
        root: Value,
    ) -> Value:
        """What a stage sees, (N, F) in px (and mm)."""
        mean = self._w["mean2d"].T[None]
        parts = []
        if self.features in ("residual", "residual+pose"):
            # The principal point is off both: the difference of two small numbers rounds less.
            residual = offsets - camera.image(pose, root)
            if np.isfinite(self.limit):
                residual = residual.at_most(self.limit).at_least(-self.limit)
            parts.append(joints.keep(joints.weighed(residual)))
        if self.features in ("init2d", "concat"):
            parts.append(joints.keep(keypoints - mean))
        if self.features in ("proj2d", "concat"):
            parts.append(camera.image(pose, root) + camera.center - mean)
        flat = [part.reshape(-1, 2 * self.joints) for part in parts]
        if self.features == "residual+pose":
            flat.append(pose.reshape(-1, 3 * self.joints))
        return pose.graph.concat(flat, axis=1)

    def _increment(self, k: int, features: Value) -> Value:
        """What stage ``k`` adds to the pose, (N, 3 J), plane after plane."""
        h = features.affine(self._w["w_in"][k], self._w["b_in"][k]).relu()
        if self.block == "relu":
            for weight, bias in zip(self._w["w_hidden"][k], self._w["b_hidden"][k], strict=True):
                inner = h.affine(weight, bias)
                h = h + (inner.relu() if self.rectified else inner)
        return h.affine(self._w["w_out"][k], self._w["b_out"][k])


_ARRAYS = ("w_in", "b_in", "w_hidden", "b_hidden", "w_out", "b_out", "mean2d")


def _as_numpy(values: Any) -> Any:
    """A torch tensor, NumPy or CuPy array as NumPy's."""
    if values is None:
        return None
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return values.get() if hasattr(values, "get") else values


def planar(joints: int, channels: int) -> Any:
    """Where the elements of plane after plane lie among those of joint after joint."""
    return np.arange(joints * channels).reshape(joints, channels).T.ravel()
