"""The table an evaluation produces: errors per action, their mean, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["EvaluationTable"]

ROOT_ERROR = "root error"
MEAN_ROW = "mean over actions"
POSES_ROW = "mean over poses"
ROOT_TITLES = {
    "given": "root given",
    "solve": "root solved once",
    "solve_each_stage": "root solved at each stage",
}


@dataclass(eq=False)
class EvaluationTable:
    """Mean errors in millimetres of the lifter and of every stage, per action.

    Attributes:
        model: What was evaluated, for the heading.
        data: What it was evaluated on, for the heading.
        actions: Row names, A of them.
        counts: Number of poses per row.
        values: ``values[root][metric]`` is ``(A, K + 1)`` float64: column 0 is the lifter, column k
            is stage k. ``root`` is "given", "solve" or "solve_each_stage". Where roots are solved,
            the metric "root error" is their distance from the true ones, in column k of the root
            that stage k + 1 starts from ("solve": the same in all columns), over the poses whose
            root could be solved; a row without any is NaN.
        trained_root: Root mode the model was trained with; "" if unknown.
        unsolved: Number of poses whose root could not be solved, per solved root mode. They keep
            the lifter's pose and count in the averages.
    """

    model: str
    data: str
    actions: list[str]
    counts: list[int]
    values: dict[str, dict[str, Tensor]]
    trained_root: str = ""
    unsolved: dict[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of poses evaluated."""
        return sum(self.counts)

    @property
    def stages(self) -> int:
        """K, the number of refinement stages."""
        first = next(iter(next(iter(self.values.values())).values()))
        return first.shape[1] - 1

    @property
    def columns(self) -> list[str]:
        """Column titles: lifter, stage 1, ..., stage K."""
        return ["lifter", *(f"stage {k + 1}" for k in range(self.stages))]

    def mean(self, root: str, metric: str = "MPJPE") -> Tensor:
        """Mean of the per-action means ``(K + 1,)``, Human3.6M's convention."""
        return self.values[root][metric].mean(dim=0)

    def mean_over_poses(self, root: str, metric: str = "MPJPE") -> Tensor:
        """Mean over all poses alike ``(K + 1,)``; differs where actions have unequal lengths."""
        counts = torch.tensor(self.counts, dtype=torch.float64)
        return counts @ self.values[root][metric] / counts.sum()

    def ratio(self, root: str, metric: str = "MPJPE") -> float:
        """Error after the last stage, divided by the lifter's (means over actions)."""
        mean = self.mean(root, metric)
        return float(mean[-1] / mean[0])

    def text(self) -> str:
        """The table for people: a block per metric and root, then the means over actions."""
        width = max(len(MEAN_ROW), *(len(name) for name in self.actions))
        lines = [
            f"{self.model} on {self.data}: {self.samples:,} poses, {len(self.actions)} actions, "
            "errors in mm"
        ]
        lines += [
            f"{ROOT_TITLES[root]}: not solvable for {count:,} of {self.samples:,} poses, which "
            "keep the lifter's pose"
            for root, count in self.unsolved.items()
        ]
        if self.trained_root:
            lines.append(f"the stages were trained with {ROOT_TITLES[self.trained_root]}")
        for root, metrics in self.values.items():
            for metric, values in metrics.items():
                lines += ["", f"{metric}, {ROOT_TITLES[root]}"]
                lines.append(f"{'action':<{width}} {'poses':>9}" + _titles(self.columns))
                for name, count, row in zip(self.actions, self.counts, values, strict=True):
                    lines.append(f"{name:<{width}} {count:>9,}" + _numbers(row))
                for name, row in self._means(root, metric):
                    lines.append(f"{name:<{width}} {self.samples:>9,}" + _numbers(row))
        return "\n".join([*lines, "", self.summary()]) + "\n"

    def summary(self) -> str:
        """The means over actions, a line per metric and root, with the ratio refined / lifter."""
        name = max(len(metric) for metrics in self.values.values() for metric in metrics)
        label = max(len(title) for title in ROOT_TITLES.values()) + name + 2
        lines = [
            f"{f'mean over {len(self.actions)} actions':<{label}}"
            + _titles(self.columns)
            + "   last/lifter"
        ]
        for root, metrics in self.values.items():
            for metric in metrics:
                title = f"{metric:<{name}}  {ROOT_TITLES[root]}"
                lines.append(
                    f"{title:<{label}}"
                    + _numbers(self.mean(root, metric))
                    + f"{self.ratio(root, metric):>14.3f}"
                )
        return "\n".join(lines)

    def to_csv(self) -> str:
        """One line per root, metric and action (and their mean), header first."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(
            ["root", "metric", "action", "poses", *(c.replace(" ", "_") for c in self.columns)]
        )
        for root, metrics in self.values.items():
            for metric, values in metrics.items():
                rows = [*zip(self.actions, self.counts, values, strict=True)]
                rows += [(name, self.samples, row) for name, row in self._means(root, metric)]
                for name, count, row in rows:
                    numbers = (f"{value:.4f}" for value in row.tolist())
                    writer.writerow([root, metric, name, count, *numbers])
        return buffer.getvalue()

    def to_json(self) -> str:
        """The whole table as a JSON object; errors are unrounded, NaN is null."""
        results = [
            {
                "root": root,
                "metric": metric,
                "per_action": dict(zip(self.actions, map(_plain, values), strict=True)),
                "mean_over_actions": _plain(self.mean(root, metric)),
                "mean_over_poses": _plain(self.mean_over_poses(root, metric)),
            }
            for root, metrics in self.values.items()
            for metric, values in metrics.items()
        ]
        actions = [
            {"name": name, "poses": count}
            for name, count in zip(self.actions, self.counts, strict=True)
        ]
        content = {
            "model": self.model,
            "data": self.data,
            "samples": self.samples,
            "unit": "mm",
            "columns": self.columns,
            "actions": actions,
            "trained_root": self.trained_root,
            "unsolved_roots": self.unsolved,
            "results": results,
        }
        return json.dumps(content, indent=1, allow_nan=False)

    def _means(self, root: str, metric: str) -> list[tuple[str, Tensor]]:
        return [
            (MEAN_ROW, self.mean(root, metric)),
            (POSES_ROW, self.mean_over_poses(root, metric)),
        ]


def _titles(columns: list[str]) -> str:
    return "".join(f"{title:>10}" for title in columns)


def _numbers(row: Tensor) -> str:
    # A model that diverges must not make its columns touch.
    return "".join(f"{value:>10{'.1f' if abs(value) < 1e6 else '.1e'}}" for value in row.tolist())


def _plain(row: Tensor) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [value if math.isfinite(value) else None for value in row.tolist()]
