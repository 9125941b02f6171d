"""This project's own targets for its speed, as ratios within one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from erd_cuda.benchmarks.cases import OURS
from erd_cuda.benchmarks.refine_cases import PAPER
from erd_cuda.benchmarks.results import Row, find, ratio

Results = dict[str, Any]
Figure = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A figure that is to be at least so large.

    Attributes:
        text: what it is about.
        least: what is aimed at.
        figure: finds ``value``, where there is a spread ``low`` and ``high``, and the peer's name
            as ``against``; None where it was not measured, or ``missing`` with the reason.
    """

    text: str
    least: float
    figure: Callable[[Results], Figure | None]


def _slowest_gain(
    results: Results, suite: str, is_peer: Callable[[Row], bool], **wanted: object
) -> Figure | None:
    """The ratio to the best of some peers."""
    ours = find(results, suite=suite, contender=OURS, **wanted)
    if not ours:
        return None
    ratios = [r for r in ours[0]["ratios"] if r["contender"] != OURS and is_peer(r)]
    if not ratios:
        return None
    best = min(ratios, key=lambda r: float(r["ratio"]))
    return {
        "value": best["ratio"],
        "low": best["low"],
        "high": best["high"],
        "against": best["contender"],
    }


def _gain(text: str, least: float, suite: str, peer: Callable[[Row], bool], **w: object) -> Target:
    return Target(text, least, lambda results: _slowest_gain(results, suite, peer, **w))


def _over_own_fp32(results: Results, batch: int) -> Figure | None:
    wanted = {"suite": "refine", "block": "linear", "contender": OURS, "batch": batch}
    rows = {
        row["precision"]: row
        for row in results["rows"]
        if all(row[name] == value for name, value in wanted.items())
    }
    if "missing" in rows.get("bf16", {}):
        return {"missing": rows["bf16"]["missing"]}
    if any("us" not in rows.get(precision, {}) for precision in ("fp32", "bf16")):
        return None
    found = ratio(rows["bf16"], rows["fp32"])
    return {"value": found["ratio"], "low": found["low"], "high": found["high"], "against": OURS}


def _of_fma(results: Results, block: str, batch: int) -> Figure | None:
    wanted = {"suite": "refine", "block": block, "batch": batch, "precision": "fp32"}
    rows = [row for row in find(results, contender=OURS, **wanted) if "of_fma" in row]
    if not rows:
        return None
    found = rows[0]
    figure = {"value": found["of_fma"], "low": found["of_fma_low"], "high": found["of_fma_high"]}
    return figure | {"against": "multiply-add peak"}


def _poses(results: Results) -> Figure | None:
    wanted = {"suite": "refine", "block": "linear", "precision": "fp32"}
    rates = [row["poses_per_s"] for row in find(results, contender=OURS, **wanted)]
    return {"value": max(rates) / 1e6, "against": "1 million poses/s"} if rates else None


def _targets() -> Iterator[Target]:
    """For CPUs: a GPU gets targets once it has been measured."""

    def same(row: Row) -> bool:
        return bool(row["collapsed"]) and row["precision"] == "fp32"

    def paper(row: Row) -> bool:
        return bool(row["contender"] == PAPER)

    linear: dict[str, object] = {"block": "linear", "precision": "fp32"}
    for batch, least in ((1, 5.0), (200, 1.5), (4096, 1.5), (65_536, 1.5)):
        text = f"refine fp32, collapsed, batch {batch:,}, best peer with the collapse"
        yield _gain(text, least, "refine", same, batch=batch, **linear)
    for batch, least in ((1, 30.0), (65_536, 15.0)):
        text = f"refine fp32, batch {batch:,}, torch eager with the paper's layers"
        yield _gain(text, least, "refine", paper, batch=batch, **linear)
    for batch in (4096, 65_536):
        text = f"refine bf16, collapsed, batch {batch:,}, own fp32"
        yield Target(text, 1.7, lambda results, batch=batch: _over_own_fp32(results, batch))  # type: ignore[misc]
    relu: dict[str, object] = {"block": "relu", "precision": "fp32"}
    for batch, least in ((1, 2.0), (4096, 1.2), (65_536, 1.2)):
        text = f"refine fp32, relu block, batch {batch:,}, best peer"
        yield _gain(text, least, "refine", lambda r: r["precision"] == "fp32", batch=batch, **relu)
    text = "refine fp32, relu block, batch 4,096, of the multiply-add peak"
    yield Target(text, 0.85, lambda results: _of_fma(results, "relu", 4096))
    at = {"batch": 65_536}
    for name, least, text in (
        ("torch.linalg.lstsq", 20.0, "torch.linalg.lstsq"),
        ("torch.compile", 1.5, "compiled closed form"),
    ):
        yield _gain(
            f"solve_root, batch 65,536, {text}",
            least,
            "solve_root",
            lambda r, name=name: r["contender"] == name,  # type: ignore[misc]
            **at,
        )
    for op in ("project", "residual"):
        text = f"{op}, batch 65,536, torch eager"
        yield _gain(text, 2.0, op, lambda r: r["contender"] == "torch eager", **at)
    text = "training step, batch 200, torch eager"
    yield _gain(text, 2.0, "training step", lambda r: r["contender"] == "torch eager")
    yield Target("refine fp32, collapsed, million poses a second", 1.0, _poses)


TARGETS = tuple(_targets())


def check(results: Results) -> list[Figure]:
    """All targets, JSON-ready: ``text``, ``least``, and what `Target.figure` found, if any."""
    if results["device"] != "cpu":
        return []
    return [
        {"text": target.text, "least": target.least} | (target.figure(results) or {})
        for target in TARGETS
    ]


def cells(figure: Figure) -> list[str]:
    """A row of a table with `COLUMNS`."""
    if "value" not in figure:
        why = f": {figure['missing']}" if "missing" in figure else ""
        return [figure["text"], "", f"{figure['least']:g}", f"not measured{why}", ""]
    met = figure["value"] >= figure["least"]
    spread = f" ({figure['low']:.2f} to {figure['high']:.2f})" if "low" in figure else ""
    return [
        figure["text"],
        figure["against"],
        f"{figure['least']:g}",
        f"{figure['value']:.2f}{spread}",
        "met" if met else "NOT MET",
    ]


COLUMNS = ("target", "against", "at least", "measured (quartiles)", "")


def table(figures: list[Figure]) -> str:
    """For a terminal."""
    align = ("left", "left", "right", "right", "left")
    return tabulate([cells(f) for f in figures], COLUMNS, colalign=align, disable_numparse=True)
