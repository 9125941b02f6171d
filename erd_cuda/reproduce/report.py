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
from erd_cuda.build import build_info

from .jobs import Schedule
from .runner import Runner
from .sources import Sources
from .tables import Table

__all__ = ["configuration", "write_report", "write_table"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1150px; padding: 0 1rem;
  color: #171c24; background: #fbfcfd; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d5dbe3; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
pre { background: #eef2f6; padding: 1rem; overflow-x: auto; }
"""


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
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>erd_cuda: the paper's experiments</title><style>{_STYLE}</style></head><body>\n"
        "<h1>Explicit Residual Descent: the paper's experiments</h1>\n"
        "<p>Numbers are means over seeds ± standard deviation; the last stage counts, nothing was "
        "chosen on test data.</p>\n"
        + "".join(table.html() for table in tables)
        + images
        + f"<section><h2>Configuration</h2><pre>{escape(json.dumps(facts, indent=1))}</pre>"
        "</section></body></html>\n"
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"
