"""The tables of scores: the base student beside its teacher, and one table for each axis of the ablation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from matvlm import layouts
from matvlm.errors import UserError
from matvlm.experiments import AXES, Cell
from matvlm.report import convergence
from matvlm.report.read import read_eval, read_profile, read_train, rows_of, seeds_of
from matvlm.report.settings import Report
from matvlm.report.speed_table import speed_table
from matvlm.report.statistics import MEAN, Estimate, difference, over_seeds, score
from matvlm.report.table import Column, Entry, Row, Table, percent, points, significant, tokens

TITLES = {
    "main": "Teacher and base student",
    "losses": "Losses of the distillation",
    "layouts": "Placement of the Mamba-2 layers",
    "ratios": "Share of layers replaced by Mamba-2",
    "inits": "Initialisation of the Mamba-2 layers",
    "divergences": "Divergence of the probability loss",
    "grid": "Every loss combination with every layout",
}
TASK_NAMES = {
    "easy_vqa_yesno": "easy-VQA yes/no",
    "easy_vqa_open": "easy-VQA open",
    "sort_of_clevr_nonrelational": "Sort-of-CLEVR non-relational",
    "sort_of_clevr_relational": "Sort-of-CLEVR relational",
    MEAN: "Mean of tasks",
}
VARIED = {
    "losses": "Losses",
    "layouts": "Layout",
    "ratios": "Layout",
    "inits": "Initialisation",
    "divergences": "Divergence",
}
KL_NOTE = (
    "Validation KL: KL(teacher || student) in nats per answer token of held-out conversations, at the last step; "
    "lower is better."
)


def build(name: str, settings: Report, data: Path, train: Path | None) -> Table:
    """One table.

    Args:
        name: one of `TITLES`, or `speed`.
        data: `eval.csv`; `profile.csv` for `speed`.
        train: `train.csv`; without it, what is computed from it is left out.

    Raises:
        UserError: an unknown name, or data that lacks what the table shows.
    """
    if name == "speed":
        return speed_table(read_profile(data), settings)
    if name not in TITLES:
        raise UserError(f"unknown table {name!r}; allowed: {', '.join([*TITLES, 'speed'])}")
    scores, log = read_eval(data), read_train(train) if train else None
    if name in ("main", "grid"):
        columns, rows, notes = {"main": _main, "grid": _grid}[name](settings, scores, log)
    else:
        columns, rows, notes = _ablation(name, settings, scores, log)
    title = f"{TITLES[name]} (preset {settings.preset})"
    return Table(name, title, tuple(columns), tuple(rows), tuple(notes), settings.command(f"table_{name}"))


Parts = tuple[list[Column], list[Row], list[str]]


def _main(settings: Report, scores: pd.DataFrame, log: pd.DataFrame | None) -> Parts:
    """Teacher, base student and their difference; the student's share of the teacher's mean score."""
    teacher, student = teacher_rows(scores), seeds_of(scores, settings.base_cell, settings.ablation.seeds)
    columns, above, below, between = [Column("Model", numeric=False)], [], [], []
    for task in (*settings.tasks, MEAN):
        columns.append(Column(task_name(task)))
        above.append(percent(score(teacher, task)))
        below.append(percent(score(student, task)))
        between.append(points(difference(student, teacher, task)))
        if (of_teacher := _f1(teacher, task)) and (of_student := _f1(student, task)):
            columns.append(Column(f"{task_name(task)}, F1"))
            above.append(percent(of_teacher))
            below.append(percent(of_student))
            between.append(points(Estimate(of_student.mean - of_teacher.mean, math.nan, math.nan, 1, "none")))
    columns.append(Column("Share of the teacher's mean"))
    above.append(Entry("100"))
    below.append(percent(share_of(student, teacher)))
    between.append(Entry())
    if log is not None:
        columns.append(Column("Validation KL"))
        above.append(Entry())
        below.append(significant(_final_kl(log, settings.base_cell, settings)))
        between.append(Entry())
    rows = [
        Row("teacher", (Entry("teacher"), *above)),
        Row("base", (Entry(f"student, {settings.base_cell.layout}"), *below)),
        Row("difference", (Entry("student − teacher, points"), *between)),
    ]
    notes = [
        _questions_note(settings, teacher),
        _interval_note(settings),
        f"The student is the base cell: {_describe(settings.base_cell, settings)}.",
    ]
    if len(settings.ablation.seeds) > 1:
        notes.append("The intervals of difference and share take the teacher's score as it is.")
    elif any(column.header.endswith("F1") for column in columns):
        notes.append("F1 has an interval over several seeds only.")
    return columns, rows, notes + [KL_NOTE] * (log is not None)


def _grid(settings: Report, scores: pd.DataFrame, _log: pd.DataFrame | None) -> Parts:
    """Mean over the tasks, a row for each loss combination and a column for each layout."""
    grid = settings.grid_cells
    values = {cell: score(seeds_of(scores, cell, settings.ablation.seeds)) for cell in grid}
    names = list(dict.fromkeys(cell.layout for cell in grid))
    figures = [
        _embolden([value for cell, value in values.items() if cell.layout == name], percent, highest=True)
        for name in names
    ]
    rows = [
        Row("student", (Entry(loss), *(column[number] for column in figures)))
        for number, loss in enumerate(dict.fromkeys(cell.loss for cell in grid))
    ]
    teacher = teacher_rows(scores)
    notes = [
        f"Mean of tasks. {_questions_note(settings, teacher)} The teacher's: {percent(score(teacher)).text}.",
        _interval_note(settings),
        f"Initialised from {settings.base.init}, divergence {settings.base.divergence}.",
        "Bold: the best loss combination of a layout, however small its lead.",
    ]
    return [Column("Losses", numeric=False), *map(Column, names)], rows, notes


def _ablation(axis: str, settings: Report, scores: pd.DataFrame, log: pd.DataFrame | None) -> Parts:
    """One row a cell below the teacher's; the best student of each column is bold."""
    cells, seeds = settings.cells(axis), settings.ablation.seeds
    students = [seeds_of(scores, cell, seeds) for cell in cells]
    teacher = teacher_rows(scores)
    extra = _layout_columns(axis, settings)
    columns = [Column(VARIED[axis], numeric=False), *(Column(header, numeric=False) for header, _ in extra)]
    above = [Entry("teacher"), *[Entry()] * len(extra)]
    names = [
        [Entry(_value(axis, cell, settings)), *(Entry(text(cell.layout)) for _, text in extra)] for cell in cells
    ]
    figures: list[list[Entry]] = []
    for task in (*settings.tasks, MEAN):
        columns.append(Column(task_name(task)))
        above.append(percent(score(teacher, task)))
        figures.append(_embolden([score(rows, task) for rows in students], percent, highest=True))
    notes = [_questions_note(settings, teacher), _interval_note(settings)]
    notes.append(f"All else as in the base cell: {_describe(settings.base_cell, settings, AXES[axis])}.")
    notes.append("Bold: the best student of a column, however small its lead.")
    if log is not None:
        columns.append(Column("Validation KL"))
        above.append(Entry())
        kl = [_final_kl(log, cell, settings) for cell in cells]
        figures.append(_embolden(kl, significant, highest=False))
        notes.append(KL_NOTE)
        if axis == "inits" and (limit := convergence.level(log, settings)) is not None:
            columns.append(Column(f"Tokens to KL {significant(over_seeds([limit])).text}"))
            above.append(Entry())
            figures.append(_tokens([seeds_of(log, cell, seeds) for cell in cells], limit))
            notes.append(
                "Tokens of training until the validation KL first falls to the highest final KL of the runs from "
                f"{' and '.join(convergence.COMPARED)}, on straight lines between validations; > marks a cell of "
                "which not every seed got there, with the mean of what is known to be too little. Of a run that "
                "starts below it the first logged step counts."
            )
    if any(cell.init == "release-random" for cell in cells):
        notes.append(
            "release-random: as in the paper's release, LayerNorm and MLP of the replaced layers are random too, "
            "and frozen; it shows a defect, not an initialisation of Mamba-2."
        )
    rows = [Row("teacher", tuple(above))]
    for number, cell in enumerate(cells):
        kind = "base" if cell == settings.base_cell else "student"
        rows.append(Row(kind, (*names[number], *(column[number] for column in figures))))
    return columns, rows, notes


def teacher_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The teacher's rows of `eval.csv`.

    Raises:
        UserError: there are none.
    """
    rows = rows_of(scores, None)
    if rows.empty:
        raise UserError(f"{scores.attrs.get('path', 'data')}: no rows of the teacher")
    return rows


def share_of(rows: pd.DataFrame, other: pd.DataFrame) -> Estimate | None:
    """Mean score of one model as a share of another's; None where that is zero. The interval is that of their
    difference."""
    whole, gap = score(other).mean, difference(rows, other)
    if whole == 0:
        return None
    return Estimate(1 + gap.mean / whole, 1 + gap.low / whole, 1 + gap.high / whole, gap.n, gap.over)


def task_name(task: str) -> str:
    """A task as headers name it."""
    return TASK_NAMES.get(task, task)


def _f1(rows: pd.DataFrame, task: str) -> Estimate | None:
    values = rows.loc[(rows["task"] == task) & (rows["metric"] == "f1"), "value"]
    return over_seeds(list(values)) if len(values) else None


def _final_kl(log: pd.DataFrame, cell: Cell, settings: Report) -> Estimate:
    return over_seeds(convergence.final_kl(seeds_of(log, cell, settings.ablation.seeds)))


def _tokens(runs: list[pd.DataFrame], limit: float) -> list[Entry]:
    """Tokens to the level for each cell; bold where least, of those in which every seed reached it."""
    reached: list[Estimate | None] = []
    entries = []
    for rows in runs:
        found = convergence.tokens_to(rows, limit)
        mean = over_seeds([one.tokens for one in found])
        complete = all(one.reached for one in found)
        reached.append(mean if complete else None)
        entries.append(Entry() if complete else Entry(f"> {mean.mean:,.0f}"))
    best = _embolden(reached, lambda one: tokens(one) if one else Entry(), highest=False)
    return [new if mean else old for new, mean, old in zip(best, reached, entries, strict=True)]


def _embolden(
    values: Sequence[Estimate | None], write: Callable[[Estimate | None], Entry], *, highest: bool
) -> list[Entry]:
    """The column's cells, the best in bold with all that read the same; none where all read the same."""
    entries = [write(value) for value in values]
    known = {entry.text: value.mean for entry, value in zip(entries, values, strict=True) if value is not None}
    if len(known) < 2:
        return entries
    best = (max if highest else min)(known, key=known.__getitem__)
    return [
        replace(entry, bold=value is not None and entry.text == best)
        for entry, value in zip(entries, values, strict=True)
    ]


def _value(axis: str, cell: Cell, settings: Report) -> str:
    """What names a cell in the table of an axis."""
    return getattr(cell, AXES[axis]) + (" (base)" if cell == settings.base_cell else "")


def _layout_columns(axis: str, settings: Report) -> list[tuple[str, Callable[[str], str]]]:
    """Headers of the columns that say what a layout replaces, and how each is made from the layout."""
    depth = settings.depth
    count = ("Layers replaced", lambda layout: f"{settings.replaced(layout)} of {depth}")
    return {
        "layouts": [count, ("Which", lambda layout: _ranges(layouts.resolve(layout, depth)))],
        "ratios": [count, ("Achieved ratio", lambda layout: f"{layouts.achieved_ratio(layout, depth):.4g} %")],
    }.get(axis, [])


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers, three or more in a row as a range: ``0–3, 8, 12``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _questions_note(settings: Report, teacher: pd.DataFrame) -> str:
    counts = teacher[(teacher["metric"] == "accuracy") & teacher["task"].isin(settings.tasks)]["n"].astype(int)
    least, most = counts.min(), counts.max()
    many = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"Accuracy in % on {many} test questions a task."


def _interval_note(settings: Report) -> str:
    seeds = settings.ablation.seeds
    if len(seeds) == 1:
        return (
            f"±: half of the 95 % interval over the test questions. One seed ({seeds[0]}) was trained, so it says "
            "nothing of how another would turn out."
        )
    return (
        f"±: half of the 95 % interval over {len(seeds)} seeds ({', '.join(map(str, seeds))}), Student's t; the "
        "teacher's, which is one model, over the test questions."
    )


def _describe(cell: Cell, settings: Report, varied: str = "") -> str:
    """A cell in words, without the field that varies."""
    share = f"{settings.replaced(cell.layout)} of {settings.depth} layers"
    parts = {
        "init": f"initialised from {cell.init}" if cell.init == "attention" else f"initialised {cell.init}",
        "layout": f"layout {cell.layout} ({share})",
        "loss": f"losses {cell.loss}",
        "divergence": f"divergence {cell.divergence}",
    }
    return ", ".join(text for name, text in parts.items() if name != varied)
