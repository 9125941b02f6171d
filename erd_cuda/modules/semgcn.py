"""The lifting network of Zhao et al., "Semantic Graph Convolutional Networks for 3D Human Pose
Regression" (CVPR 2019): graph convolutions over the bones, each bone with a learnt weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erd_cuda.modules.arguments import check_count
from erd_cuda.modules.graph import as_skeleton, hop_distances
from erd_cuda.modules.lifter import Lifter

if TYPE_CHECKING:
    from erd_cuda.data.skeleton import Skeleton


class SemGraphConv(nn.Module):
    """Semantic graph convolution (Zhao et al., section 3.1).

    With a_ij the softmax, over joint i's neighbours j and itself, of one learnt weight for every
    bone in either direction and every joint: out_i = a_ii x_i W_0 + sum of a_ij x_j W_1 + b.

    Tensors are joints first, (J, N, C): then the sum over neighbours is one matrix product for the
    whole batch.

    Args:
        hops: J rows of J distances in bones, see `hop_distances`.
        inputs, outputs: channels of a joint.
        bias: whether there is b; BatchNorm after the layer would cancel it.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, hops: list[list[int]], inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.num_joints = len(hops)
        self.outputs = outputs
        edges = [(i, j) for i, row in enumerate(hops) for j, hop in enumerate(row) if hop <= 1]
        for name, side in (("rows", 0), ("columns", 1)):
            # On the CPU also where the parameters are built without memory: no file holds these.
            indices = torch.tensor([edge[side] for edge in edges], device="cpu")
            self.register_buffer(name, indices, persistent=False)
        self.weight = nn.Parameter(torch.empty(2, inputs, outputs))
        for matrix in self.weight:
            nn.init.xavier_uniform_(matrix)
        # Equal weights: an average over the neighbourhood to begin with.
        self.edges = nn.Parameter(torch.ones(len(edges)))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def adjacency(self) -> Tensor:
        """The weights a (J, J): rows sum to 1 and are 0 but for neighbours and the joint itself."""
        logits = self.edges.new_full((self.num_joints, self.num_joints), -torch.inf)
        return logits.index_put((self.rows, self.columns), self.edges).softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(J, N, inputs) to (J, N, outputs)."""
        joints, count, inputs = x.shape
        weights = self.adjacency()
        own = weights.diagonal().diag_embed()
        # x W_0 and x W_1, then the sum over both and over the neighbours in one product.
        both = torch.matmul(x.reshape(joints * count, inputs), self.weight)
        mixed = torch.cat((own, weights - own), dim=1) @ both.view(2 * joints, -1)
        out = mixed.view(joints, count, self.outputs)
        return out if self.bias is None else out + self.bias


class NonLocal(nn.Module):
    """x_i <- x_i + BatchNorm(W / J sum over j of f(x_i, x_j) g(x_j)), every joint with every other
    (Zhao et al., section 3.2, after Wang et al., "Non-local neural networks", CVPR 2018).

    f(x_i, x_j) = ReLU(w . [theta(x_i), phi(x_j)]), Wang et al.'s concatenation; theta, phi and g
    are linear and halve the channels. BatchNorm's weight begins at 0, so that the layer begins as
    the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(channels // 2, 1)
        self.theta = nn.Linear(channels, half)
        self.phi = nn.Linear(channels, half)
        self.g = nn.Linear(channels, half)
        self.affinity = nn.Linear(2 * half, 1, bias=False)
        self.output = nn.Linear(half, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(J, N, channels) to the same."""
        joints, count, channels = x.shape
        # Of theta and phi the affinity sees one number a joint: the product of the two linear maps,
        # at a fraction of the work.
        w_theta, w_phi = self.affinity.weight.chunk(2, dim=1)
        first = x @ (w_theta @ self.theta.weight).mT + w_theta @ self.theta.bias
        second = x @ (w_phi @ self.phi.weight).mT + w_phi @ self.phi.bias
        f = torch.relu(first.permute(1, 0, 2) + second.permute(1, 2, 0))  # (N, J, J)
        sums = f @ self.g(x).transpose(0, 1) / joints
        change = self.norm(self.output(sums).reshape(-1, channels))
        return x + change.view(count, joints, channels).transpose(0, 1)


class _Layer(nn.Module):
    """ReLU BatchNorm SemGraphConv."""

    def __init__(self, hops: list[list[int]], inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = SemGraphConv(hops, inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return torch.relu(self.norm(h.flatten(0, 1))).view_as(h)


class _Block(nn.Module):
    """h <- h + f(f(h)) with f = ReLU BatchNorm SemGraphConv."""

    def __init__(self, hops: list[list[int]], width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_Layer(hops, width, width) for _ in range(2)))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class SemGCNLifter(Lifter):
    """From a 2D pose in pixels to a root-relative 3D pose in millimetres, over the bones' graph.

    A layer from 2 to ``width`` channels, residual blocks of two layers, a convolution to 3
    channels; with non-local layers, one follows the first layer and each block (figure 3 of the
    paper). `Lifter` describes the normalisation, which takes the place of the paper's. With the
    defaults and Human3.6M's joints 0.27 million parameters, 0.43 million with non-local layers.

    Args:
        skeleton: the joints and bones: a `Skeleton`, its ``to_dict()``, or the name or number of
            joints of a built-in one.
        width: channels of a joint in the hidden layers.
        blocks: number of residual blocks of two layers.
        non_local: whether there are non-local layers.
    """

    def __init__(
        self,
        skeleton: Skeleton | Mapping[str, Any] | str | int = "h36m17",
        width: int = 128,
        blocks: int = 4,
        non_local: bool = False,
    ) -> None:
        skeleton = as_skeleton(skeleton)
        check_count("width", width)
        check_count("blocks", blocks, least=0)
        super().__init__(skeleton.num_joints)
        self.skeleton = skeleton
        self.width = width
        self.num_blocks = blocks
        self.non_local = non_local
        hops = hop_distances(skeleton)
        parts: list[nn.Module] = []
        for part in (_Layer(hops, 2, width), *(_Block(hops, width) for _ in range(blocks))):
            parts.append(part)
            if non_local:
                parts.append(NonLocal(width))
        self.hidden = nn.Sequential(*parts)
        self.output = SemGraphConv(hops, width, 3, bias=True)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as a model file keeps them."""
        return {
            "skeleton": self.skeleton.to_dict(),
            "width": self.width,
            "blocks": self.num_blocks,
            "non_local": self.non_local,
        }

    def regress(self, z: Tensor) -> Tensor:
        """Z-scored 3D pose (..., 3 J) for z-scored keypoints (..., 2 J)."""
        x = z.reshape(-1, self.num_joints, 2).transpose(0, 1)
        out = self.output(self.hidden(x)).transpose(0, 1)
        return out.reshape(*z.shape[:-1], 3 * self.num_joints)
