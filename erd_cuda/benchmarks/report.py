"""One page with all that was measured."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from erd_cuda._page import html_page
from erd_cuda.benchmarks import targets
from erd_cuda.benchmarks.cases import OURS
from erd_cuda.benchmarks.ceiling_cases import SUITE as CEILINGS
from erd_cuda.benchmarks.plots import PAPER_RATE, label, throughput
from erd_cuda.benchmarks.results import is_ceiling
from erd_cuda.reproduce.tables import Table

Row = dict[str, Any]

_COLUMNS = (
    "contender",
    "batch",
    "time of a call",
    "poses/s",
    "erd_cuda faster by",
    "of the peak",
    "of the copy rate",
    "error",
)
#: Our rows stand out, and begin a batch size.
_STYLE = "<style>.ours td { font-weight: 600; border-top: 2px solid #68737f; }"
_STYLE += " th, td { padding: .2rem .5rem; }</style>\n"


def write_report(results: dict[str, Any]) -> str:
    """The page, of results as `results.merge` has them with ``targets``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    machine = results["machine"]
    where = machine.get("gpu", machine["processor"])
    timed = [row for row in results["rows"] if "us" in row]
    title = f"erd_cuda {machine['versions']['erd_cuda']} on {where}: benchmarks"
    parts = [_STYLE, f"<h1>{escape(title)}</h1>\n", _machine(results)]
    if results["targets"]:
        table = Table(
            "targets", "This project's own targets, and what was measured", targets.COLUMNS
        )
        for figure in results["targets"]:
            table.add(*targets.cells(figure))
        parts.append(table.html())
    parts.append(_ceilings([row for row in timed if is_ceiling(row)]).html())
    contenders = [row for row in timed if not is_ceiling(row)]
    for suite, block in dict.fromkeys((row["suite"], row["block"]) for row in contenders):
        rows = [row for row in contenders if (row["suite"], row["block"]) == (suite, block)]
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
    columns = ("", "precision", "taking turns with", "rate (quartiles)")
    table = Table("ceilings", "Ceilings, measured in the same run", columns)
    for row in rows:
        name, unit = "flop_per_s", "GFLOP/s"
        if name not in row:
            name, unit = "bytes_per_s", "GB/s, read and written"
        # What takes less time has the higher rate.
        rate, low, high = (
            f"{row[name] * row['us'] / row[us] / 1e9:,.1f}" for us in ("us", "us_high", "us_low")
        )
        beside = "each other"
        if row["suite"] != CEILINGS:
            beside = f"{row['suite']} {row['block']}".strip() + f", batch {row['batch']:,}"
        table.add(row["contender"], row["precision"], beside, f"{rate} ({low} to {high}) {unit}")
    return table


def _suite(suite: str, block: str, rows: list[Row]) -> str:
    title = f"{suite}, {block} block" if block else suite
    name = f"{suite} {block}".strip().replace(" ", "-")
    lines = [_cells(row, rows) for row in rows]
    shown = [i for i in range(len(_COLUMNS)) if any(line[i] for line in lines)]
    note = _beside_paper(rows) if suite == "refine" else ""
    table = Table(name, title, [_COLUMNS[i] for i in shown], note=note)
    for line in lines:
        table.add(*(line[i] for i in shown))
    drawing = ""
    if len({row["batch"] for row in rows}) > 1:
        drawing = f"<figure>{throughput(rows, title)}</figure>\n"
    # Not those of our module in somebody else's loop.
    ours = re.compile(rf"<tr>(?=<td>{OURS}(?! module))")
    return ours.sub('<tr class="ours">', table.html()) + drawing


def _beside_paper(rows: list[Row]) -> str:
    found = [row for row in rows if row["contender"] == OURS and row["precision"] == "fp32"]
    if not found:
        return ""
    best = max(found, key=lambda row: float(row["poses_per_s"]))
    rate = best["poses_per_s"]
    return (
        f"The paper states {PAPER_RATE:,} poses a second on a GPU; {OURS} comes to {rate:,.0f} "
        f"here in float32 at batch {best['batch']:,}, {rate / PAPER_RATE:,.0f} times as many."
    )


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
        duration(row["us"], row["us_low"], row["us_high"]),
        f"{row['poses_per_s']:,.0f}" if "poses_per_s" in row else "",
        gain,
        _fraction(row, "of_fma"),
        _fraction(row, "of_copy"),
        f"{row['error']:.1e}",
    ]


def _fraction(row: Row, name: str) -> str:
    if name not in row:
        return ""
    low, high = (100 * row[f"{name}_{end}"] for end in ("low", "high"))
    return f"{row[name]:.1%} ({low:.1f} to {high:.1f})"


def duration(us: float, low: float, high: float) -> str:
    """Microseconds and their quartiles in a unit that reads well."""
    scale, unit = (1.0, "us") if us < 1e3 else (1e3, "ms") if us < 1e6 else (1e6, "s")
    middle, *ends = (
        f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
        for value in (us / scale, low / scale, high / scale)
    )
    return f"{middle} {unit} ({' to '.join(ends)})"


def _not_timed(rows: list[Row]) -> str:
    if not rows:
        return ""
    table = Table("not-timed", "Not timed", ("contender", "suite", "batch", "why"))
    for row in rows:
        suite = f"{row['suite']} {row['block']}".strip()
        reason = row.get("missing") or f"FAILED: {row['failed']}"
        table.add(label(row), suite, f"{row['batch']:,}", reason)
    return table.html()
