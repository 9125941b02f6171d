"""Memory for weights that are read in every call, in huge pages where the system has them.

A second-level cache finds a line's place by its physical address. Pages of 4 KiB lie anywhere in
physical memory: by luck some places of the cache get more of the weights than they hold, in some
processes and not in others. A page of 2 MiB fills all places evenly.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Bytes of a huge page of x86-64 and of most ARM kernels.
HUGE_PAGE = 2 << 20

#: Fewer bytes have room in the cache wherever they lie, and are not worth a page of their own.
WORTH_IT = HUGE_PAGE // 16

#: Bytes of a cache line, and of the longest vectors.
LINE = 64


def empty_for_reading(size: int, dtype: DTypeLike) -> NDArray[Any]:
    """``size`` numbers that are not set yet; they begin a cache line."""
    wanted = size * np.dtype(dtype).itemsize
    huge = wanted >= WORTH_IT and hasattr(mmap, "MADV_HUGEPAGE")
    memory, alignment = (_huge_pages(wanted), HUGE_PAGE) if huge else (_plain(wanted), LINE)
    begin = -memory.ctypes.data % alignment
    return memory[begin : begin + wanted].view(dtype)


def _plain(wanted: int) -> NDArray[np.uint8]:
    return np.empty(wanted + LINE, np.uint8)


def _huge_pages(wanted: int) -> NDArray[np.uint8]:
    # One page more, since memory begins where the system likes; what is not touched costs nothing.
    size = (-(-wanted // HUGE_PAGE) + 1) * HUGE_PAGE
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
