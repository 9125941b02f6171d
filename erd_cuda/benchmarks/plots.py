"""Throughput over batch size, as SVG that stands inside a page."""

from __future__ import annotations

import io
from typing import Any

from erd_cuda.benchmarks.cases import OURS

Row = dict[str, Any]

#: Poses a second that the paper states for its own implementation on a GPU.
PAPER_RATE = 4000
_OURS_COLOUR = "#cc560f"


def throughput(rows: list[Row], title: str) -> str:
    """Poses per second of all contenders of one suite and block, both axes logarithmic.

    Args:
        rows: those that were timed, of several batch sizes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        lines.setdefault(label(row), []).append((row["batch"], row["poses_per_s"]))
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for name, points in lines.items():
        is_ours = name.startswith(OURS)
        batches, rates = zip(*sorted(points), strict=True)
        style: dict[str, Any] = {"linewidth": 1.1}
        if is_ours:
            style = {"color": _OURS_COLOUR, "linewidth": 2.4}
            style["linestyle"] = "--" if "bf16" in name else "-"
        axes.plot(batches, rates, marker="o", markersize=4, label=name, **style)
    axes.axhline(PAPER_RATE, color="#68737f", linestyle=":", label="the paper's 4,000 on a GPU")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("poses a call")
    axes.set_ylabel("poses per second")
    axes.set_title(title)
    axes.grid(color="#d5dbe3", linewidth=0.6)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    drawn = io.StringIO()
    # Letters stay letters, and equal figures give equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def label(row: Row) -> str:
    """A contender with what sets it apart from others of its name."""
    parts = [row["contender"]]
    if row["precision"] != "fp32":
        parts.append(row["precision"])
    if row["block"] == "linear" and not row["collapsed"]:
        parts.append("not collapsed")
    return ", ".join(parts)
