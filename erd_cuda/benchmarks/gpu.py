"""All GPU benchmarks as one JSON file.

    python -m erd_cuda.benchmarks.gpu --out FILE                  on a GPU, two to three minutes
    python -m erd_cuda.benchmarks.gpu --out FILE --device cpu --tiny             does it run?

The file is written anew after every suite: what was measured before a time limit stays. Rows have
"us" (microseconds a call, the median) with quartiles, or "failed" or "skipped" with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from erd_cuda.benchmarks import gpu_refine, gpu_suites
from erd_cuda.benchmarks.gpu_timing import Clock, lost_context, memory_returned

Row = dict[str, Any]

FULL: Row = {
    "rounds": 15,
    "seconds": 4.0,  # of sampling a batch size
    "sets": None,
    "matrix": 8192,
    "copied": 1 << 30,
    "calls": 300,
    "steps": 128,  # whole runs of a captured graph
    "compiler": {"dynamic": False},
    "batch_limit": None,
}
TINY: Row = {
    "rounds": 2,
    "seconds": 0.2,
    "sets": 2,
    "matrix": 64,
    "copied": 1 << 16,
    "calls": 3,
    "steps": 2,
    # Traces as ever, and compiles nothing.
    "compiler": {"backend": "eager"},
    "batch_limit": 40,
}


#: What a reader of the figures has to know.
NOTES = (
    "A captured pass calls a contender on all input sets in turn. What a call returns is dropped, "
    "so that all calls write the same memory (13 MB for 65,536 poses), which stays in a large L2 "
    "cache: these figures are without the output's way to DRAM. The inputs do not fit.",
    "'error' is the error of the increment over the increment, of 128 poses spread over the batch: "
    "the larger of a plain call's and of a pass's as it is timed.",
    "Peers named tf32 are torch's in float32 where TF32 is allowed; the fp32 ones are without.",
)


def suites(
    device: str, clock: Clock, compiler_clock: Clock, options: Row
) -> list[tuple[str, Callable[[], list[Row]]]]:
    """Names and functions, the most telling first."""
    limit = options["batch_limit"]

    def sizes(batches: tuple[int, ...]) -> list[int]:
        return [limit, 1] if limit else list(batches)

    found: list[tuple[str, Callable[[], list[Row]]]] = []

    def add_refine(block: str, batch: int) -> None:
        def refine() -> list[Row]:
            return gpu_refine.refine_suite(block, batch, device, clock, compiler_clock, options)

        found.append((f"refine {block} {batch}", refine))

    def add_variants(batch: int) -> None:
        found.append(
            (f"variants {batch}", lambda: gpu_refine.variant_suite(batch, device, clock, options))
        )

    def add_geometry(batch: int) -> None:
        found.append(
            (
                f"geometry {batch}",
                lambda: gpu_suites.geometry_suite(batch, device, compiler_clock, options),
            )
        )

    found.append(("ceilings", lambda: gpu_suites.ceilings_suite(device, options)))
    batches = sizes(gpu_refine.BATCHES)
    # While the compilers still have time: both blocks with all their peers.
    for batch in batches[:3]:
        add_refine("linear", batch)
        add_refine("relu", batch)
    found.append(("latency", lambda: gpu_refine.latency_suite(device, options)))
    found.append(("accuracy", lambda: gpu_suites.accuracy_suite(device)))
    found.append(("calls", lambda: gpu_suites.calls_suite(device, options)))
    found.append(("training", lambda: gpu_suites.training_suite(device, compiler_clock, options)))
    for batch in sizes(gpu_refine.VARIANT_BATCHES):
        add_variants(batch)
    for batch in sizes(gpu_suites.GEOMETRY_BATCHES):
        add_geometry(batch)
    for batch in batches[3:]:
        add_refine("linear", batch)
        add_refine("relu", batch)
    found.append(("kernels", lambda: gpu_refine.kernels_suite(device)))
    return found


def add_fractions(rows: list[Row]) -> None:
    """Of the measured ceilings, for every figure that has a rate."""
    ceilings = {row["contender"]: row for row in rows if row["suite"] == "ceilings"}
    copied = ceilings.get("copy", {}).get("bytes_per_s")
    for row in rows:
        if row["suite"] == "ceilings":
            continue
        if copied and "bytes_per_s" in row:
            row["of_copy"] = round(row["bytes_per_s"] / copied, 4)
        if "flop_per_s" in row:
            # Products in three parts are float32's work, done by the 16-bit units.
            product = {"fp32": "fp32", "tf32": "tf32", "bf16": "bf16"}.get(row["precision"], "fp16")
            rate = ceilings.get(f"matmul {product}", {}).get("flop_per_s")
            if rate:
                row["of_matmul"] = round(row["flop_per_s"] / rate, 4)


def headline(rows: list[Row]) -> Row:
    """The figures that people ask for first."""

    def of(**wanted: object) -> Row:
        for row in rows:
            if all(row.get(name) == value for name, value in wanted.items()) and "us" in row:
                return row
        return {}

    ours: Row = {"suite": "refine", "contender": "erd_cuda", "precision": "fp16"}
    return {
        "collapsed_fp16_poses_per_s": of(**ours, block="linear", batch=1_048_576).get(
            "poses_per_s"
        ),
        "relu_fp16_poses_per_s": of(**ours, block="relu", batch=1_048_576).get("poses_per_s"),
        "batch1_in_graph_us": of(**ours, block="linear", batch=1).get("us"),
        "batch1_graph_replay_us": of(suite="latency", precision="fp16").get("us"),
        "training_step_us": of(suite="training", contender="erd_cuda steps").get("us"),
        "empty_kernel_in_graph_us": of(suite="ceilings", contender="empty kernel").get("us"),
    }


def write(path: Path, result: Row) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    parser.add_argument("--seconds", type=float, default=240.0, help="start nothing new after this")
    parser.add_argument("--only", default="", help="suites whose name begins so")
    parser.add_argument("--rounds", type=int, help="samples of each contender, where time allows")
    parser.add_argument("--resume", action="store_true", help="keep the file's suites, add others")
    chosen = parser.parse_args(arguments)

    options = TINY if chosen.tiny else FULL
    if chosen.rounds is not None:
        options = options | {"rounds": chosen.rounds}
    if chosen.tiny:
        torch.set_num_threads(1)
    # One piece of code is compiled for every batch size and network.
    torch._dynamo.config.recompile_limit = 200
    clock = Clock(chosen.seconds)
    # The rest is for what needs none; what compilers do not get to is said to be skipped.
    compiler_clock = Clock(0.7 * chosen.seconds)
    result: Row = {"tiny": chosen.tiny, "device": chosen.device, "notes": NOTES}
    result |= {"suite_s": {}, "rows": []}
    if chosen.resume:
        result = json.loads(chosen.out.read_text())
    for name, run in suites(chosen.device, clock, compiler_clock, options):
        if not name.startswith(chosen.only) or name in result["suite_s"]:
            continue
        if clock.left < 0:
            result["rows"].append({"suite": name, "skipped": "out of time"})
            continue
        begin = time.monotonic()
        rows: list[Row] = []
        try:
            with torch.inference_mode(name != "training"), memory_returned():
                rows = run()
        except Exception as error:
            rows.append({"suite": name, "failed": f"{type(error).__name__}: {error}"})
        result["rows"] += rows
        result["suite_s"][name] = round(time.monotonic() - begin, 2)
        add_fractions(result["rows"])
        result["headline"] = headline(result["rows"])
        write(chosen.out, result)
        print(f"{name}: {result['suite_s'][name]} s", flush=True)
        if chosen.device == "cuda" and lost_context():
            print("the GPU's context is lost: going on in a new process", flush=True)
            again = ["--out", str(chosen.out), "--only", chosen.only, "--resume"]
            again += ["--seconds", str(clock.left)] + ["--tiny"] * chosen.tiny
            again += ["--rounds", str(options["rounds"])]
            os.execv(sys.executable, [sys.executable, "-m", "erd_cuda.benchmarks.gpu", *again])
    failed = False
    for row in result["rows"]:
        if "failed" in row:
            failed = True
            print("FAILED", json.dumps(row))
    print(json.dumps(result.get("headline", {}), indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
