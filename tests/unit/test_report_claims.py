"""Verdicts on the paper's claims: every rule at each side of its bound, with one seed and with several."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from report_data import BASE, profiled, report, write_eval, write_profile, write_train

from matvlm.config import load_config
from matvlm.errors import UserError
from matvlm.report import claims, render
from matvlm.report.evidence import judge
from matvlm.report.settings import Report

IDS = [entry.id for entry in claims.REGISTER]
ALL_LOSSES = ("prob", "layer", "ce", "prob+layer", "prob+ce", "layer+ce", "prob+layer+ce")
DEFAULT = {
    "scores": {BASE: [(0.8, 0.6)] * 3},
    "train": {BASE: [[(0, 4), (100, 1)]] * 3},
    "profile": [profiled("", 512, [100] * 3), profiled("even-25", 512, [150] * 3)],
}


def run(tmp_path, settings=None, teacher=(0.9, 0.7), n=100, **data):
    """The rows of claims.csv by id."""
    data = DEFAULT | data
    scores = write_eval(tmp_path / "eval.csv", teacher, data["scores"], n)
    train = write_train(tmp_path / "train.csv", data["train"])
    profile = data["profile"] and write_profile(tmp_path / "profile.csv", data["profile"])
    claims.write(settings or report(), scores, train, profile, tmp_path / "claims")
    with open(tmp_path / "claims.csv", encoding="utf-8", newline="") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def test_a_preset_that_measures_no_speed(tmp_path):
    claims = run(tmp_path, profile=None)
    assert {claims[name]["verdict"] for name in ("speed", "memory")} == {"not run"}
    assert "no section profile" in claims["memory"]["detail"]
    assert claims["quality"]["verdict"] != "not run"


def near(mean, spread=0.01):
    """Three seeds of equal scores in both tasks, ``spread`` apart."""
    return [(mean + step * spread,) * 2 for step in (-1, 0, 1)]


def numbers(row):
    return [float(row[name]) if row[name] else None for name in ("measured", "low", "high")]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.2, "holds"),
        (0.0, 0.2, "not shown"),
        (-0.1, 0.1, "not shown"),
        (-0.1, 0.0, "not shown"),
        (-0.2, -0.1, "does not hold"),
        (math.nan, math.nan, "not shown"),
    ],
)
def test_an_interval_that_touches_the_bound_shows_nothing(low, high, verdict):
    assert judge(low, high) == verdict
    assert judge(low + 1, high + 1, 1) == verdict


def test_every_claim_is_listed_and_what_cannot_be_answered_says_why(tmp_path):
    rows = run(tmp_path)
    assert " ".join(rows) == "speed memory quality mamba_vlms layout losses distillation divergence init ratio"
    assert tuple(rows["speed"])[:8] == (
        *("id", "claim", "published", "measured"),
        *("low", "high", "verdict", "command"),
    )
    assert rows["mamba_vlms"]["verdict"] == "not run"
    assert rows["layout"]["verdict"] == "not run"
    assert "no rows of attention/front-25/prob+layer+ce/kl seed 0, 1, 2" in rows["layout"]["detail"]
    assert rows["layout"]["measured"] == rows["layout"]["low"] == ""
    assert rows["losses"]["command"] == "snakemake table_losses --config preset=tiny"
    published = {name: row["published"] for name, row in rows.items() if row["published"]}
    assert published == {"speed": "3.6", "memory": "27.5"}


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        (near(0.80, 0.006), "holds"),  # 100 % of the teacher's 80, less 4.3027 * 0.6 / sqrt(3) / 0.8 = 1.86
        (near(0.80, 0.007), "not shown"),  # less 2.17
        (near(0.815, 0.001), "holds"),
        (near(0.784, 0.001), "not shown"),  # 98 %
        (near(0.70), "does not hold"),
    ],
)
def test_quality_against_the_margin(tmp_path, scores, verdict):
    row = run(tmp_path, scores={BASE: scores})["quality"]
    assert row["verdict"] == verdict
    mean = sum(a for a, _ in scores) / 3 / 0.8
    half = 4.3027 * (scores[2][0] - scores[1][0]) / math.sqrt(3) / 0.8
    assert numbers(row) == pytest.approx([100 * mean, 100 * (mean - half), 100 * (mean + half)], rel=1e-3)
    assert row["over"] == "seeds"


def test_quality_of_one_seed_is_over_questions(tmp_path):
    settings = report(seeds=(0,))
    row = run(tmp_path, settings, scores={BASE: [(0.9, 0.7)]}, n=10_000)["quality"]
    assert (row["verdict"], row["over"], row["measured"]) == ("holds", "questions", "100")
    row = run(tmp_path, settings, scores={BASE: [(0.9, 0.7)]}, n=100)["quality"]
    assert row["verdict"] == "not shown"
    assert "one seed" in row["detail"]
    assert "trained on 100 tokens" in row["detail"]


def test_quality_without_a_teacher_to_keep_up_with(tmp_path):
    assert run(tmp_path, teacher=(0, 0))["quality"]["detail"] == (
        "Not run: the teacher scores 0, of which there is no share."
    )
    row = run(tmp_path, teacher=None)["quality"]
    assert (row["verdict"], "no rows of the teacher" in row["detail"]) == ("not run", True)


def combinations(**means):
    """Scores of all combinations of losses: 50 %, but for ``means`` (``_`` for +)."""
    means = {name.replace("_", "+"): value for name, value in means.items()}
    found = {}
    for loss in ALL_LOSSES:
        divergence = "kl" if "prob" in loss else "none"
        found[replace(BASE, loss=loss, divergence=divergence)] = [(means.get(loss, 0.5),) * 2] * 3
    return found


@pytest.mark.parametrize(
    ("means", "losses", "distillation", "measured"),
    [
        ({"prob_layer_ce": 0.6, "prob": 0.55}, "holds", "holds", 5),
        ({"prob_layer_ce": 0.6, "prob": 0.65, "layer": 0.62}, "does not hold", "holds", -5),
        ({"prob_layer_ce": 0.6, "prob": 0.6}, "not shown", "holds", 0),
        ({"prob_layer_ce": 0.4, "ce": 0.55}, "does not hold", "does not hold", -15),
        ({}, "not shown", "not shown", 0),
    ],
)
def test_losses_are_judged_by_the_comparison_that_decides(tmp_path, means, losses, distillation, measured):
    rows = run(tmp_path, report(losses=ALL_LOSSES), scores=combinations(**means))
    assert rows["losses"]["verdict"] == losses
    assert rows["distillation"]["verdict"] == distillation
    assert numbers(rows["losses"])[0] == pytest.approx(measured, abs=1e-9)


def test_the_deciding_comparison_is_the_one_that_fails_not_the_smallest(tmp_path):
    """Against prob the difference is smallest but its interval is wide; against layer it is surely below zero."""
    scores = combinations(prob_layer_ce=0.6, layer=0.62)
    prob = next(cell for cell in scores if cell.loss == "prob")
    scores[prob] = [(0.5, 0.5), (0.7, 0.7), (0.75, 0.75)]  # mean 65
    row = run(tmp_path, report(losses=ALL_LOSSES), scores=scores)["losses"]
    assert row["verdict"] == "does not hold"
    assert numbers(row) == pytest.approx([-2, -2, -2])
    assert "The comparison with layer decides" in row["detail"]


def test_a_claim_against_all_does_not_hold_against_some(tmp_path):
    scores = combinations(prob_layer_ce=0.6)
    row = run(tmp_path, report(losses=("ce", "prob+layer+ce")), scores=scores)["losses"]
    assert row["verdict"] == "not shown"
    assert "Not configured: prob, layer, prob+layer, prob+ce, layer+ce" in row["detail"]


def placed(**means):
    return {replace(BASE, layout=name.replace("_", "-")): [(value, value)] * 3 for name, value in means.items()}


def test_layouts_are_compared_at_the_same_ratio(tmp_path):
    settings = report(layouts=("even-25", "front-25", "middle-25", "end-25", "front-50"))
    scores = placed(even_25=0.6, front_25=0.5, middle_25=0.55, end_25=0.3, front_50=0.9)
    row = run(tmp_path, settings, scores=scores)["layout"]
    assert (row["verdict"], numbers(row)[0]) == ("holds", pytest.approx(5))
    row = run(tmp_path, settings, scores=scores | placed(end_25=0.7))["layout"]
    assert (row["verdict"], numbers(row)[0]) == ("does not hold", pytest.approx(-10))
    row = run(tmp_path, report(layouts=("even-25", "front-50")), scores=scores)["layout"]
    assert (row["verdict"], "none of front-25, middle-25, end-25" in row["detail"]) == ("not run", True)


def test_divergence_reports_the_best(tmp_path):
    names = ("kl", "reverse", "jsd", "ce", "l2")
    cells = {name: replace(BASE, divergence=name) for name in names}
    scores = {cells[name]: [(0.5 + 0.01 * at,) * 2] * 3 for at, name in enumerate(names)}
    row = run(tmp_path, report(divergences=names), scores=scores)["divergence"]
    assert (row["verdict"], numbers(row)[0]) == ("does not hold", pytest.approx(-4))
    assert "the best is l2" in row["detail"]
    row = run(tmp_path, report(divergences=("kl",)), scores=scores)["divergence"]
    assert row["verdict"] == "not run"


def test_ratio_keeps_what_the_smaller_one_scores(tmp_path):
    scores = placed(even_12__5=0.6, even_25=0.6, even_50=0.3)
    scores = {replace(cell, layout=cell.layout.replace("--", ".")): runs for cell, runs in scores.items()}
    row = run(tmp_path, scores=scores)["ratio"]
    assert (row["verdict"], numbers(row)) == ("holds", [100, 100, 100])
    assert "even-50 minus even-12.5: -30.00 points" in row["detail"]
    few = next(cell for cell in scores if cell.layout == "even-12.5")
    assert run(tmp_path, scores=scores | {few: near(0.7)})["ratio"]["verdict"] == "does not hold"
    row = run(tmp_path, report(ratios=(25,)), scores=scores)["ratio"]
    assert (row["verdict"], row["detail"]) == ("not run", "Not run: ablation.ratios of this preset lacks 12.5.")


RANDOM = replace(BASE, init="random")
INITS = report(seeds=(0, 1), inits=("attention", "random"))


def curves(*reach):
    """Runs that fall to a KL of 1 after ``reach`` tokens and end there after 1,000."""
    return [[(0, 3), (tokens, 1), (1000, 1)] if tokens < 1000 else [(0, 3), (1000, 1)] for tokens in reach]


@pytest.mark.parametrize(
    ("attention", "random", "verdict"),
    [
        ((500, 490), (1000, 1000), "holds"),
        ((500, 990), (1000, 1000), "not shown"),
        ((1000, 1000), (500, 490), "does not hold"),
        ((1000, 1000), (1000, 1000), "not shown"),
    ],
)
def test_init_is_the_mean_speed_up_to_a_level_over_seeds(tmp_path, attention, random, verdict):
    train = {BASE: curves(*attention), RANDOM: curves(*random)}
    scores = {BASE: [(0.5, 0.5)] * 2, RANDOM: [(0.5, 0.5)] * 2}
    row = run(tmp_path, INITS, scores=scores, train=train)["init"]
    assert row["verdict"] == verdict
    one, two = (math.log(slow / fast) for fast, slow in zip(attention, random, strict=True))
    half = 12.7062 * abs(one - two) / 2
    expected = [math.exp((one + two) / 2 + step * half) for step in (0, -1, 1)]
    assert numbers(row) == pytest.approx(expected, rel=1e-3)
    assert row["over"] == "seeds"


@pytest.mark.parametrize(
    ("attention", "scores", "verdict"),
    [
        (500, (0.8, 0.5), "holds"),
        (500, (0.5, 0.5), "not shown"),
        (500, (0.5, 0.8), "not shown"),
        (1000, (0.5, 0.8), "not shown"),
    ],
)
def test_init_of_one_seed_asks_the_scores_to_agree(tmp_path, attention, scores, verdict):
    settings = report(seeds=(0,), inits=("attention", "random"))
    train = {BASE: curves(attention), RANDOM: curves(1000)}
    eval_ = {cell: [(value, value)] for cell, value in zip((BASE, RANDOM), scores, strict=True)}
    row = run(tmp_path, settings, scores=eval_, train=train)["init"]
    assert (row["verdict"], row["over"], row["low"]) == (verdict, "none", "")
    assert float(row["measured"]) == 1000 / attention
    assert "one seed" in row["detail"]


def test_init_of_one_seed_can_fail(tmp_path):
    settings = report(seeds=(0,), inits=("attention", "random"))
    train = {BASE: curves(1000), RANDOM: curves(400)}
    row = run(tmp_path, settings, scores={BASE: [(0.4, 0.4)], RANDOM: [(0.8, 0.8)]}, train=train)["init"]
    assert (row["verdict"], row["measured"]) == ("does not hold", "0.4")


def test_init_needs_both(tmp_path):
    row = run(tmp_path, report(inits=("attention",)))["init"]
    assert (row["verdict"], row["detail"]) == ("not run", "Not run: ablation.inits of this preset lacks random.")
    row = run(tmp_path, scores={BASE: near(0.5), RANDOM: near(0.5)})["init"]
    assert (row["verdict"], "train.csv: no rows of random/" in row["detail"]) == ("not run", True)


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        ([150, 120, 160], "holds"),
        ([100, 100, 150], "not shown"),
        ([99, 111, 150], "not shown"),
        ([60, 70, 80], "does not hold"),
    ],
)
def test_speed_is_judged_at_the_longest_context(tmp_path, rates, verdict):
    profile = [
        profiled("", 128, [10, 10, 10]),
        profiled("even-25", 128, [40, 40, 40]),
        profiled("", 512, [100, 90, 110]),
        profiled("even-25", 512, rates),
        profiled("even-25", 9999, [1, 1, 1]),
        profiled("", 9999, [""]),
    ]
    row = run(tmp_path, profile=profile)["speed"]
    assert row["verdict"] == verdict
    assert numbers(row) == pytest.approx([sorted(rates)[1] / 100, min(rates) / 110, max(rates) / 90], rel=1e-3)
    assert "highest 4.00 times [4.00, 4.00] at 256 tokens" in row["detail"]
    assert "3.6 times is reached" in row["detail"]
    assert "The teacher ran out of memory at 10,127 tokens" in row["detail"]
    assert "direction only" in row["tested"]


def test_one_repeat_of_speed_shows_nothing(tmp_path):
    row = run(tmp_path, profile=[profiled("", 512, [100]), profiled("even-25", 512, [200])])["speed"]
    assert (row["verdict"], row["measured"], row["low"], row["over"]) == ("not shown", "2", "", "none")


@pytest.mark.parametrize(
    ("half", "verdict", "measured"),
    [(35e6, "holds", 30), (40e6, "not shown", 20), (50e6, "not shown", 0), (60e6, "does not hold", -20)],
)
def test_memory_of_the_half_hybrid(tmp_path, half, verdict, measured):
    profile = [
        profiled("", 512, [100] * 2, memory=50e6),
        profiled("even-25", 512, [100] * 2, memory=45e6),
        profiled("even-50", 512, [100] * 2, memory=half),
    ]
    row = run(tmp_path, profile=profile)["memory"]
    assert (row["verdict"], float(row["measured"])) == (verdict, pytest.approx(measured))
    assert "the base layout even-25 saves 10.0 % there" in row["detail"]
    assert ("27.5 % is not reached" in row["detail"]) == (measured < 27.5)
    assert ("The direction agrees" in row["detail"]) == (measured == 20)


def test_speed_and_memory_without_a_common_point(tmp_path):
    rows = run(tmp_path, profile=[profiled("", 512, [100]), profiled("even-25", 1024, [100])])
    assert {rows[name]["verdict"] for name in ("speed", "memory")} == {"not run"}


def test_preset_debug_gets_a_verdict_on_every_claim(tmp_path):
    params = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    settings = Report.of(load_config(params | {"preset": "debug"}))
    settings = settings.model_copy(update={"tasks": report().tasks})
    ce = replace(BASE, loss="ce", divergence="none")
    scores = {BASE: [(0.5, 0.25)], ce: [(0.25, 0.25)]}
    rows = run(tmp_path, settings, teacher=(0.5, 0.5), scores=scores, n=4)
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == dict.fromkeys(IDS, "not run") | {
        "speed": "not shown",
        "memory": "not shown",
        "quality": "not shown",
        "losses": "not shown",
        "distillation": "not shown",
    }


def test_page_says_the_same_and_is_a_sound_table(tmp_path):
    rows = run(tmp_path, report(losses=ALL_LOSSES), scores=combinations(prob_layer_ce=0.6))
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert text.startswith("# Claims of the paper (preset tiny)")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(IDS)
    assert {line.replace(r"\|", "").count("|") for line in table} == {6}
    for name, row in rows.items():
        escaped = name.replace("_", r"\_")
        assert f"## {escaped}: {row['verdict']}\n" in text
        assert f"**{row['verdict']}**" in next(line for line in table if line.startswith(f"| {escaped}:"))


def test_a_malformed_file_is_an_error_and_not_a_verdict(tmp_path):
    run(tmp_path)
    (tmp_path / "train.csv").write_text("step\n1\n")
    with pytest.raises(UserError, match=r"train\.csv: column init, layout"):
        claims.write(report(), *(tmp_path / f"{n}.csv" for n in ("eval", "train", "profile")), tmp_path / "x")


def test_command_writes_both_files(tmp_path):
    run(tmp_path)
    files = [f"--{name}={tmp_path}/{name}.csv" for name in ("eval", "train", "profile")]
    arguments = ["claims", "--settings", report().model_dump_json(), *files, "--out", f"{tmp_path}/new/claims"]
    assert render.main(arguments) == 0
    for suffix in (".csv", ".md"):
        new = (tmp_path / "new" / f"claims{suffix}").read_bytes()
        assert new == (tmp_path / f"claims{suffix}").read_bytes()
