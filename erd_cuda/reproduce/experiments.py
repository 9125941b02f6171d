"""The paper's tables and figures: which jobs each needs, and what it makes of their results.

Every number is a mean over the schedule's seeds with its spread. The last stage counts, always:
nothing is chosen on test data.
"""

from __future__ import annotations

from erd_cuda.evaluation.table import ROOT_ERROR

from .bench import ROOTS, Bench, Experiment, main_job
from .beyond import BEYOND
from .jobs import DET2D, GT2D, INPUTS, LIFTERS, Job
from .published import ACTIONS, BACKPROJECTION, TABLE1, TABLE2, TABLE3, TABLE4
from .tables import Cell, Spread, Table

__all__ = ["EXPERIMENTS"]

LIFTER_TITLES = {"martinez": "Martinez et al.", "lcn": "Ci et al.", "semgcn": "Zhao et al."}
FEATURES = ("init2d", "proj2d", "concat", "residual")
PCA_COMPONENTS = 30


# ---- Table 1 -------------------------------------------------------------------------------------


def _table1(bench: Bench) -> Table:
    jobs = {(kind, root): main_job(kind, root=root) for kind in INPUTS for root in ROOTS}
    actions = bench.actions(jobs[GT2D, "given"])
    short = [ACTIONS.get(name, name) for name in actions]
    table = Table(
        "table1",
        "Table 1: MPJPE per action, mm",
        ["input", "root", "method", *short, "mean"],
    )
    for (kind, root), job in jobs.items():
        for method, k in (("lifter", 0), ("ERD", -1)):
            cells: list[Cell] = [bench.action(job, row, k) for row in range(len(actions))]
            table.add(kind, ROOTS[root], method, *cells, bench.stage(job, k))
        if kind in bench.printed:
            by_name = dict(zip(ACTIONS, TABLE1[kind, root], strict=False))
            printed = [by_name.get(name) for name in actions]
            table.add(kind, ROOTS[root], "paper's ERD", *printed, TABLE1[kind, root][-1])
        rest = [bench.runner.without_drifted_takes(each) for each in bench.seeds(job)]
        errors = [values for values in rest if values is not None]
        for method, k in (("lifter", 0), ("ERD", -1)) if errors else ():
            mean = Spread(tuple(values[k] for values in errors))
            method += ", without drifted takes"
            table.add(kind, ROOTS[root], method, *[None] * len(actions), mean)
    return table


# ---- Table 2 -------------------------------------------------------------------------------------


def _table2(bench: Bench) -> Table:
    columns = ["features", "input", "lifter", "ERD", "gain", "gain per 100k parameters"]
    table = Table("table2", "Table 2: what a stage sees; root given, MPJPE, mm", columns)
    table.columns = [*columns, *(["paper: lifter", "paper: ERD"] if bench.printed else [])]
    for kind in INPUTS:
        for features in FEATURES:
            job = main_job(kind, features=features)
            before, after = bench.stage(job, 0), bench.stage(job, -1)
            gain = before - after
            stages = bench.runner.model(bench.seeds(job)[0]).regressors
            size = sum(parameter.numel() for parameter in stages.parameters()) / 1e5
            per = Spread(tuple(value / size for value in gain.values))
            printed = TABLE2[features, kind] if kind in bench.printed else (None, None)
            paper = printed if bench.printed else ()
            table.add(features, kind, before, after, gain, per, *paper)
    return table


# ---- Table 3 -------------------------------------------------------------------------------------


def _table3(bench: Bench) -> Table:
    columns = ["lifter", "root"]
    for kind in INPUTS:
        columns += [f"{kind}: ERD", f"{kind}: lifter", f"{kind}: root error"]
        columns += [f"{kind}: paper"] if kind in bench.printed else []
    table = Table("table3", "Table 3: three lifters, MPJPE, mm", columns)
    for root in ROOTS:
        for lifter in LIFTERS:
            cells: list[Cell] = [LIFTER_TITLES[lifter], ROOTS[root]]
            for kind in INPUTS:
                job = main_job(kind, lifter=lifter, root=root)
                cells += [bench.stage(job, -1), bench.stage(job, 0)]
                solved = root == "solve"
                cells.append(bench.stage(job, 0, ROOT_ERROR) if solved else None)
                if kind in bench.printed:
                    before, after = TABLE3[lifter, root, kind]
                    cells.append(f"{after} ({before})")
            table.add(*cells)
    return table


# ---- Table 4 -------------------------------------------------------------------------------------

_HUMANEVA = Job("humaneva", DET2D, root="solve")


def _table4(bench: Bench) -> Table:
    rows = bench.actions(_HUMANEVA)
    paper = ["paper: lifter", "paper: ERD"] if bench.is_humaneva else []
    table = Table(
        "table4",
        "Table 4: HumanEva-I, P-MPJPE per subject and action, mm; detected 2D, root solved",
        ["action", "subject", "lifter", "ERD", "gain", *paper],
        note="" if bench.is_humaneva else "Not HumanEva-I: other motion in its format.",
    )
    for row, name in enumerate(rows):
        subject, action = name.split(" ", 1)
        subject = subject.rsplit("/", 1)[-1]
        before = bench.action(_HUMANEVA, row, 0, "P-MPJPE")
        after = bench.action(_HUMANEVA, row, -1, "P-MPJPE")
        printed = TABLE4.get((action, subject), (None, None)) if bench.is_humaneva else ()
        table.add(action, subject, before, after, before - after, *printed)
    return table


# ---- Figure 3, back-projection, PCA --------------------------------------------------------------


def _figure3(bench: Bench) -> Table:
    stages = [f"stage {k}" for k in range(1, bench.schedule.stages + 1)]
    table = Table(
        "figure3", "Figure 3: MPJPE by stage, mm", ["input", "root", "lifter", *stages], digits=2
    )
    for kind in INPUTS:
        for root in ROOTS:
            job = main_job(kind, root=root)
            cells = [bench.stage(job, k) for k in range(bench.schedule.stages + 1)]
            table.add(kind, ROOTS[root], *cells)
    return table


def _backprojection(bench: Bench) -> Table:
    paper = ["paper: worse by"] if GT2D in bench.printed else []
    table = Table(
        "backprojection",
        "Back-projection: the lifter's pose, projected and lifted once more, MPJPE, mm",
        ["lifter", "input", "lifted", "lifted again", "worse by", *paper],
    )
    for lifter in LIFTERS:
        for kind in INPUTS:
            job = main_job(kind, lifter=lifter)
            twice = [bench.runner.lifted_again(each) for each in bench.seeds(job)]
            once, again = (Spread(values) for values in zip(*twice, strict=True))
            printed = (BACKPROJECTION[lifter] if kind == GT2D else None,) if paper else ()
            table.add(LIFTER_TITLES[lifter], kind, once, again, again - once, *printed)
    return table


def _pca(bench: Bench) -> Table:
    table = Table(
        "pca",
        f"PCA of the 2D to {PCA_COMPONENTS} components, root given, MPJPE, mm",
        ["input", "PCA", "lifter", "ERD"],
    )
    for kind in INPUTS:
        for components in (None, PCA_COMPONENTS):
            job = main_job(kind, pca=components)
            if not bench.has(job):
                continue
            name = "off" if components is None else "on"
            table.add(kind, name, bench.stage(job, 0), bench.stage(job, -1))
    return table


EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        "Table 1",
        tuple(main_job(kind, root=root) for kind in INPUTS for root in ROOTS),
        _table1,
    ),
    "table2": Experiment(
        "Table 2",
        tuple(main_job(kind, features=features) for kind in INPUTS for features in FEATURES),
        _table2,
    ),
    "table3": Experiment(
        "Table 3",
        tuple(
            main_job(kind, lifter=lifter, root=root)
            for lifter in LIFTERS
            for root in ROOTS
            for kind in INPUTS
        ),
        _table3,
    ),
    "table4": Experiment("Table 4", (_HUMANEVA,), _table4),
    "figure3": Experiment(
        "Figure 3", tuple(main_job(kind, root=root) for kind in INPUTS for root in ROOTS), _figure3
    ),
    "backprojection": Experiment(
        "Back-projection",
        tuple(main_job(kind, lifter=lifter) for lifter in LIFTERS for kind in INPUTS),
        _backprojection,
    ),
    "pca": Experiment(
        "PCA",
        tuple(main_job(kind, pca=n) for kind in INPUTS for n in (None, PCA_COMPONENTS)),
        _pca,
    ),
    "beyond": BEYOND,
}
