"""From pytest-benchmark's JSON to figures: turns put together, ratios, fractions of the ceilings.

Results are plain JSON: ``machine``, ``plan``, ``device``, ``rows``, ``targets`` (see targets.py)
and ``notes``. A row has a case's facts (see cases.py) and

    us, us_low, us_high     microseconds a call, median and quartiles over all samples
    samples, turns_us       how many there were, and each turn's median
    poses_per_s             where poses are what counts
    flop_per_s, bytes_per_s where the method's operations or bytes are counted
    of_fma, of_copy         fractions of the peak and of the copy rate that were timed in the same
                            turns, medians of the turns' fractions; quartiles in of_fma_low, ...
    error                   how far off it was when it was checked, relative
    ratios                  of a row of erd_cuda: how many times faster it is than each peer

or, instead of all these, ``missing`` or ``failed`` with the reason. Rows of a suite whose contender
is one of `CEILING_NAMES` are what the others of their group are held against.
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
from erd_cuda.benchmarks.ceiling_cases import COPY, FMA, FMA_ONE, MATRIX
from erd_cuda.benchmarks.ceiling_cases import SUITE as CEILINGS

Row = dict[str, Any]

#: Contenders that compute nothing of use, in whatever suite.
CEILING_NAMES = frozenset({FMA_ONE, FMA, COPY, MATRIX})
#: What tells rows apart, and groups.
IDENTITY = ("suite", "block", "batch", "contender", "precision", "collapsed")
GROUP = ("suite", "block", "batch")

NOTES = (
    "In brackets behind a figure: its quartiles.",
    "Contenders of one batch size take turns, so that a machine that slows down slows all of them; "
    "a ratio is the median of the turns' ratios, between its quartiles.",
    "The loop of multiply-adds and the copy take turns, too: a fraction of the peak is the median "
    "of the turns' fractions, between its quartiles.",
    "Inputs rotate: no call finds what the last one read, unless all of them fit into the caches. "
    "ONNX Runtime and OpenVINO have inputs and outputs bound before the clock starts; with few "
    "poses they run on one thread or on all, whichever was faster in a trial before.",
    "Every contender was checked against float64 before it was timed; 'error' is relative to what "
    "was to be computed (the increment of a refiner, the change of the parameters by training).",
    "Fractions count the operations and bytes that the method needs, whatever a contender does: a "
    "stage of the linear block is two layers, collapsed, for all.",
)
#: What this run says nothing about.
ON_CPU = (
    "Nothing here ran on a GPU, and nothing with another number of threads; whoever was not timed, "
    "and why, stands under 'Not timed', if anybody."
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
        "notes": [*NOTES, *([ON_CPU] if about["device"] == "cpu" else [])],
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
    if row["suite"] != CALLS and not is_ceiling(row):
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


def is_ceiling(row: Row) -> bool:
    """Whether a row is of what others are held against."""
    return row["contender"] in CEILING_NAMES


def _add_fractions(rows: list[Row], device: str) -> None:
    ceilings = {(_group(r), r["contender"], r["precision"]): r for r in rows if is_ceiling(r)}
    for row in rows:
        if is_ceiling(row):
            continue
        plain = device == "cpu" and row["precision"] == "fp32"
        precision = "fp16" if row["precision"] in ("auto", "tf32") else row["precision"]
        peak = (FMA, "fp32") if plain else (MATRIX, precision)
        for name, rate, key in (
            ("of_fma", "flop_per_s", peak),
            ("of_copy", "bytes_per_s", (COPY, "fp32")),
        ):
            ceiling = ceilings.get((_group(row), *key))
            if rate in row and ceiling is not None:
                row |= _fraction(name, rate, row, ceiling)


def _fraction(name: str, rate: str, row: Row, ceiling: Row) -> dict[str, float]:
    """Of the ceiling's rate in the same turn."""
    work, theirs = (r[rate] * r["us"] for r in (row, ceiling))
    faster = ratio(row, ceiling)
    parts = {"": "ratio", "_low": "low", "_high": "high"}
    return {name + part: work / theirs * faster[of] for part, of in parts.items()}


def _group(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in GROUP)


def _add_ratios(rows: list[Row]) -> None:
    for row in rows:
        if row["contender"] != OURS:
            continue
        row["ratios"] = [
            {name: peer[name] for name in ("contender", "precision", "collapsed")}
            | ratio(row, peer)
            for peer in rows
            if peer is not row and not is_ceiling(peer) and _group(peer) == _group(row)
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
