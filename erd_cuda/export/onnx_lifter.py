"""The lifting networks as ONNX nodes, BatchNorm and normalisation folded into their layers.

The graph works on planes of coordinates (N, 2 or 3, J); the networks know vectors, joint after
joint. `planar` orders the rows and columns of their first and last matrices accordingly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from ..modules.lcn import SLOPE, LCNLifter, LocallyConnected
from ..modules.lifter import Lifter
from ..modules.martinez import MartinezLifter
from ..modules.normalization import scale_of
from ..modules.semgcn import NonLocal, SemGCNLifter, SemGraphConv
from .onnx_graph import Value
from .onnx_stages import planar


def lift(lifter: Any, keypoints: Value) -> Value:
    """The lifter's pose (N, 3, J) in mm for keypoints (N, 2, J) in px.

    Raises:
        TypeError: it is none of this package's lifters.
    """
    network = _NETWORKS.get(type(lifter))
    if network is None:
        raise TypeError(
            f"the lifter is a {type(lifter).__name__}, expected one of this package's: export with "
            "pose=True, and run your lifter before the exported model."
        )
    return network(lifter, keypoints - _exact(lifter.mean2d).T)


def _martinez(lifter: MartinezLifter, centered: Value) -> Value:
    joints = lifter.num_joints
    first: Any = lifter.input
    weight, bias = _folded(first[0], first[1])
    if lifter.pca is not None:
        basis, mean = _exact(lifter.pca.basis), _exact(lifter.pca.mean)
        bias = bias - weight @ (basis @ mean)
        weight = weight @ basis
    h = centered.reshape(-1, 2 * joints).affine(_of_pixels(lifter, weight), bias).relu()
    for block in lifter.blocks:
        inner = h
        for layer in block.layers:  # type: ignore[union-attr]
            inner = inner.affine(*_folded(layer[0], layer[1])).relu()
        h = h + inner
    weight, bias = _folded(lifter.output)
    return h.affine(*_in_millimetres(lifter, weight, bias)).reshape(-1, 3, joints)


def _lcn(lifter: LCNLifter, centered: Value) -> Value:
    joints = lifter.num_joints
    flat = centered.reshape(-1, 2 * joints)

    def activated(h: Value) -> Value:
        return h.graph.op("LeakyRelu", h, alpha=SLOPE)

    weight, bias = _folded(lifter.input.linear, lifter.input.norm)
    h = activated(flat.affine(_of_pixels(lifter, weight), bias))
    for block in lifter.blocks:
        inner = h
        for layer in block.layers:  # type: ignore[union-attr]
            inner = activated(inner.affine(*_folded(layer.linear, layer.norm)))
        h = h + inner
    weight, bias = _folded(lifter.output)
    # The z-scored x and y of the input are added to those of the output.
    skip = np.kron(np.eye(joints), np.eye(3, 2))
    to_skip, _ = _in_millimetres(lifter, skip, np.zeros(3 * joints))
    out = h.affine(*_in_millimetres(lifter, weight, bias))
    return (out + flat @ _of_pixels(lifter, to_skip).T).reshape(-1, 3, joints)


def _semgcn(lifter: SemGCNLifter, centered: Value) -> Value:
    x = (centered / _exact(scale_of(lifter.std2d)).T).transpose(0, 2, 1)
    for part in lifter.hidden:
        if isinstance(part, NonLocal):
            x = _attended(part, x, lifter.num_joints)
        elif isinstance(layers := getattr(part, "layers", None), nn.Module):
            inner = x
            for layer in layers:  # type: ignore[attr-defined]
                inner = _convolved(layer.conv, inner, layer.norm).relu()
            x = x + inner
        else:
            x = _convolved(part.conv, x, part.norm).relu()  # type: ignore[arg-type]
    z = _convolved(lifter.output, x).transpose(0, 2, 1)
    return _exact(lifter.std3d).T * z + _exact(lifter.mean3d).T


def _convolved(conv: SemGraphConv, x: Value, norm: nn.BatchNorm1d | None = None) -> Value:
    """A graph convolution and the BatchNorm behind it, (N, J, inputs) to (N, J, outputs)."""
    own, others = _exact(conv.weight)
    bias = np.zeros(conv.outputs) if conv.bias is None else _exact(conv.bias)
    if norm is not None:
        gain, shift = _gain_and_shift(norm)
        own, others, bias = own * gain, others * gain, bias * gain + shift
    adjacency = _exact(conv.adjacency())
    to_itself = np.diag(adjacency)[:, None]
    to_others = adjacency - np.diag(np.diag(adjacency))
    return to_itself * (x @ own) + to_others @ (x @ others) + bias


def _attended(layer: NonLocal, x: Value, joints: int) -> Value:
    """A non-local layer, (N, J, channels) to the same."""
    first, second = np.split(_exact(layer.affinity.weight).T, 2)
    theta, theta_bias = _folded(layer.theta)
    phi, phi_bias = _folded(layer.phi)
    of_joint = x @ (theta.T @ first) + theta_bias @ first
    of_others = x @ (phi.T @ second) + phi_bias @ second
    f = (of_joint + of_others.transpose(0, 2, 1)).relu()
    g, g_bias = _folded(layer.g)
    gain, shift = _gain_and_shift(layer.norm)
    output = gain * _exact(layer.output.weight).T / joints
    return x + (f @ (x @ g.T + g_bias)) @ output + shift


_NETWORKS: dict[type, Any] = {MartinezLifter: _martinez, LCNLifter: _lcn, SemGCNLifter: _semgcn}


def _folded(layer: nn.Module, norm: nn.BatchNorm1d | None = None) -> tuple[Any, Any]:
    """Weight and bias of a layer, and of the BatchNorm behind it, in float64."""
    matrix = layer.matrix() if isinstance(layer, LocallyConnected) else layer.weight
    weight, bias = _exact(matrix), _exact(layer.bias)  # type: ignore[arg-type]
    if norm is None:
        return weight, bias
    gain, shift = _gain_and_shift(norm)
    # One gain for each channel, whatever the joint.
    joints = len(bias) // len(gain)
    gain, shift = np.tile(gain, joints), np.tile(shift, joints)
    return gain[:, None] * weight, gain * bias + shift


def _gain_and_shift(norm: nn.BatchNorm1d) -> tuple[Any, Any]:
    """A BatchNorm with running statistics as x -> gain x + shift."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = _exact(norm.weight) / np.sqrt(_exact(norm.running_var) + norm.eps)
    return gain, _exact(norm.bias) - gain * _exact(norm.running_mean)


def _of_pixels(lifter: Lifter, weight: Any) -> Any:
    """The matrix of z-scores, (outputs, 2 J), for planes of differences in px."""
    scaled = weight / _exact(scale_of(lifter.std2d)).reshape(-1)
    return scaled[:, planar(lifter.num_joints, 2)]


def _in_millimetres(lifter: Lifter, weight: Any, bias: Any) -> tuple[Any, Any]:
    """The last layer, to (3 J,) z-scores, as one to planes of mm."""
    scale, mean = _exact(lifter.std3d).reshape(-1), _exact(lifter.mean3d).reshape(-1)
    order = planar(lifter.num_joints, 3)
    return (scale[:, None] * weight)[order], (scale * bias + mean)[order]


def _exact(values: Tensor) -> Any:
    return values.detach().double().cpu().numpy()
