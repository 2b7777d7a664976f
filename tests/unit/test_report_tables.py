"""Tables against numbers computed by hand."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from report_data import BASE, profiled, report, write_eval, write_profile, write_train

from matvlm.config import load_config
from matvlm.errors import UserError
from matvlm.experiments import Cell
from matvlm.report import render, tables
from matvlm.report.settings import Report
from matvlm.report.statistics import over_seeds
from matvlm.report.table import significant

CE = replace(BASE, loss="ce", divergence="none")
NO_CE = replace(BASE, loss="prob+layer")
LOSSES = {
    BASE: [(0.80, 0.60), (0.82, 0.62), (0.84, 0.58)],
    CE: [(0.70, 0.60), (0.70, 0.64), (0.70, 0.68)],
    NO_CE: [(0.60, 0.50), (0.60, 0.50), (0.60, 0.50)],
}
KL = {
    BASE: [[(0, 5), (100, 0.50)], [(0, 5), (100, 0.60)], [(0, 5), (100, 0.70)]],
    CE: [[(0, 5), (100, 2.0)]] * 3,
    NO_CE: [[(0, 5), (100, 0.25)]] * 3,
}


def build(tmp_path, name, students, kl=None, teacher=(0.9, 0.7), settings=None, **options):
    data = write_eval(tmp_path / "eval.csv", teacher, students, **options)
    train = write_train(tmp_path / "train.csv", kl) if kl else None
    return tables.build(name, settings or report(), data, train)


def texts(table):
    return [[entry.text for entry in row.entries] for row in table.rows]


def column(table, header):
    at = [one.header for one in table.columns].index(header)
    return [row.entries[at] for row in table.rows]


def test_losses_table_has_means_intervals_and_the_best_in_bold(tmp_path):
    table = build(tmp_path, "losses", LOSSES, KL)
    assert [one.header for one in table.columns] == [
        "Losses",
        "easy-VQA yes/no",
        "easy-VQA open",
        "Mean of tasks",
        "Validation KL",
    ]
    assert [row.kind for row in table.rows] == ["teacher", "student", "student", "base"]
    names = [row.entries[0].text for row in table.rows]
    assert names == ["teacher", "ce", "prob+layer", "prob+layer+ce (base)"]

    yesno = column(table, "easy-VQA yes/no")
    assert [entry.text for entry in yesno] == ["90.0", "70.0", "60.0", "82.0"]
    assert [entry.bold for entry in yesno] == [False, False, False, True]
    # Deviation 2 over three seeds: 4.3027 * 2 / sqrt(3). The teacher's is over questions: (90 + 2) of 104.
    assert [entry.spread for entry in yesno] == ["± 6.1", "± 0.0", "± 0.0", "± 5.0"]
    assert [entry.bold for entry in column(table, "easy-VQA open")] == [False, True, False, False]
    kl = column(table, "Validation KL")
    assert [(entry.text, entry.spread, entry.bold) for entry in kl] == [
        ("–", "", False),
        ("2.00", "± 0.00", False),
        ("0.250", "± 0.000", True),
        ("0.600", "± 0.248", False),
    ]
    assert table.command == "snakemake table_losses --config preset=tiny"
    assert any("over 3 seeds (0, 1, 2)" in note for note in table.notes)
    assert any("100 test questions" in note for note in table.notes)


def test_one_seed_and_no_training_log(tmp_path):
    table = build(tmp_path, "losses", LOSSES, settings=report(seeds=(1,)))
    assert "Validation KL" not in [one.header for one in table.columns]
    base = table.rows[-1].entries
    assert (base[1].text, base[1].spread) == ("82.0", "± 7.6")  # (82 + 2) of 104 questions
    assert any("One seed (1)" in note for note in table.notes)
    assert not any("Student's t" in note for note in table.notes)


def test_equal_scores_are_not_ranked(tmp_path):
    same = {cell: [(0.5, 0.5 + 0.1 * (cell is BASE))] * 3 for cell in LOSSES}
    table = build(tmp_path, "losses", same)
    assert not any(entry.bold for entry in column(table, "easy-VQA yes/no"))
    assert [entry.bold for entry in column(table, "easy-VQA open")] == [False, False, False, True]


def test_values_that_read_the_same_are_bold_together(tmp_path):
    close = {BASE: [(0.8001, 0.5)] * 3, CE: [(0.8, 0.5)] * 3, NO_CE: [(0.7, 0.5)] * 3}
    assert [e.bold for e in column(build(tmp_path, "losses", close), "easy-VQA yes/no")] == [
        False,
        True,
        False,
        True,
    ]


def test_layouts_and_ratios_say_what_they_replace(tmp_path):
    names = ("even-25", "front-25", "middle-25", "end-25", "even-12.5", "even-50")
    scores = {replace(BASE, layout=name): [(0.5, 0.5)] * 3 for name in names}
    placed = texts(build(tmp_path, "layouts", scores))
    assert [row[:3] for row in placed] == [
        ["teacher", "–", "–"],
        ["even-25 (base)", "4 of 16", "0, 4, 8, 12"],
        ["front-25", "4 of 16", "0–3"],
        ["middle-25", "4 of 16", "6–9"],
        ["end-25", "4 of 16", "12–15"],
    ]
    ratios = texts(build(tmp_path, "ratios", scores, settings=report(depth=30)))
    assert [row[:3] for row in ratios[1:]] == [
        ["even-12.5", "4 of 30", "13.33 %"],
        ["even-25 (base)", "8 of 30", "26.67 %"],
        ["even-50", "15 of 30", "50 %"],
    ]


def test_the_base_cell_is_listed_where_its_axis_lacks_it(tmp_path):
    scores = {replace(BASE, divergence=name): [(0.5, 0.5)] * 3 for name in ("kl", "jsd")}
    table = build(tmp_path, "divergences", scores, settings=report(divergences=("jsd",)))
    assert [row[0] for row in texts(table)] == ["teacher", "kl (base)", "jsd"]


def test_the_grid_has_a_row_a_loss_and_a_column_a_layout(tmp_path):
    losses, placements = ("ce", "prob+layer+ce"), ("even-25", "front-25")
    settings = report(losses=losses, layouts=placements, seeds=(0, 1), grid=True)
    values = {"ce": (0.2, 0.4), "prob+layer+ce": (0.6, 0.3)}
    students = {
        Cell("attention", layout, loss, "kl" if "prob" in loss else "none"): [(values[loss][place],) * 2] * 2
        for loss in losses
        for place, layout in enumerate(placements)
    }
    table = build(tmp_path, "grid", students, settings=settings)
    assert [column.header for column in table.columns] == ["Losses", *placements]
    assert texts(table) == [["ce", "20.0", "40.0"], ["prob+layer+ce", "60.0", "30.0"]]
    assert [[entry.bold for entry in row.entries[1:]] for row in table.rows] == [[False, True], [True, False]]
    assert table.command == "snakemake table_grid --config preset=tiny"


def test_the_command_repeats_what_was_set_beside_the_file():
    config = load_config(yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text()))
    settings = Report.of(config, {"preset": "tiny", "ablation": {"seeds": [0, 1]}, "base": {"loss": "it's"}})
    words = shlex.split(settings.command("claims"))
    assert words[:4] == ["snakemake", "claims", "--config", "preset=tiny"]
    assert [yaml.safe_load(word.split("=", 1)[1]) for word in words[4:]] == [{"seeds": [0, 1]}, {"loss": "it's"}]


def test_inits_table_counts_tokens_and_censors(tmp_path):
    inits = [replace(BASE, init=name) for name in ("attention", "random", "release-random")]
    scores = {cell: [(0.5, 0.5)] * 2 for cell in inits}
    kl = {
        inits[0]: [[(0, 4), (1000, 2), (2000, 1)]] * 2,
        inits[1]: [[(0, 4), (1000, 3), (2000, 1.5)], [(0, 4), (1000, 3), (2000, 1.6)]],
        inits[2]: [[(0, 9), (2000, 1.6)], [(0, 9), (2000, 5)]],
    }
    table = build(tmp_path, "inits", scores, kl, settings=report(seeds=(0, 1)))
    tokens = column(table, "Tokens to KL 1.60")
    # attention: 2 to 1 between 1000 and 2000. random: 3 to 1.5, and the end. The last: 2000 and never.
    assert [entry.text for entry in tokens] == ["–", "1,400", "1,967", "> 2,000"]
    assert [entry.bold for entry in tokens] == [False, True, False, False]
    assert tokens[2].spread == "± 424"  # 12.7062 * (2000 - 1933.33) / 2, as deviation / sqrt(2) is half the gap
    assert any("release-random: as in the paper's release" in note for note in table.notes)


def test_main_table_compares_with_the_teacher(tmp_path):
    table = build(tmp_path, "main", LOSSES, KL, f1=0.75)
    assert [one.header for one in table.columns][1:] == [
        "easy-VQA yes/no",
        "easy-VQA yes/no, F1",
        "easy-VQA open",
        "Mean of tasks",
        "Share of the teacher's mean",
        "Validation KL",
    ]
    teacher, student, gap = texts(table)
    assert teacher[1:] == ["90.0", "75.0", "70.0", "80.0", "100", "–"]
    assert student == ["student, even-25", "82.0", "75.0", "60.0", "71.0", "88.8", "0.600"]  # 71 of 80: 88.75
    assert gap[1:] == ["−8.0", "0.0", "−10.0", "−9.0", "–", "–"]
    # Means of the seeds are 70, 72 and 71, so their deviation is 1: 4.3027 / sqrt(3), of 80.
    assert table.rows[1].entries[5].spread == "± 3.1"
    assert [row.kind for row in table.rows] == ["teacher", "base", "difference"]


def test_share_of_a_teacher_that_scores_nothing(tmp_path):
    table = build(tmp_path, "main", LOSSES, teacher=(0, 0))
    assert column(table, "Share of the teacher's mean")[1].text == "–"


@pytest.mark.parametrize(
    ("name", "students", "message"),
    [
        ("losses", {BASE: LOSSES[BASE]}, r"eval\.csv: no rows of attention/even-25/ce/none seed 0, 1, 2"),
        ("losses", {**LOSSES, CE: LOSSES[CE][:2]}, r"no rows of attention/even-25/ce/none seed 2"),
        ("colours", LOSSES, "unknown table 'colours'; allowed: main, losses, .*speed"),
    ],
)
def test_what_a_table_lacks_is_named(tmp_path, name, students, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, name, students)


def test_a_table_needs_the_teacher(tmp_path):
    with pytest.raises(UserError, match="no rows of the teacher"):
        build(tmp_path, "losses", LOSSES, teacher=None)


def speed(tmp_path, points, **settings):
    data = write_profile(tmp_path / "profile.csv", points)
    return tables.build("speed", report(**settings), data, None)


POINTS = [
    profiled("", 512, [100, 90, 110], memory=80e6),
    profiled("even-25", 512, [150, 120, 160], memory=60e6),
    profiled("even-50", 512, [80, 81, 82], memory=100e6),
    profiled("", 32640, [""], memory=""),
    profiled("even-25", 32640, [50, 50, 50], memory=61.2e6),
]


def test_speed_table(tmp_path):
    table = speed(tmp_path, POINTS)
    assert [row.kind for row in table.rows] == ["teacher", "base", "student", "teacher", "base"]
    values = [[f"{e.text} {e.spread}".strip() for e in row.entries] for row in table.rows]
    assert values[0] == ["640 (128 + 512)", "teacher", "–", "0.0123", "100 (90 to 110)", "–", "80.0", "–"]
    assert values[1] == [
        "640 (128 + 512)",
        "even-25 (base)",
        "4 of 16",
        "0.0123",
        "150 (120 to 160)",
        "1.50 (1.09 to 1.78)",
        "60.0",
        "25.0",
    ]
    assert values[2][5:] == ["0.810 (0.727 to 0.911)", "100", "−25.0"]
    assert values[3][2:] == ["–", "–", "out of memory", "–", "–", "–"]
    assert values[4][4:] == ["50.0", "–", "61.2", "–"]
    assert any("up to 3.6 times" in note and "do not compare" in note for note in table.notes)


def test_published_numbers_stand_beside_equal_points_only(tmp_path):
    assert not any("published" in one.header for one in speed(tmp_path, POINTS).columns)
    rows = [profiled(layout, 1024, [100]) for layout in ("", "even-25", "front-25")]
    table = speed(tmp_path, rows, preset="paper")
    assert [one.header for one in table.columns][-2:] == [
        "Tokens/s (published, read from figure)",
        "Memory, GB (published, read from figure)",
    ]
    assert [row[-2:] for row in texts(table)] == [["32", "7.4"], ["114", "7.1"], ["–", "–"]]
    assert not any("do not compare" in note for note in table.notes)
    other = speed(tmp_path, rows)
    assert not any("published" in one.header for one in other.columns), "a model of another size"


def test_there_is_a_section_for_each_protocol_and_batch(tmp_path):
    points = [profiled(layout, 512, [100], batch=size) for size in (1, 4) for layout in ("", "even-25")]
    points.append(profiled("", 512, [100], protocol="paper"))
    table = speed(tmp_path, points)
    assert [(title, len(rows)) for title, rows in table.sections] == [
        ("All models in one runtime, batch 1", 2),
        ("All models in one runtime, batch 4", 2),
        ("Each model in its own runtime, as the paper measured, batch 1", 1),
    ]
    assert texts(table)[0] == ["All models in one runtime, batch 1"]
    assert {row[0] for row in texts(table) if len(row) > 1} == {"512"}
    assert any("prompt has 128 tokens" in note for note in table.notes)
    assert any("of 16: even-25 4" in note for note in table.notes)


def test_command_writes_three_files(tmp_path, capsys):
    data = write_eval(tmp_path / "eval.csv", (0.9, 0.7), LOSSES)
    arguments = ["table", "--settings", report().model_dump_json(), "--table", "losses", "--data", str(data)]
    out = tmp_path / "tables" / "losses.v1"
    assert render.main([*arguments, "--out", str(out)]) == 0
    names = {f"losses.v1.{suffix}" for suffix in ("md", "tex", "html")}
    assert {path.name for path in out.parent.iterdir()} == names
    assert render.main([*arguments[:-1], str(tmp_path / "none.csv"), "--out", str(out)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (0.9996, "1.00"), (12.34, "12.3"), (1234.5, "1,234"), (-0.5, "-0.500")],
)
def test_three_significant_digits(value, text):
    assert significant(over_seeds([value])).text == text
