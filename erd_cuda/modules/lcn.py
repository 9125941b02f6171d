"""The lifting network of Ci et al., "Optimizing Network Structure for 3D Human Pose Estimation"
(ICCV 2019): layers in which a joint sees the joints near it, through weights of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erd_cuda.modules.arguments import check_count, check_dropout
from erd_cuda.modules.graph import as_skeleton, hop_distances
from erd_cuda.modules.lifter import Lifter

if TYPE_CHECKING:
    from erd_cuda.data.skeleton import Skeleton

SLOPE = 0.2


class LocallyConnected(nn.Module):
    """A linear layer from (N, J inputs) to (N, J outputs) in which a joint sees near joints only.

    The parameters are the blocks of the J x J block matrix that belong to a pair of near joints,
    and no others. The product is one with the dense matrix: its zeros cost less than many small
    products.

    Args:
        hops: J rows of J distances in bones, see `hop_distances`.
        reach: most bones between a joint and one that it sees.
        inputs, outputs: channels of a joint.

    Attributes:
        weight: (P, outputs, inputs), a block for each of the P ordered pairs, sorted by the joint
            that sees, then the joint that is seen.
        bias: (J outputs,).
    """

    pairs: Tensor

    def __init__(self, hops: list[list[int]], reach: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.num_joints = len(hops)
        seen = [[j for j, hop in enumerate(row) if hop <= reach] for row in hops]
        pairs = [i * len(hops) + j for i, near in enumerate(seen) for j in near]
        # On the CPU also where the parameters are built without memory: no file holds it.
        self.register_buffer("pairs", torch.tensor(pairs, device="cpu"), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(pairs), outputs, inputs))
        self.bias = nn.Parameter(torch.empty(len(hops) * outputs))
        # As torch's Linear does, with the inputs that a joint really has.
        start = 0
        for i, near in enumerate(seen):
            bound = 1 / math.sqrt(len(near) * inputs)
            with torch.no_grad():
                self.weight[start : start + len(near)].uniform_(-bound, bound)
                self.bias[i * outputs : (i + 1) * outputs].uniform_(-bound, bound)
            start += len(near)

    def matrix(self) -> Tensor:
        """The dense matrix (J outputs, J inputs), 0 where a joint does not see the other."""
        joints = self.num_joints
        _, outputs, inputs = self.weight.shape
        blocks = self.weight.new_zeros(joints * joints, outputs, inputs)
        blocks = blocks.index_copy(0, self.pairs, self.weight)
        blocks = blocks.view(joints, joints, outputs, inputs).transpose(1, 2)
        return blocks.reshape(joints * outputs, joints * inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, J inputs) to (N, J outputs), joint-major."""
        return F.linear(x, self.matrix(), self.bias)


class _Layer(nn.Module):
    """Dropout LeakyReLU BatchNorm LocallyConnected; BatchNorm per channel, over all joints."""

    def __init__(
        self, hops: list[list[int]], reach: int, inputs: int, outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.linear = LocallyConnected(hops, reach, inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)
        self.activation = nn.Sequential(nn.LeakyReLU(SLOPE), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return self.activation(self.norm(h.view(-1, self.norm.num_features))).view_as(h)


class _Block(nn.Module):
    """h <- h + f(f(h)) with f a `_Layer`."""

    def __init__(self, hops: list[list[int]], reach: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_Layer(hops, reach, width, width, dropout) for _ in range(2)))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class LCNLifter(Lifter):
    """From a 2D pose in pixels to a root-relative 3D pose in millimetres, locally connected.

    The structure of `MartinezLifter` with every linear layer cut down to joints that are near each
    other, LeakyReLU, and the input's x and y added to the output's, here both z-scored. `Lifter`
    describes the normalisation, which takes the place of the paper's. With the defaults and
    Human3.6M's joints 3.3 million parameters (4.5 with 4 hops).

    Args:
        skeleton: the joints and bones: a `Skeleton`, its ``to_dict()``, or the name or number of
            joints of a built-in one.
        width: channels of a joint in the hidden layers.
        blocks: number of residual blocks of two layers.
        hops: most bones between a joint and one that it sees.
        dropout: dropout probability.
    """

    def __init__(
        self,
        skeleton: Skeleton | Mapping[str, Any] | str | int = "h36m17",
        width: int = 64,
        blocks: int = 3,
        hops: int = 3,
        dropout: float = 0.25,
    ) -> None:
        skeleton = as_skeleton(skeleton)
        check_count("width", width)
        check_count("blocks", blocks, least=0)
        check_count("hops", hops, least=0)
        check_dropout(dropout)
        super().__init__(skeleton.num_joints)
        self.skeleton = skeleton
        self.width = width
        self.num_blocks = blocks
        self.hops = hops
        self.dropout = dropout
        distances = hop_distances(skeleton)
        self.input = _Layer(distances, hops, 2, width, dropout)
        self.blocks = nn.Sequential(
            *(_Block(distances, hops, width, dropout) for _ in range(blocks))
        )
        self.output = LocallyConnected(distances, hops, width, 3)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as a model file keeps them."""
        return {
            "skeleton": self.skeleton.to_dict(),
            "width": self.width,
            "blocks": self.num_blocks,
            "hops": self.hops,
            "dropout": self.dropout,
        }

    def regress(self, z: Tensor) -> Tensor:
        """Z-scored 3D pose (..., 3 J) for z-scored keypoints (..., 2 J)."""
        rows = z.reshape(-1, 2 * self.num_joints)
        out = self.output(self.blocks(self.input(rows)))
        flat = F.pad(rows.unflatten(-1, (self.num_joints, 2)), (0, 1)).flatten(1)
        return (out + flat).reshape(*z.shape[:-1], 3 * self.num_joints)
