"""Pages of tables and pictures that need no other file."""

from __future__ import annotations

from html import escape

__all__ = ["html_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1250px; padding: 0 1rem;
  color: #171c24; background: #fbfcfd; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d5dbe3; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img, svg { max-width: 100%; height: auto; }
pre { background: #eef2f6; padding: 1rem; overflow-x: auto; }
"""


def html_page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: of the window, plain text.
        body: HTML.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"{body}</body></html>\n"
    )
