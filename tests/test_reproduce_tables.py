"""Result tables, their numbers with spread, and the paper's own numbers."""

from __future__ import annotations

import csv
import io

import pytest

from erd_cuda.reproduce import Spread, Table
from erd_cuda.reproduce.published import ACTIONS, TABLE1, TABLE2, TABLE3


def test_spread_of_seeds() -> None:
    spread = Spread((1.0, 2.0, 6.0))
    assert spread.mean == 3.0
    assert spread.deviation == pytest.approx(7**0.5)
    assert spread.text() == "3.0 ± 2.6"
    assert Spread((4.26,)).text() == "4.3" and Spread((4.26,)).deviation is None


def test_differences_are_seed_by_seed() -> None:
    """What all seeds gain alike has no spread, however far apart the seeds are."""
    gain = Spread((50.0, 60.0)) - Spread((48.0, 58.0))
    assert gain.values == (2.0, 2.0) and gain.deviation == 0.0
    with pytest.raises(ValueError, match="zip"):
        Spread((1.0,)) - Spread((1.0, 2.0))


def example() -> Table:
    table = Table("t", "A < B", ["who", "error", "n"], note="Read & understand.")
    table.add("lifter", Spread((1.0, 2.0)), 3)
    table.add("paper", 2.25, None)
    return table


def test_markdown() -> None:
    lines = example().markdown().splitlines()
    assert lines[0] == "### A < B"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert cells[0] == ["who", "error", "n"]
    assert cells[2:] == [["lifter", "1.5 ± 0.7", "3"], ["paper", "2.2", ""]]
    assert lines[-1] == "Read & understand."


def test_csv_has_a_column_for_the_spread() -> None:
    rows = list(csv.reader(io.StringIO(example().csv())))
    assert rows[0] == ["who", "error", "error std", "n"]
    assert rows[1] == ["lifter", "1.5000", "0.7071", "3"]
    assert rows[2] == ["paper", "2.2500", "", ""]


def test_html_is_escaped() -> None:
    page = example().html()
    assert "A &lt; B" in page and "Read &amp; understand." in page
    assert "<td>1.5 ± 0.7</td>" in page


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="table t has 2 cells, expected 3"):
        example().add("lifter", 1.0)


@pytest.mark.parametrize("row", TABLE1.values(), ids=map(str, TABLE1))
def test_table1_as_printed_is_consistent(row: tuple[float, ...]) -> None:
    """A number copied wrongly would move the mean."""
    *actions, mean = row
    assert len(actions) == len(ACTIONS) == 15
    assert sum(actions) / 15 == pytest.approx(mean, abs=0.06)


def test_tables_as_printed_agree_with_each_other() -> None:
    """But for one number that the paper gives as 49.3 and as 49.4."""
    for kind in ("GT2D", "DET2D"):
        for root in ("given", "solve"):
            assert TABLE1[kind, root][-1] == TABLE3["martinez", root, kind][1]
        assert TABLE2["residual", kind][1] == pytest.approx(
            TABLE3["martinez", "given", kind][1], abs=0.11
        )
