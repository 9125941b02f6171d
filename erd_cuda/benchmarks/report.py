"""One page with all that was measured."""

from __future__ import annotations

from html import escape
from typing import Any

from erd_cuda._page import html_page
from erd_cuda.benchmarks import promises
from erd_cuda.benchmarks.call_cases import SUITE as CALLS
from erd_cuda.benchmarks.cases import OURS
from erd_cuda.benchmarks.ceiling_cases import SUITE as CEILINGS
from erd_cuda.benchmarks.plots import label, throughput
from erd_cuda.reproduce.tables import Table

Row = dict[str, Any]

_COLUMNS = (
    "contender",
    "batch",
    "time of a call (quartiles)",
    "poses/s",
    "erd_cuda is faster by (quartiles)",
    "of FMA peak",
    "of copy rate",
    "error",
)
#: What has a meaning where nothing is computed to speak of.
_OF_CALLS = (0, 1, 2, 7)


def write_report(results: dict[str, Any]) -> str:
    """The page, of results as `results.merge` has them with ``promises``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    machine = results["machine"]
    where = machine.get("gpu", machine["processor"])
    timed = [row for row in results["rows"] if "us" in row]
    title = f"erd_cuda {machine['versions']['erd_cuda']} on {where}: benchmarks"
    parts = [f"<h1>{escape(title)}</h1>\n", _machine(results)]
    if results["promises"]:
        table = Table("promises", "What is promised, and what was measured", promises.COLUMNS)
        for figure in results["promises"]:
            table.add(*promises.cells(figure))
        parts.append(table.html())
    parts.append(_ceilings([row for row in timed if row["suite"] == CEILINGS]).html())
    groups = dict.fromkeys((row["suite"], row["block"]) for row in timed)
    for suite, block in groups:
        if suite != CEILINGS:
            rows = [row for row in timed if (row["suite"], row["block"]) == (suite, block)]
            parts.append(_suite(suite, block, rows))
    parts.append(_not_timed([row for row in results["rows"] if "us" not in row]))
    notes = "".join(f"<li>{escape(note)}</li>" for note in results["notes"])
    parts.append(f"<section><h2>How it was measured</h2><ul>{notes}</ul></section>\n")
    return html_page(title, "".join(parts))


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    lines = []
    for name, value in (machine | {"plan": results["plan"]}).items():
        if name == "versions":
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        lines.append(f"<li>{escape(name.replace('_', ' '))}: {escape(str(value))}</li>")
    return f"<section><h2>Machine</h2><ul>{''.join(lines)}</ul></section>\n"


def _ceilings(rows: list[Row]) -> Table:
    table = Table("ceilings", "Ceilings, measured in the same run", ("", "precision", "rate"))
    for row in rows:
        if "flop_per_s" in row:
            rate = f"{row['flop_per_s'] / 1e9:,.1f} GFLOP/s"
        else:
            rate = f"{row['bytes_per_s'] / 1e9:,.1f} GB/s, read and written"
        table.add(row["contender"], row["precision"], rate)
    return table


def _suite(suite: str, block: str, rows: list[Row]) -> str:
    title = f"{suite}, {block} block" if block else suite
    name = f"{suite} {block}".strip().replace(" ", "-")
    shown = range(len(_COLUMNS)) if suite != CALLS else _OF_CALLS
    table = Table(name, title, [_COLUMNS[i] for i in shown])
    for row in rows:
        cells = _cells(row, rows)
        table.add(*(cells[i] for i in shown))
    drawing = ""
    if len({row["batch"] for row in rows}) > 1:
        drawing = f"<figure>{throughput(rows, title)}</figure>\n"
    return table.html() + drawing


def _cells(row: Row, rows: list[Row]) -> list[str]:
    gain = ""
    for ours in rows:
        for found in ours.get("ratios", []):
            same = all(found[k] == row[k] for k in ("contender", "precision", "collapsed"))
            # 16 bits are held against 16 bits, where there are any.
            fits = ours["batch"] == row["batch"] and ours["precision"] == row["precision"]
            if same and fits and row["contender"] != OURS:
                gain = f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"
    return [
        label(row),
        f"{row['batch']:,}",
        f"{duration(row['us'])} ({duration(row['us_low'])} to {duration(row['us_high'])})",
        f"{row['poses_per_s']:,.0f}" if "poses_per_s" in row else "",
        gain,
        f"{row['of_fma']:.1%}" if "of_fma" in row else "",
        f"{row['of_copy']:.1%}" if "of_copy" in row else "",
        f"{row['error']:.1e}",
    ]


def duration(us: float) -> str:
    """Microseconds in a unit that reads well."""
    if us < 1e3:
        return f"{us:.3g} us"
    return f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def _not_timed(rows: list[Row]) -> str:
    if not rows:
        return ""
    table = Table("not-timed", "Not timed", ("contender", "suite", "batch", "why"))
    for row in rows:
        suite = f"{row['suite']} {row['block']}".strip()
        reason = row.get("missing") or f"FAILED: {row['failed']}"
        table.add(label(row), suite, f"{row['batch']:,}", reason)
    return table.html()
