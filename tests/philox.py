"""Philox4x32-10 in NumPy, from the paper (Salmon et al. 2011), and the dropout made of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds on counters (..., 4)."""
    words = [counters[..., i].astype(np.uint64) for i in range(4)]
    for number in range(10):
        keys = [np.uint64((k + number * w) & 0xFFFFFFFF) for k, w in zip(key, _WEYL, strict=True)]
        products = [_MULTIPLIERS[i] * words[2 * i] for i in range(2)]
        high, low = [p >> np.uint64(32) for p in products], [p & _LOW for p in products]
        words = [high[1] ^ words[1] ^ keys[0], low[1], high[0] ^ words[3] ^ keys[1], low[0]]
    return np.stack(words, axis=-1).astype(np.uint32)


def kept_units(seed: int, rows: int, width: int, dropout: float) -> NDArray[np.bool_]:
    """Which units the regressor's dropout keeps, (3, rows, width)."""
    groups = -(-width // 4)
    index = np.arange(rows * groups, dtype=np.uint64).reshape(rows, groups)
    counters = np.zeros((3, rows, groups, 4), dtype=np.uint32)
    counters[..., 0] = index & _LOW
    counters[..., 1] = index >> np.uint64(32)
    counters[..., 2] = np.arange(3)[:, None, None]
    words = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32))
    kept: NDArray[np.bool_] = words.reshape(3, rows, 4 * groups) >= int(dropout * 2**32)
    return kept[..., :width]
