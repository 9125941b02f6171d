"""What got slower since an earlier run, beyond the noise of both."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from erd_cuda.benchmarks.call_cases import SUITE as CALLS
from erd_cuda.benchmarks.cases import OURS
from erd_cuda.benchmarks.results import IDENTITY, Row, quartiles

#: Changes that no clock and no scheduler lets us see, whatever the spread says.
LEAST = 0.03


def check_comparable(old: dict[str, Any], machine: dict[str, Any], device: str) -> None:
    """Raise ValueError unless the earlier run was on such a machine with as many threads."""
    if old["device"] != device:
        raise ValueError(f"--compare: the earlier run was on {old['device']}, this one on {device}")
    names = ("processor", "threads", "instruction_set", *(["gpu"] if device == "cuda" else []))
    for name in names:
        before, now = old["machine"].get(name), machine.get(name)
        if before != now:
            words = name.replace("_", " ")
            raise ValueError(f"--compare: the earlier run had {words} {before}, this one has {now}")


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """What erd_cuda was timed on in both runs: ``slower`` (or faster) by more than the noise?

    Each has ``name``, ``old_us``, ``new_us``, ``change`` (0.1 is ten percent slower), ``noise``
    (the interquartile ranges of both, relative, added up; at least `LEAST`), ``slower`` and
    ``faster``. And ``old_of_ceiling`` and ``new_of_ceiling``, the fractions of the peak or the copy
    rate of the same turns, None where there are none: if they stayed, the machine was slower.
    """
    before = {_identity(row): row for row in old["rows"] if "us" in row}
    found = []
    for row in new["rows"]:
        was = before.get(_identity(row))
        if not _is_ours(row) or "us" not in row or was is None:
            continue
        change = row["us"] / was["us"] - 1.0
        noise = max(LEAST, _spread(row) + _spread(was))
        found.append(
            {
                "name": _name(row),
                "old_us": was["us"],
                "new_us": row["us"],
                "change": change,
                "noise": noise,
                "old_of_ceiling": _of_ceiling(was),
                "new_of_ceiling": _of_ceiling(row),
                "slower": change > noise,
                "faster": change < -noise,
            }
        )
    return found


def has_fractions(results: dict[str, Any]) -> bool:
    """Whether ceilings took turns in that run; once they had minutes of their own."""
    return any(_of_ceiling(row) is not None for row in results["rows"])


def _of_ceiling(row: Row) -> float | None:
    for name in ("of_fma", "of_copy"):
        # Without quartiles it is a fraction of a ceiling of another minute.
        if f"{name}_low" in row:
            return float(row[name])
    return None


def _is_ours(row: Row) -> bool:
    """In the suite of single calls every contender but torch's own is one of our functions."""
    if row["suite"] == CALLS:
        return not row["contender"].startswith("torch")
    return bool(row["contender"] == OURS)


def _name(row: Row) -> str:
    what = row["contender"] if row["suite"] == CALLS else row["block"]
    words = [row["suite"], what, row["precision"], f"batch {row['batch']:,}"]
    return ", ".join(word for word in words if word)


def _identity(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in IDENTITY)


def _spread(row: Row) -> float:
    """Within the turns or between them, whichever is larger."""
    low, median, high = quartiles(row["turns_us"])
    return max((high - low) / median, (row["us_high"] - row["us_low"]) / row["us"])


def table(found: list[dict[str, Any]]) -> str:
    """For a terminal."""
    rows = [
        [
            each["name"],
            f"{each['old_us']:,.1f}",
            f"{each['new_us']:,.1f}",
            f"{each['change']:+.1%}",
            f"{each['noise']:.1%}",
            " to ".join(
                "?" if fraction is None else f"{fraction:.1%}"
                for fraction in (each["old_of_ceiling"], each["new_of_ceiling"])
            )
            if each["new_of_ceiling"] is not None
            else "",
            "SLOWER" if each["slower"] else "faster" if each["faster"] else "",
        ]
        for each in found
    ]
    headers = ["erd_cuda", "before, us", "now, us", "change", "noise", "of the ceiling", ""]
    align = ("left", "right", "right", "right", "right", "right", "left")
    return tabulate(rows, headers, colalign=align, disable_numparse=True)
