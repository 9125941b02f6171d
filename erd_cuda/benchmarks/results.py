"""From pytest-benchmark's JSON to figures: turns put together, ratios, fractions of the ceilings.

Results are plain JSON: ``machine``, ``plan``, ``device``, ``rows``, ``promises`` (see promises.py)
and ``notes``. A row has a case's facts (see cases.py) and

    us, us_low, us_high     microseconds a call, median and quartiles over all samples
    samples, turns_us       how many there were, and each turn's median
    poses_per_s             where poses are what counts
    flop_per_s, of_fma      where the method's operations are counted; of the measured peak
    bytes_per_s, of_copy    where its bytes are counted; of the measured copy rate
    error                   how far off it was when it was checked, relative
    ratios                  of a row of erd_cuda: how many times faster it is than each peer

or, instead of all these, ``missing`` or ``failed`` with the reason.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erd_cuda.benchmarks.call_cases import SUITE as CALLS
from erd_cuda.benchmarks.cases import OURS
from erd_cuda.benchmarks.ceiling_cases import COPY, FMA, MATRIX
from erd_cuda.benchmarks.ceiling_cases import SUITE as CEILINGS

Row = dict[str, Any]

#: What tells rows apart, and groups.
IDENTITY = ("suite", "block", "batch", "contender", "precision", "collapsed")
GROUP = ("suite", "block", "batch")

NOTES = (
    "Contenders of one batch size take turns, so that a machine that slows down slows all of them; "
    "a ratio is the median of the turns' ratios, between its quartiles.",
    "Inputs rotate: no call finds what the last one read, unless all of them fit into the caches. "
    "ONNX Runtime and OpenVINO have inputs and outputs bound before the clock starts.",
    "Every contender was checked against float64 before it was timed; 'error' is relative to what "
    "was to be computed (the increment of a refiner, the gradients of a training step).",
    "Fractions count the operations and bytes that the method needs, whatever a contender does: a "
    "stage of the linear block is two layers, collapsed, for all.",
)


def merge(measured: dict[str, Any]) -> dict[str, Any]:
    """Results of what pytest-benchmark wrote, with its samples."""
    taken: dict[tuple[object, ...], Row] = {}
    for entry in measured["benchmarks"]:
        info = dict(entry["extra_info"])
        turn, calls = info.pop("turn"), info.pop("calls")
        row = taken.setdefault(tuple(info[name] for name in IDENTITY), info | {"turns": {}})
        row["turns"][turn] = [1e6 * seconds / calls for seconds in entry["stats"]["data"]]
    rows = [_figures(row) for row in taken.values()]
    about = measured["erd_cuda"]
    _add_fractions(rows, about["device"])
    _add_ratios(rows)
    missing = [
        {name: value for name, value in row.items() if name not in ("flop", "bytes")}
        for row in about["not_timed"]
    ]
    order = {name: i for i, name in enumerate(_suites(rows + missing))}
    return {
        "machine": measured["machine_info"]["erd_cuda"],
        "plan": about["plan"],
        "device": about["device"],
        "rows": sorted(rows + missing, key=lambda row: (order[row["suite"]], *_sizes(row))),
        "notes": list(NOTES),
    }


def _suites(rows: Sequence[Row]) -> list[str]:
    """Ceilings first, then the refiner, then all others as they come."""
    found = list(dict.fromkeys(row["suite"] for row in rows))
    first = [name for name in (CEILINGS, "refine") if name in found]
    return first + [name for name in found if name not in first]


def _sizes(row: Row) -> tuple[str, int, bool]:
    return row["block"], row["batch"], row["contender"] != OURS


def _figures(row: Row) -> Row:
    turns = row.pop("turns")
    flop, moved = row.pop("flop"), row.pop("bytes")
    samples = [us for turn in turns.values() for us in turn]
    low, median, high = quartiles(samples)
    row |= {"us": median, "us_low": low, "us_high": high, "samples": len(samples)}
    row["turns_us"] = [round(statistics.median(turns[turn]), 4) for turn in sorted(turns)]
    if row["suite"] not in (CEILINGS, CALLS):
        row["poses_per_s"] = 1e6 * row["batch"] / median
    if flop:
        row["flop_per_s"] = 1e6 * flop / median
    if moved:
        row["bytes_per_s"] = 1e6 * moved / median
    return row


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _add_fractions(rows: list[Row], device: str) -> None:
    ceilings = {(r["contender"], r["precision"]): r for r in rows if r["suite"] == CEILINGS}
    copy = ceilings.get((COPY, "fp32"))
    for row in rows:
        if row["suite"] == CEILINGS:
            continue
        if "flop_per_s" in row:
            # A GPU's products, and those of 16 bits, are not made of single multiply-adds.
            plain = device == "cpu" and row["precision"] == "fp32"
            precision = "fp16" if row["precision"] in ("auto", "tf32") else row["precision"]
            ceiling = ceilings.get((FMA, "fp32") if plain else (MATRIX, precision))
            if ceiling:
                row["of_fma"] = row["flop_per_s"] / ceiling["flop_per_s"]
        if "bytes_per_s" in row and copy:
            row["of_copy"] = row["bytes_per_s"] / copy["bytes_per_s"]


def _add_ratios(rows: list[Row]) -> None:
    for row in rows:
        if row["contender"] != OURS:
            continue
        row["ratios"] = [
            {name: peer[name] for name in ("contender", "precision", "collapsed")}
            | ratio(row, peer)
            for peer in rows
            if peer is not row and all(peer[name] == row[name] for name in GROUP)
        ]


def ratio(row: Row, peer: Row) -> dict[str, float]:
    """How many times faster a row is than another one whose turns alternated with its own."""
    pairs = zip(row["turns_us"], peer["turns_us"], strict=True)
    low, median, high = quartiles([theirs / mine for mine, theirs in pairs])
    return {"ratio": median, "low": low, "high": high}


def find(results: dict[str, Any], **wanted: object) -> list[Row]:
    """Rows that were timed and have these facts."""
    return [
        row
        for row in results["rows"]
        if "us" in row and all(row[name] == value for name, value in wanted.items())
    ]


def read(path: Path) -> dict[str, Any]:
    """The results in a file that ``erd-cuda bench --json`` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        complete = all(name in results for name in ("machine", "device", "rows"))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{path} holds no results: expected a file of erd-cuda bench --json")
    return results


def rounded(value: Any) -> Any:
    """The same with floats of six digits: no more of them mean anything."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.6g}")
    return value
