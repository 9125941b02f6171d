"""The units that a regressor's dropout keeps, for any rows of a batch, from torch's operators.

The operators for a whole batch draw them by csrc/core/dropout.h: word i of Philox4x32-10 (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) at the counter (row and group of four
units, layer), under a key that is the batch's seed. A unit is kept if its word is not below the
dropout probability. So the rows of one rank can be drawn by themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kept_units"]

LAYERS = 3
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF


def kept_units(seed: Tensor, rows: slice, width: int, probability: float) -> Tensor:
    """Which units dropout keeps in some rows of a batch.

    Args:
        seed: (1,) int64, of `erd_cuda.ops.regressor.draw_seeds`; its device is the result's.
        rows: from start to stop.
        width: units of a row.
        probability: of dropping a unit.

    Returns:
        (3, rows, width) bool, of the three layers that drop.
    """
    groups = -(-width // 4)
    device = seed.device
    row = torch.arange(rows.start, rows.stop, device=device)
    index = row[:, None] * groups + torch.arange(groups, device=device)
    layer = torch.arange(LAYERS, device=device)[:, None, None]
    words = _philox(index & LOW, index >> 32, layer, seed & LOW, seed >> 32 & LOW)
    kept = torch.stack(words, dim=-1) >= int(probability * 2**32)
    return kept.flatten(-2)[..., :width]


def _philox(c0: Tensor, c1: Tensor, c2: Tensor, key0: Tensor, key1: Tensor) -> list[Tensor]:
    """The four words of a counter (c0, c1, c2, 0), 32 bits each in int64.

    Products of two such words need 64 bits: as int64 they may be negative, but the bits are right.
    """
    shape = torch.broadcast_shapes(c0.shape, c2.shape)
    words = [c0.expand(shape), c1.expand(shape), c2.expand(shape), torch.zeros_like(c0)]
    for number in range(ROUNDS):
        keys = [
            (key + number * step) & LOW for key, step in zip((key0, key1), KEY_STEPS, strict=True)
        ]
        first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
        words = [
            (second >> 32 & LOW) ^ words[1] ^ keys[0],
            second & LOW,
            (first >> 32 & LOW) ^ words[3] ^ keys[1],
            first & LOW,
        ]
    return words
