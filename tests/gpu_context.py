"""A kernel that ends the CUDA context ends one process, by name, and not all tests after it.

After an illegal access nothing works any more in that process, and each further test would fail
for a reason that is not its own. Also loads as a plugin: ``pytest -p gpu_context``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from erd_cuda.benchmarks.gpu_timing import lost_context


@pytest.fixture(autouse=True)
def ends_with_its_context(request: pytest.FixtureRequest) -> Iterator[None]:
    """Waits for the kernels of every test marked cuda: their crash then belongs to that test."""
    yield
    if request.node.get_closest_marker("cuda") is None:
        return
    reason = lost_context()
    if reason is None:
        return
    sentence = f"the CUDA context is lost in {request.node.nodeid}: {reason}"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # Alone, this process still has to write the report of what ran before.
        pytest.exit(sentence, returncode=3)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(sentence, file=sys.stderr, flush=True)
    # xdist starts another worker for the tests that are left.
    os._exit(3)
