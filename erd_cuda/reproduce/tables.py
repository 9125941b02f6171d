"""Result tables that can be read in a terminal, in Markdown, in a spreadsheet and in a browser."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from tabulate import tabulate

__all__ = ["Cell", "Spread", "Table"]


@dataclass(frozen=True)
class Spread:
    """Mean over seeds of one number, with the sample standard deviation if there are several.

    Attributes:
        values: one per seed, mm.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds, mm."""
        return sum(self.values) / len(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (n - 1), mm; None of a single seed."""
        if len(self.values) < 2:
            return None
        total = sum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(total / (len(self.values) - 1))

    def __sub__(self, other: Spread) -> Spread:
        """Seed by seed: the two must be of the same seeds."""
        return Spread(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def __truediv__(self, other: Spread) -> Spread:
        return Spread(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def text(self, digits: int = 1) -> str:
        """``44.5 ± 0.1``, or ``44.5`` of a single seed."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


Cell = Spread | float | int | str | None


@dataclass
class Table:
    """One table of the report.

    Attributes:
        name: file name without suffix, such as ``table1``.
        title: heading.
        columns: C column titles.
        rows: each of C cells; None is empty.
        note: what a reader has to know, a sentence or two.
        digits: decimals of numbers.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    note: str = ""
    digits: int = 1

    def add(self, *cells: Cell) -> None:
        """Append a row.

        Raises:
            ValueError: another number of cells than there are columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(
                f"a row of table {self.name} has {len(cells)} cells, expected {len(self.columns)}"
            )
        self.rows.append(cells)

    def markdown(self) -> str:
        """The table as a GitHub table under its heading."""
        body = tabulate(
            self._texts(), headers=self.columns, tablefmt="github", disable_numparse=True
        )
        note = f"\n{self.note}\n" if self.note else ""
        return f"### {self.title}\n\n{body}\n{note}"

    def csv(self) -> str:
        """Header and rows; a number with a spread takes two columns, ``X`` and ``X std``."""
        spread = [
            any(isinstance(row[i], Spread) and row[i].deviation is not None for row in self.rows)  # type: ignore[union-attr]
            for i in range(len(self.columns))
        ]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        header: list[str] = []
        for title, has_spread in zip(self.columns, spread, strict=True):
            header += [title, f"{title} std"] if has_spread else [title]
        writer.writerow(header)
        for row in self.rows:
            cells: list[str] = []
            for cell, has_spread in zip(row, spread, strict=True):
                cells.append(_exact(cell.mean if isinstance(cell, Spread) else cell))
                if has_spread:
                    cells.append(_exact(cell.deviation if isinstance(cell, Spread) else None))
            writer.writerow(cells)
        return out.getvalue()

    def html(self) -> str:
        """The table as a section of a page."""
        head = "".join(f"<th>{escape(title)}</th>" for title in self.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>\n"
            for row in self._texts()
        )
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return (
            f'<section id="{escape(self.name)}"><h2>{escape(self.title)}</h2>\n'
            f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>{note}</section>\n"
        )

    def _texts(self) -> list[list[str]]:
        return [[self._text(cell) for cell in row] for row in self.rows]

    def _text(self, cell: Cell) -> str:
        if cell is None:
            return ""
        if isinstance(cell, Spread):
            return cell.text(self.digits)
        return f"{cell:.{self.digits}f}" if isinstance(cell, float) else str(cell)


def _exact(cell: Cell) -> str:
    """For programs: all digits that mean something."""
    if cell is None:
        return ""
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)
