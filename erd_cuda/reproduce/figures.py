"""Figures 2 and 3 of the paper, each as PNG and SVG."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from erd_cuda._files import replacing
from erd_cuda.demo.clips import choose_clips
from erd_cuda.demo.errors import measure_errors
from erd_cuda.viewer import write_picture

from .bench import Bench
from .jobs import DET2D, INPUTS, Job
from .sources import Sources
from .tables import Spread, Table

__all__ = ["FIGURE2_JOB", "can_draw", "check_drawing", "draw_figure2", "draw_figure3"]

#: Detected 2D and the true root: where the stages have most to do.
FIGURE2_JOB = Job("main", DET2D)

FORMATS = ("png", "svg")
_COLUMNS = 6
_COLOURS = {"given": "#1673c9", "solved": "#cc560f"}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_drawing() -> None:
    """Raise ImportError, with what to do, if there is nothing to draw with: before hours of
    training, not after."""
    if not can_draw():
        raise ImportError(
            "drawing figures needs matplotlib; install it with: pip install 'erd-cuda[viewer]'"
        )


def draw_figure2(folder: Path, bench: Bench, sources: Sources) -> list[Path]:
    """2D input, prediction and truth of test poses: one frame an action, of the median sequence.

    Args:
        folder: where ``figure2.png`` and ``figure2.svg`` go.

    Raises:
        ImportError: matplotlib is not installed.
    """
    job = bench.seeds(FIGURE2_JOB)[0]
    erd = bench.runner.model(job)
    test = sources.test(job.source, job.input)
    clips = choose_clips(erd, test, measure_errors(erd, test))[:_COLUMNS]
    return [
        write_picture(
            folder / f"figure2.{kind}",
            [clip.sequence for clip in clips],
            [clip.frame for clip in clips],
            title=f"{test.name}, {job.input}: the sequence of median error of each action",
        )
        for kind in FORMATS
    ]


def draw_figure3(folder: Path, table: Table) -> list[Path]:
    """Error by stage, a panel for each input, a curve for each root, bars of the seeds' spread.

    Args:
        folder: where ``figure3.png`` and ``figure3.svg`` go.
        table: that of the experiment ``figure3``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(INPUTS))
    for axes, kind in zip(panels, INPUTS, strict=True):
        for row in table.rows:
            if row[0] != kind:
                continue
            values = [cell for cell in row[2:] if isinstance(cell, Spread)]
            axes.errorbar(
                range(len(values)),
                [value.mean for value in values],
                yerr=[value.deviation or 0.0 for value in values],
                label=f"root {row[1]}",
                color=_COLOURS[str(row[1])],
                marker="o",
                markersize=4,
                capsize=3,
            )
        axes.set_title(kind)
        axes.set_xlabel("stage (0: the lifter)")
        axes.set_xticks(range(len(table.columns) - 2))
        axes.grid(color="#d5dbe3", linewidth=0.6)
        axes.legend(frameon=False)
    panels[0].set_ylabel("MPJPE, mm")
    paths = [folder / f"figure3.{kind}" for kind in FORMATS]
    for path in paths:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:])
    return paths
