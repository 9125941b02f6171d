"""Fixtures every test file shares: fixed seeds, thread counts, devices, the `cuda` marker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from gpu_context import ends_with_its_context  # noqa: F401

# Built once for all files: a session's fixture must stand here, not in each of them.
from wheel_build import built, clean_copy  # noqa: F401

import erd_cuda

try:
    from hypothesis import settings
except ImportError:  # the files that use it cannot be collected then, all others can
    settings = None

if settings is not None:
    # The same examples every run: a failure in CI is then the failure at the desk.
    settings.register_profile("erd_cuda", derandomize=True, deadline=None, max_examples=60)
    settings.load_profile("erd_cuda")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device and a build with CUDA kernels")


def missing_cuda() -> str | None:
    """Why tests marked cuda cannot run, or None."""
    if not torch.cuda.is_available():
        return "needs a CUDA device, torch.cuda.is_available() is False"
    if not erd_cuda.build_info()["cuda"]:
        return "needs CUDA kernels, this build of erd_cuda has none"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_files_first(items)
    reason = missing_cuda()
    if reason is None:
        return
    skip = pytest.mark.skip(reason=reason)
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


def longest_files_first(items: list[pytest.Item]) -> None:
    """A file that takes minutes must not begin when the other workers have nothing left to do."""
    limits: dict[object, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        limit = float(marker.args[0]) if marker else 0.0
        limits[item.path] = max(limit, limits.get(item.path, 0.0))
    items.sort(key=lambda item: -limits[item.path])


if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several workers on the same processors mostly wait for each other. Tests of threads
    # set their own number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads for the length of one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """For the tests that decide whether a kernel is right: every device there is."""
    return str(request.param)
