"""The refiner as a fused Triton kernel.

With stages of two layers it is the strongest peer, written as one would for good: hidden units pass
through in chunks, and a launch has several shapes to choose from. With four layers it is fused all
the same, but a program holds a whole hidden layer at once, and there is one shape for few poses and
one for many: a kernel tuned for that form could be faster.

One program takes ROWS poses through all stages: they are read once and written once, and between
the matrix products everything stays in registers. Joints are padded to a power of two, and the
coordinates of a joint lie in separate matrices (features u and v; outputs x, y and z), so that what
one product leaves is what the projection before the next one needs.

With TRITON_INTERPRET=1 in the environment the kernels run on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from erd_cuda import PackedRegressors


@triton.jit
def _load_channels(base, rows, joints, inside, JOINTS: tl.constexpr, CHANNELS: tl.constexpr, c):
    at = (rows[:, None] * JOINTS + joints[None, :]) * CHANNELS + c
    return tl.load(base + at, mask=inside, other=0.0)


@triton.jit
def _refine(
    keypoints,
    pose,
    root,
    camera,
    output,
    w_in,
    b_in,
    w_hidden,
    b_hidden,
    w_out,
    b_out,
    count,
    JOINTS: tl.constexpr,
    PADDED: tl.constexpr,
    STAGES: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TF32: tl.constexpr,
):
    number = w_in.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    joints = tl.arange(0, PADDED)
    there = rows < count
    inside = there[:, None] & (joints < JOINTS)[None, :]
    u = _load_channels(keypoints, rows, joints, inside, JOINTS, 2, 0)
    v = _load_channels(keypoints, rows, joints, inside, JOINTS, 2, 1)
    x = _load_channels(pose, rows, joints, inside, JOINTS, 3, 0)
    y = _load_channels(pose, rows, joints, inside, JOINTS, 3, 1)
    z = _load_channels(pose, rows, joints, inside, JOINTS, 3, 2)
    root_x = tl.load(root + 3 * rows, mask=there, other=0.0)[:, None]
    root_y = tl.load(root + 3 * rows + 1, mask=there, other=0.0)[:, None]
    root_z = tl.load(root + 3 * rows + 2, mask=there, other=1000.0)[:, None]
    fx, fy = tl.load(camera), tl.load(camera + 1)
    cx, cy = tl.load(camera + 2), tl.load(camera + 3)

    for k in range(STAGES):
        inverse = 1.0 / tl.maximum(z + root_z, 1.0)
        # Columns of joints that are not there meet weights of zero.
        du = (u - (fx * (x + root_x) * inverse + cx)).to(number)
        dv = (v - (fy * (y + root_y) * inverse + cy)).to(number)
        of_stage = w_in + 2 * k * PADDED * WIDTH
        results = w_out + 3 * k * WIDTH * PADDED
        if LAYERS == 0:
            # A chunk of hidden units at a time, from the one product straight into the other.
            for first in range(0, WIDTH, CHUNK):
                units = first + tl.arange(0, CHUNK)
                at = joints[:, None] * WIDTH + units[None, :]
                h = tl.dot(du, tl.load(of_stage + at), input_precision=TF32)
                h = tl.dot(dv, tl.load(of_stage + PADDED * WIDTH + at), h, input_precision=TF32)
                bias = tl.load(b_in + k * WIDTH + units)[None, :]
                hidden = tl.maximum(h + bias, 0.0).to(number)
                to = results + units[:, None] * PADDED + joints[None, :]
                x = tl.dot(hidden, tl.load(to), x, input_precision=TF32)
                y = tl.dot(hidden, tl.load(to + WIDTH * PADDED), y, input_precision=TF32)
                z = tl.dot(hidden, tl.load(to + 2 * WIDTH * PADDED), z, input_precision=TF32)
        else:
            units = tl.arange(0, WIDTH)
            at = joints[:, None] * WIDTH + units[None, :]
            h = tl.dot(du, tl.load(of_stage + at), input_precision=TF32)
            h = tl.dot(dv, tl.load(of_stage + PADDED * WIDTH + at), h, input_precision=TF32)
            hidden = tl.maximum(h + tl.load(b_in + k * WIDTH + units)[None, :], 0.0).to(number)
            for layer in range(LAYERS):
                which = k * LAYERS + layer
                square = units[:, None] * WIDTH + units[None, :]
                weight = tl.load(w_hidden + which * WIDTH * WIDTH + square)
                inner = tl.dot(hidden, weight, input_precision=TF32)
                inner += tl.load(b_hidden + which * WIDTH + units)[None, :]
                if ACTIVATION:
                    inner = tl.maximum(inner, 0.0)
                hidden = (hidden.to(tl.float32) + inner).to(number)
            to = results + units[:, None] * PADDED + joints[None, :]
            x = tl.dot(hidden, tl.load(to), x, input_precision=TF32)
            y = tl.dot(hidden, tl.load(to + WIDTH * PADDED), y, input_precision=TF32)
            z = tl.dot(hidden, tl.load(to + 2 * WIDTH * PADDED), z, input_precision=TF32)
        offsets = b_out + 3 * k * PADDED + joints
        x += tl.load(offsets)[None, :]
        y += tl.load(offsets + PADDED)[None, :]
        z += tl.load(offsets + 2 * PADDED)[None, :]

    target = output + (rows[:, None] * JOINTS + joints[None, :]) * 3
    tl.store(target, x, mask=inside)
    tl.store(target + 1, y, mask=inside)
    tl.store(target + 2, z, mask=inside)


@dataclass(frozen=True)
class Shape:
    """How a launch divides the work.

    Attributes:
        rows: poses of a program.
        chunk: hidden units at a time (two-layer stages).
        warps: of a program.
        buffers: loads of weights on their way at a time (Triton's num_stages).
    """

    rows: int
    chunk: int
    warps: int
    buffers: int


FEW = (Shape(16, 256, 8, 1), Shape(16, 128, 4, 2), Shape(16, 64, 4, 3))
MANY = (Shape(64, 64, 4, 3), Shape(128, 64, 8, 2), Shape(128, 128, 8, 2), Shape(256, 64, 8, 2))
LAYERED_FEW = (Shape(16, 0, 8, 1),)
LAYERED_MANY = (Shape(64, 0, 8, 1),)


class TritonRefine:
    """refine(keypoints, pose, root, intrinsics) for one pinhole camera (4,) and residual features.

    Args:
        weights: two layers a stage where they have no hidden ones, else four.
        dtype: of the products: float16, bfloat16, or float32 by three TF32 products.
        activation: a ReLU in the hidden layers.
    """

    def __init__(
        self,
        weights: PackedRegressors,
        dtype: torch.dtype = torch.float16,
        activation: bool = False,
    ) -> None:
        stages, width, features = weights.w_in.shape
        self.joints, self.width, self.stages = features // 2, width, stages
        # At least 16 columns: the least that tl.dot takes.
        self.padded = max(16, triton.next_power_of_2(self.joints))
        self.activation = activation
        self.tf32 = "tf32x3" if dtype == torch.float32 else "tf32"
        spare = self.padded - self.joints
        # [k][u, v][joint][unit], [k][x, y, z][unit][joint]
        w_in = weights.w_in.view(stages, width, self.joints, 2).permute(0, 3, 2, 1)
        w_out = weights.w_out.view(stages, self.joints, 3, width).permute(0, 2, 3, 1)
        b_out = weights.b_out.view(stages, self.joints, 3).transpose(1, 2)
        pad = torch.nn.functional.pad
        self.w_in = pad(w_in, (0, 0, 0, spare)).to(dtype).contiguous()
        self.w_out = pad(w_out, (0, spare)).to(dtype).contiguous()
        self.b_out = pad(b_out, (0, spare)).contiguous()
        self.b_in = weights.b_in.contiguous()
        self.layers = 0 if weights.w_hidden is None else weights.w_hidden.shape[1]
        self.w_hidden, self.b_hidden = self.w_in, self.b_in
        if weights.w_hidden is not None and weights.b_hidden is not None:
            self.w_hidden = weights.w_hidden.transpose(-1, -2).to(dtype).contiguous()
            self.b_hidden = weights.b_hidden.contiguous()
        self.shape = self.candidates(1)[0]

    def candidates(self, count: int) -> tuple[Shape, ...]:
        """Shapes worth trying for a batch."""
        few = count <= 2048
        if self.layers:
            return LAYERED_FEW if few else LAYERED_MANY
        return FEW if few else MANY

    def __call__(self, keypoints: Tensor, pose: Tensor, root: Tensor, intrinsics: Tensor) -> Tensor:
        output = torch.empty_like(pose)
        kernel: Any = _refine[(triton.cdiv(len(pose), self.shape.rows),)]
        kernel(
            keypoints,
            pose,
            root,
            intrinsics,
            output,
            self.w_in,
            self.b_in,
            self.w_hidden,
            self.b_hidden,
            self.w_out,
            self.b_out,
            len(pose),
            JOINTS=self.joints,
            PADDED=self.padded,
            STAGES=self.stages,
            WIDTH=self.width,
            ROWS=self.shape.rows,
            CHUNK=min(self.shape.chunk, self.width),
            LAYERS=self.layers,
            ACTIVATION=self.activation,
            TF32=self.tf32,
            num_warps=self.shape.warps,
            num_stages=self.shape.buffers,
        )
        return output
