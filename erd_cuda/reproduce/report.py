"""What a reproduction leaves behind: Markdown, CSV, the configuration, and one page with it all."""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

import torch

from erd_cuda._files import write_text
from erd_cuda._page import html_page
from erd_cuda.build import build_info

from .jobs import Schedule
from .runner import Runner
from .sources import Sources
from .tables import Table

__all__ = ["configuration", "write_report", "write_table"]


def configuration(
    schedule: Schedule, sources: Sources, runner: Runner, seconds: float
) -> dict[str, Any]:
    """Settings, seeds, versions, machine and times of a reproduction."""
    build = build_info()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "schedule": asdict(schedule),
        "data": {name: source.describe() for name, source in sources.by_name.items()},
        "versions": {
            "erd_cuda": build["version"],
            "commit": build["commit"],
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "processor": build["cpu_capability"],
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
        "seconds_of_this_call": round(seconds, 1),
        "training_seconds": runner.seconds(),
    }


def write_table(folder: Path, table: Table) -> None:
    """``NAME.md`` and ``NAME.csv``."""
    write_text(folder / f"{table.name}.md", table.markdown())
    write_text(folder / f"{table.name}.csv", table.csv())


def write_report(
    folder: Path, tables: Sequence[Table], pictures: Sequence[Path], facts: dict[str, Any]
) -> Path:
    """``configuration.json`` and ``report.html``, a page that needs no other file.

    Args:
        folder: where they go.
        tables: in the order of the page.
        pictures: PNG files.
        facts: of :func:`configuration`.

    Returns:
        The page's path.
    """
    write_text(folder / "configuration.json", json.dumps(facts, indent=1) + "\n")
    images = "".join(
        f'<section><h2>{escape(path.stem)}</h2><img alt="{escape(path.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"></section>\n'
        for path in pictures
    )
    body = (
        "<h1>Explicit Residual Descent: the paper's experiments</h1>\n"
        "<p>Numbers are means over seeds ± standard deviation; the last stage counts, nothing was "
        "chosen on test data.</p>\n"
        + "".join(table.html() for table in tables)
        + images
        + f"<section><h2>Configuration</h2><pre>{escape(json.dumps(facts, indent=1))}</pre>"
        "</section>"
    )
    write_text(folder / "report.html", html_page("erd_cuda: the paper's experiments", body))
    return folder / "report.html"
