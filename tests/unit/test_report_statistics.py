"""Means and intervals against values computed by hand, and the tokens to a level of the validation KL."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from report_data import BASE, report, write_eval, write_train

from matvlm.errors import UserError
from matvlm.report import convergence
from matvlm.report.measured import Spread, ratio, saving
from matvlm.report.read import read_eval, read_profile, read_train, rows_of, seeds_of
from matvlm.report.statistics import difference, over_seeds, score

OTHER = replace(BASE, loss="ce", divergence="none")
RANDOM = replace(BASE, init="random")


def students(tmp_path, teacher=(0.9, 0.7), n=100, **runs):
    cells = {"base": BASE, "other": OTHER}
    path = write_eval(tmp_path / "eval.csv", teacher, {cells[name]: values for name, values in runs.items()}, n)
    frame = read_eval(path)
    return frame, [rows_of(frame, cells[name]) for name in runs]


def test_interval_over_seeds_is_students_t():
    estimate = over_seeds([1.0, 2.0, 6.0])  # mean 3, deviation sqrt(7)
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    assert estimate.mean == 3
    assert estimate.low == pytest.approx(3 - half, abs=1e-3)
    assert estimate.high == pytest.approx(3 + half, abs=1e-3)
    assert (estimate.n, estimate.over, estimate.side) == (3, "seeds", 0)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.7062), (12, 2.2010), (31, 2.0423), (500, 2.0423)])
def test_quantile_follows_the_number_of_seeds(n, quantile):
    values = [0.0, 1.0] * (n // 2) + [0.5] * (n % 2)
    deviation = math.sqrt(sum((value - 0.5) ** 2 for value in values) / (n - 1))
    assert over_seeds(values).half_width == pytest.approx(quantile * deviation / math.sqrt(n))


def test_one_value_has_no_interval_and_none_is_an_error():
    estimate = over_seeds([0.5])
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert (estimate.over, estimate.side) == ("none", 0)
    with pytest.raises(ValueError, match="no values"):
        over_seeds([])


def test_one_seed_has_the_interval_of_its_questions(tmp_path):
    _, (base,) = students(tmp_path, base=[(0.8, 0.6)])
    # Agresti and Coull: 82 of 104 and 62 of 104.
    one, two = (p * (1 - p) / 104 for p in (82 / 104, 62 / 104))
    single, mean = score(base, "easy_vqa_yesno"), score(base)
    assert single.mean == 0.8
    assert single.half_width == pytest.approx(1.959964 * math.sqrt(one))
    assert mean.mean == pytest.approx(0.7)
    assert mean.half_width == pytest.approx(1.959964 * math.sqrt(one + two) / 2)
    assert mean.over == "questions"


def test_a_perfect_score_on_few_questions_is_not_certain(tmp_path):
    _, (base,) = students(tmp_path, n=4, base=[(1.0, 1.0)])
    assert score(base).half_width > 0.1


def test_differences_are_taken_seed_by_seed(tmp_path):
    frame, (base, other) = students(
        tmp_path,
        base=[(0.5, 0.5), (0.7, 0.7), (0.9, 0.9)],
        other=[(0.4, 0.4), (0.6, 0.6), (0.8, 0.8)],
    )
    gap = difference(base, other)
    assert gap.mean == pytest.approx(0.1)
    assert gap.half_width == pytest.approx(0, abs=1e-9)  # seeds differ by 0.4, their differences not at all
    assert gap.side == 1
    assert difference(base, rows_of(frame, None)).mean == pytest.approx(0.7 - 0.8)
    assert difference(base, rows_of(frame, None)).n == 3


def test_a_difference_uses_common_seeds_only(tmp_path):
    _, (base, other) = students(tmp_path, base=[(0.5, 0.5), (0.9, 0.9)], other=[(0.4, 0.4)])
    gap = difference(base, other)
    assert (gap.mean, gap.over) == (pytest.approx(0.1), "questions")
    p, q = 52 / 104, 42 / 104
    error = math.sqrt(2 * p * (1 - p) / 104 + 2 * q * (1 - q) / 104) / 2
    assert gap.half_width == pytest.approx(1.959964 * error)
    with pytest.raises(UserError, match="no seed in common"):
        difference(base[base["seed"] == 1], other)


def test_errors_name_file_and_gap(tmp_path):
    frame, (base,) = students(tmp_path, base=[(0.5, 0.5)])
    with pytest.raises(UserError, match=r"eval\.csv: no accuracy of task gqa"):
        score(base, "gqa")
    with pytest.raises(UserError, match=r"eval\.csv: no rows of attention/even-25/prob\+layer\+ce/kl seed 1, 2"):
        seeds_of(frame, BASE, (0, 1, 2))
    assert len(seeds_of(frame, BASE, (0,))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a CSV file"),
        ("model,init\nteacher,\n", "column layout, loss, divergence, seed, task, metric, value, n is missing"),
        ("model,init,layout,loss,divergence,seed,task,metric,value,n\n", "has no rows"),
        (
            "model,init,layout,loss,divergence,seed,task,metric,value,n\nteacher,,,,,,t,accuracy,many,9\n",
            "column value",
        ),
    ],
)
def test_unusable_files_are_one_line(tmp_path, text, message):
    (tmp_path / "eval.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_eval(tmp_path / "eval.csv")
    assert "\n" not in str(caught.value)


def test_missing_columns_of_the_other_files(tmp_path):
    (tmp_path / "a.csv").write_text("init,layout\nattention,even-25\n")
    with pytest.raises(UserError, match="val_kl is missing"):
        read_train(tmp_path / "a.csv")
    with pytest.raises(UserError, match="peak_memory_bytes is missing"):
        read_profile(tmp_path / "a.csv")


CURVES = {
    BASE: [[(0, 4.0), (50, ""), (100, 2.0), (200, 1.0)], [(0, 4.0), (50, ""), (100, 1.0), (200, 0.8)]],
    RANDOM: [[(0, 8.0), (50, ""), (100, 4.0), (200, 1.5)], [(0, 8.0), (50, ""), (100, 4.0), (200, 1.6)]],
    replace(BASE, init="release-random"): [[(0, 9.0), (50, ""), (200, 5.0)], [(0, 9.0), (50, ""), (200, 1.6)]],
}


def test_level_is_what_the_slowest_compared_run_ends_with(tmp_path):
    train = read_train(write_train(tmp_path / "train.csv", CURVES))
    settings = report(seeds=(0, 1))
    assert convergence.level(train, settings) == 1.6
    assert convergence.final_kl(rows_of(train, BASE)) == [1.0, 0.8]

    reached = convergence.tokens_to(rows_of(train, BASE), 1.6)
    assert [one.tokens for one in reached] == [pytest.approx(140), pytest.approx(80)]  # 2.0 to 1.0; 4.0 to 1.0
    random = convergence.tokens_to(rows_of(train, RANDOM), 1.6)
    assert [one.tokens for one in random] == [pytest.approx(196), 200]
    assert all(one.reached for one in (*reached, *random))
    assert convergence.level(train, report(seeds=(0,), inits=("release-random",))) == 1.0  # the base cell alone


def test_a_run_that_never_gets_there_is_a_lower_bound(tmp_path):
    train = read_train(write_train(tmp_path / "train.csv", CURVES))
    never, just = convergence.tokens_to(rows_of(train, replace(BASE, init="release-random")), 1.6)
    assert (never.tokens, never.reached) == (200, False)
    assert (just.tokens, just.reached) == (200, True)


def test_a_run_that_starts_there_counts_from_its_first_step(tmp_path):
    train = read_train(write_train(tmp_path / "train.csv", CURVES))
    assert convergence.tokens_to(rows_of(train, BASE), 5.0)[0] == convergence.Reach(50, True, at_once=True)


def test_final_kl_must_have_been_measured(tmp_path):
    train = read_train(write_train(tmp_path / "train.csv", {BASE: [[(0, 4.0), (50, "")]]}))
    with pytest.raises(UserError, match=r"train\.csv: no val_kl at the last step"):
        convergence.final_kl(train)


def test_ratios_of_repeats_are_bounded_by_their_extremes():
    mine, other = Spread(12, 10, 15, 3), Spread(4, 3, 5, 2)
    assert ratio(mine, other) == Spread(3, 2, 5, 2)
    assert saving(other, mine) == Spread(pytest.approx(2 / 3), 0.5, pytest.approx(0.8), 2)
    assert ratio(mine, None) is None
    assert saving(None, other) is None
