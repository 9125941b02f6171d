"""A measurement as pytest-benchmark writes it, with figures that one can check by hand."""

from __future__ import annotations

from typing import Any

MACHINE = {
    "processor": "A processor",
    "cores": 2,
    "threads": 2,
    "instruction_set": "avx2",
    "versions": {"erd_cuda": "1.2.3", "torch": "2.13.0"},
    "commit": "abc123",
    "date": "2026-11-23T00:00:00+00:00",
}


def entries(
    turns: list[list[float]], *, calls: int = 1, flop: float = 0.0, moved: float = 0.0, **facts: Any
) -> list[dict[str, Any]]:
    """Of one case: the samples of each turn in seconds a run."""
    info: dict[str, Any] = {"block": "", "batch": 1, "precision": "fp32", "collapsed": False}
    info |= {"flop": flop, "bytes": moved, "error": 1e-6, "calls": calls} | facts
    return [
        {"extra_info": info | {"turn": turn}, "stats": {"data": samples}}
        for turn, samples in enumerate(turns)
    ]


def measured(scale: float = 1.0) -> dict[str, Any]:
    """Four turns on a machine that is twice as slow in the last one.

    Args:
        scale: how much longer the refiner takes.
    """
    refine: dict[str, Any] = {"suite": "refine", "block": "linear", "collapsed": True}
    drift = (1.0, 1.0, 1.0, 2.0)

    def turns(seconds: float) -> list[list[float]]:
        return [[seconds * slow * noise for noise in (0.99, 1.0, 1.01)] for slow in drift]

    found = entries([[1e-3]], suite="ceilings", contender="multiply-adds", flop=1e8)
    found += entries([[1e-3]], suite="ceilings", contender="copy", moved=2e7)
    for batch in (1, 4096):
        ours = turns(scale * batch * 1e-6)
        found += entries(ours, contender="erd_cuda", batch=batch, flop=5e4 * batch, **refine)
        # The loop of multiply-adds, 1e11 operations a second but in the slow turn.
        peak = refine | {"collapsed": False, "contender": "multiply-adds"}
        found += entries(turns(1e-3), batch=batch, flop=1e8, **peak)
        peer = turns(3 * batch * 1e-6)
        found += entries(peer, contender="ONNX Runtime", batch=batch, **refine)
        found += entries(turns(2 * batch * 1e-6), contender="torch eager", batch=batch, **refine)
    found += entries(turns(4e-5), suite="one call", contender="project", moved=0)
    found += entries(turns(1e-2), suite="training step", contender="erd_cuda", batch=200, calls=10)
    missing = {"suite": "refine", "contender": "OpenVINO", "batch": 1, "precision": "fp32"}
    missing |= {"block": "linear", "collapsed": True, "flop": 1.0, "bytes": 1.0}
    return {
        "machine_info": {"erd_cuda": MACHINE},
        "benchmarks": found,
        "erd_cuda": {
            "plan": "quick",
            "device": "cpu",
            "not_timed": [missing | {"missing": "No module named 'openvino'"}],
        },
    }
