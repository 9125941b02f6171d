"""Where weights lie that every call reads."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from erd_cuda._huge_pages import HUGE_PAGE, LINE, WORTH_IT, empty_for_reading

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason=f"{sys.platform} has no advice about huge pages"
)


def flags_of(address: int) -> list[str]:
    """What Linux has been told of the memory there."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError(f"nothing lies at {address:#x}")


@pytest.mark.parametrize("size", [WORTH_IT // 4, HUGE_PAGE // 4 + 1, 3 * HUGE_PAGE // 4])
def test_large_arrays_lie_in_huge_pages(size: int) -> None:
    numbers = empty_for_reading(size, np.float32)
    assert numbers.shape == (size,)
    assert numbers.dtype == np.float32
    assert numbers.ctypes.data % HUGE_PAGE == 0
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel was built without huge pages")
    for address in (numbers.ctypes.data, numbers.ctypes.data + numbers.nbytes - 1):
        assert "hg" in flags_of(address)
    numbers[:] = np.arange(size)
    assert numbers[-1] == size - 1


@pytest.mark.parametrize("size", [1, WORTH_IT // 8 - 1])
def test_small_arrays_begin_a_cache_line(size: int) -> None:
    numbers = empty_for_reading(size, np.float64)
    assert numbers.shape == (size,)
    assert numbers.ctypes.data % LINE == 0


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    last = empty_for_reading(HUGE_PAGE, np.uint8)[-10:]
    last[:] = 7
    others = [empty_for_reading(HUGE_PAGE, np.uint8) for _ in range(4)]
    for other in others:
        other[:] = 1
    assert (last == 7).all()
