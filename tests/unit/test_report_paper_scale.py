"""Table, figures and claims of a model of the paper's size, from a made-up profile of full shape."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import paper_profile
import pytest
import yaml
from report_data import profiled, report, write_profile
from test_config import RANDOM
from test_report_figures import line, panel

from matvlm.config import load_config
from matvlm.errors import UserError
from matvlm.report import claims, figures, measured, page, published, tables, writers
from matvlm.report.columns import PROFILE_FIGURES, PROFILE_MARKS, PROFILE_MEASURED
from matvlm.report.figures import style
from matvlm.report.read import read_profile
from matvlm.report.settings import Report

ROOT = Path(__file__).parents[2]
ONE, OWN = "All models in one runtime", "Each model in its own runtime, as the paper measured"
SPEED_IDS = ["speed", "speed_architecture", "memory", "memory_architecture", "memory_25", "memory_25_architecture"]


@pytest.fixture(autouse=True)
def in_style():
    """Draw as `figures.write` does."""
    with style.in_use():
        yield


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The whole profile as a file."""
    return paper_profile.write(paper_profile.profile_frame(), tmp_path_factory.mktemp("profile") / "profile.csv")


@pytest.fixture(scope="module")
def table(profile):
    return tables.build("speed", paper_profile.settings(), profile, None)


def lookup(table, section, tokens, model):
    """The cells of a row by header."""
    rows = dict(table.sections)[section]
    (found,) = [row for row in rows if [entry.text for entry in row.entries[:2]] == [tokens, model]]
    return {column.header: entry for column, entry in zip(table.columns, found.entries, strict=True)}


def test_a_section_for_each_protocol_and_batch(table):
    assert [title for title, _ in table.sections] == [f"{one}, batch {b}" for one in (ONE, OWN) for b in (1, 8)]
    assert [len(rows) for _, rows in table.sections] == [30, 30, 36, 36]
    assert [column.header for column in table.columns] == [
        *("Generated tokens", "Model", "Pass over the context, s", "Decoding, tokens/s", "Decoding, × teacher"),
        *("Decoding, % of the limit", "Peak memory, GB", "Memory saved, %", "Memory, % of the prediction"),
        *("Tokens/s (published, read from figure)", "Memory, GB (published, read from figure)"),
    ]
    for text in (writers.markdown_page(table), writers.tex(table), writers.fragment(table)):
        assert text.count("even-100") >= 24


def test_the_teacher_is_compared_in_the_runtime_that_serves_it_best(profile, table):
    frame = read_profile(profile)
    rows = frame[(frame["batch"] == 1) & (frame["generated_tokens"] == 4096) & (frame["repeat"] == 0)]
    paper = rows[rows["protocol"] == "paper"].set_index(["layout", "runtime"])
    eager, sdpa = (lookup(table, f"{OWN}, batch 1", "4,096†", f"teacher, {name}") for name in ("eager", "sdpa"))
    assert [row["Decoding, tokens/s"].bold for row in (eager, sdpa)] == [False, True]
    assert [row["Peak memory, GB"].bold for row in (eager, sdpa)] == [False, True]
    assert sdpa["Decoding, × teacher"].text == sdpa["Memory saved, %"].text == "–"
    hybrid = lookup(table, f"{OWN}, batch 1", "4,096†", "even-25 (base)")
    rates = paper["decode_tokens_per_s"]
    of = rates["even-25", "fused"] / rates["", "generate-sdpa"]
    assert float(hybrid["Decoding, × teacher"].text) == pytest.approx(of, rel=0.03)
    assert float(eager["Decoding, × teacher"].text) < 1
    memory = paper["peak_memory_bytes"]
    saved = 1 - memory["even-25", "fused"] / memory["", "generate-sdpa"]
    assert float(hybrid["Memory saved, %"].text) == pytest.approx(100 * saved, abs=0.06)
    limit = 100 * rates["even-25", "fused"] / paper["bandwidth_limit_tokens_per_s"]["even-25", "fused"]
    assert float(hybrid["Decoding, % of the limit"].text) == pytest.approx(limit, abs=2)
    predicted = 100 * memory["even-25", "fused"] / paper["predicted_memory_bytes"]["even-25", "fused"]
    assert float(hybrid["Memory, % of the prediction"].text) == pytest.approx(predicted, abs=0.06)


def test_published_numbers_stand_once_beside_a_model_and_beside_one_sequence(table):
    header = "Tokens/s (published, read from figure)"
    for title, rows in table.sections:
        at = [column.header for column in table.columns].index(header)
        shown = [row.entries[at].text for row in rows if row.entries[at].text != "–"]
        every = [f"{value:g}" for row in published.TOKENS_PER_S.values() for value in row if value]
        assert shown == (every if title.endswith("batch 1") else [])


def test_what_did_not_run_is_said(table):
    full = lookup(table, f"{ONE}, batch 8", "32,768†", "teacher")
    assert full["Decoding, tokens/s"].text == "out of memory"
    assert not any("flash" in entry.text for row in table.rows for entry in row.entries)
    assert f"Not run: generate-flash_attention_2 ({paper_profile.NOTE})." in table.notes
    assert any(
        "At 4,096 generated tokens" in note and "rates then differ by +0.4 to +0.4 % from" in note
        for note in table.notes
    )
    assert any(note.startswith("† Longer than what the model is made for") for note in table.notes)
    assert lookup(table, f"{ONE}, batch 1", "1,024", "teacher")["Pass over the context, s"].text != "–"
    assert lookup(table, f"{ONE}, batch 1", "32,768†", "teacher")["Pass over the context, s"].text == "–"


def test_a_runtime_that_fails_at_some_points_keeps_its_rows(tmp_path):
    rows = [profiled("", tokens, [40], protocol="paper", runtime="generate-sdpa") for tokens in (512, 1024)]
    rows += [profiled("", 512, [50], protocol="paper", runtime="generate-eager")]
    rows += [profiled("", 1024, [""], protocol="paper", runtime="generate-eager", note="eager: no")]
    made = tables.build("speed", report(), write_profile(tmp_path / "profile.csv", rows), None)
    assert [[entry.text for entry in row.entries[1:5:3]] for row in made.rows] == [
        *(["teacher, eager", "50.0"], ["teacher, sdpa", "40.0"]),
        *(["teacher, eager", "not run"], ["teacher, sdpa", "40.0"]),
    ]
    assert "Not run: generate-eager (eager: no)." in made.notes


def test_columns_of_an_older_file_count_as_empty(tmp_path):
    frame = paper_profile.profile_frame(("transformers",), batches=(1,), repeats=1)
    frame = frame[frame["protocol"] == "same_runtime"]
    new = [name for name in (*PROFILE_FIGURES, *PROFILE_MARKS) if name not in PROFILE_MEASURED]
    old = paper_profile.write(frame.drop(columns=[*new, "runtime"], errors="ignore"), tmp_path / "old.csv")
    read = read_profile(old)
    assert set(read["runtime"]) == {"transformers"}
    assert not read["beyond_positions"].any()
    assert read["context_prefill_s"].isna().all()
    made = tables.build("speed", paper_profile.settings(scale=False), old, None)
    assert [column.header for column in made.columns][:4] == [
        *("Context, tokens", "Model", "Layers replaced", "Prompt pass, s")
    ]
    assert len(made.columns) == 8
    for name in ("speed", "memory"):
        for scale in (False, True):
            figures.write(name, paper_profile.settings(scale=scale), old, tmp_path / f"{name}{scale}")
    claims.write(paper_profile.settings(scale=False), None, None, old, tmp_path / "claims")


def judged(tmp_path, profile, settings=None):
    """The rows of claims.csv by id."""
    claims.write(settings or paper_profile.settings(), None, None, profile, tmp_path / "claims")
    with open(tmp_path / "claims.csv", encoding="utf-8", newline="") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def test_each_claim_has_a_verdict_for_each_protocol(profile, tmp_path):
    rows = judged(tmp_path, profile)
    assert [*rows][:6] == SPEED_IDS
    assert [*rows][6:] == [entry.id for entry in claims.REGISTER[2:]]
    assert {row["verdict"] for name, row in rows.items() if name not in SPEED_IDS} == {"not run"}
    assert "weights are random" in rows["losses"]["detail"]
    assert rows["losses"]["command"] == "snakemake claims --config preset=paper-profile"
    assert rows["speed"]["command"] == "snakemake table_speed --config preset=paper-profile"
    assert (rows["speed"]["verdict"], rows["speed_architecture"]["verdict"]) == ("holds", "does not hold")
    assert [rows[name]["published"] for name in SPEED_IDS] == ["3.6"] * 2 + ["27.5"] * 2 + ["19.88"] * 2
    assert all("16,384" in rows[name]["detail"] for name in SPEED_IDS[2:])


def test_the_gap_is_parted_into_architecture_and_runtimes(profile, tmp_path):
    frame = read_profile(profile)
    row = judged(tmp_path, profile)["speed_architecture"]
    longest = frame[(frame["batch"] == 1) & (frame["generated_tokens"] == 32768)]
    rates = longest.groupby(["protocol", "layout", "runtime"])["decode_tokens_per_s"].median()
    same = rates["same_runtime", "even-25", "fused"] / rates["same_runtime", "", "fused"]
    total = rates["paper", "even-25", "fused"] / rates["paper", "", "generate-sdpa"]
    part = 100 * math.log(same) / math.log(total)
    assert float(row["measured"]) == pytest.approx(same, rel=1e-3)
    assert (
        f"Of the gap of {total:.2f} times there between models in runtimes of their own, the architecture makes "
        f"{same:.2f} times ({part:.0f} % of the gap's logarithm) and the runtimes {total / same:.2f} times "
        f"({100 - part:.0f} %)."
    ) in row["detail"]


def scale_rows(protocol, layout, tokens, rates, **options):
    runtime = "fused" if layout or protocol == "same_runtime" else "generate-sdpa"
    return profiled(layout, tokens, rates, protocol=protocol, runtime=runtime, **options)


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [([370, 380, 390], "holds"), ([350, 380, 390], "not shown"), ([300, 310, 320], "does not hold")],
)
def test_speed_is_held_against_its_size(tmp_path, rates, verdict):
    rows = [
        scale_rows(protocol, layout, tokens, found)
        for protocol in ("paper", "same_runtime")
        for layout, tokens, found in (
            *(("", 1024, [100] * 3), ("even-25", 1024, rates)),
            *(("", 2048, [100] * 3), ("even-25", 2048, [110] * 3)),
        )
    ]
    found = judged(tmp_path, write_profile(tmp_path / "profile.csv", rows), report("paper"))
    for name in ("speed", "speed_architecture"):
        assert (found[name]["verdict"], found[name]["measured"]) == (verdict, f"{rates[1] / 100:g}")
    assert "the architecture makes 3." in found["speed"]["detail"]
    assert "(100 % of the gap's logarithm) and the runtimes 1.00 times (0 %)" in found["speed"]["detail"]


@pytest.mark.parametrize(("half", "verdict"), [(72, "holds"), (73, "does not hold")])
def test_memory_is_held_against_its_size_at_16k(tmp_path, half, verdict):
    points = [(1024, 100), (16384, half), (20000, 10)]
    rows = [scale_rows("paper", "", tokens, [9], memory=100) for tokens, _ in points]
    rows += [scale_rows("paper", "even-50", tokens, [9], memory=saved) for tokens, saved in points]
    found = judged(tmp_path, write_profile(tmp_path / "profile.csv", rows), report("paper"))
    assert (found["memory"]["verdict"], found["memory"]["measured"]) == (verdict, str(100 - half))
    assert "cannot be parted" in found["memory"]["detail"]
    assert found["memory_architecture"]["verdict"] == "not run"
    assert "no point of protocol same_runtime" in found["memory_architecture"]["detail"]
    assert "lacks even-25" in found["memory_25"]["detail"]


def test_one_repeat_of_speed_shows_nothing(tmp_path):
    rows = [scale_rows("paper", layout, 1024, [rate]) for layout, rate in (("", 10), ("even-25", 90))]
    found = judged(tmp_path, write_profile(tmp_path / "profile.csv", rows), report("paper"))["speed"]
    assert (found["verdict"], found["measured"], found["low"], found["over"]) == ("not shown", "9", "", "none")


def test_in_one_runtime_the_hybrids_own_is_looked_at(tmp_path):
    frame = paper_profile.profile_frame(("transformers", "fused"), batches=(1,))
    path = paper_profile.write(frame, tmp_path / "profile.csv")
    points = measured.points_of(read_profile(path), "same_runtime")
    assert {point.runtime for point in points} == {"fused"}
    assert "(both fused)" in judged(tmp_path, path)["speed_architecture"]["detail"]
    titles = [title for title, _ in tables.build("speed", paper_profile.settings(), path, None).sections]
    assert titles == [f"{ONE} (transformers), batch 1", f"{ONE} (fused), batch 1", f"{OWN}, batch 1"]


def test_figures_have_a_panel_for_each_protocol_and_batch(profile):
    frame = read_profile(profile)
    drawn = {
        name: draw(paper_profile.settings(), frame) for name, (_, draw) in figures.DRAW.items() if name in NAMES
    }
    for figure in drawn.values():
        assert [axes.get_title(loc="left") for axes in figure.axes] == [
            *("One runtime, batch 1", "As the paper measured, batch 1"),
            *("One runtime, batch 8", "As the paper measured, batch 8"),
        ]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert {"Teacher", "Hybrid 100 %", published.MARK, "out of memory"} <= set(labels)
        hollow = {
            axes.get_title(loc="left"): sum(published.MARK in str(one.get_label()) for one in axes.lines)
            for axes in figure.axes
        }
        assert (
            [number for number in hollow.values() if number] == [hollow["As the paper measured, batch 1"]] == [4]
        )
    assert list(line(panel(drawn["speed"], "As the paper measured, batch 1"), "Teacher").get_xdata()) == [
        *paper_profile.GENERATED
    ]
    words = drawn["speed"].get_supxlabel()
    assert (
        "one runtime: fused; as the paper measured: teacher in whichever serves it best (generate-sdpa)" in words
    )
    assert "from 2k generated tokens on" in words


NAMES = ("speed", "memory")


def test_lines_are_the_measured_and_the_computed_values(profile):
    frame = read_profile(profile)
    rows = frame[(frame["protocol"] == "paper") & (frame["batch"] == 1)]
    axes = panel(figures.draw_speed(paper_profile.settings(), frame), "As the paper measured, batch 1")
    sdpa = rows[rows["runtime"] == "generate-sdpa"].groupby("generated_tokens")
    np.testing.assert_allclose(line(axes, "Teacher").get_ydata(), sdpa["decode_tokens_per_s"].median())
    half = rows[rows["layout"] == "even-50"].groupby("generated_tokens")
    limit = line(axes, "Hybrid 50 %, computed").get_ydata()
    np.testing.assert_allclose(limit, half["bandwidth_limit_tokens_per_s"].median())
    assert axes.get_yscale() == "log"
    assert list(line(axes, f"Teacher, {published.MARK}").get_ydata()) == [32, 41, 41, 38, 31]

    figure = figures.draw_memory(paper_profile.settings(), frame)
    axes = panel(figure, "As the paper measured, batch 1")
    predicted = line(axes, "Hybrid 50 %, computed").get_ydata()
    np.testing.assert_allclose(predicted, half["predicted_memory_bytes"].median() / 1e9)
    assert list(line(axes, f"Teacher, {published.MARK}").get_ydata()) == [7.4, 8.0, 9.3, 11.9, 17.1]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 22.1, "a published value is cut off"
    axes = panel(figure, "One runtime, batch 8")
    crosses = [line(axes, f"{name}, out of memory") for name in ("Teacher", "Hybrid 12.5 %")]
    assert [list(cross.get_xdata()) for cross in crosses] == [[32768], [32768]]
    assert crosses[0].get_ydata() != crosses[1].get_ydata()


def test_one_protocol_and_the_teacher_alone_are_drawn(tmp_path):
    frame = paper_profile.profile_frame(batches=(8,))
    frame = frame[(frame["protocol"] == "paper") & (frame["model"] == "teacher")]
    path = paper_profile.write(frame, tmp_path / "profile.csv")
    for name in NAMES:
        figures.write(name, paper_profile.settings(), path, tmp_path / name)
    empty = frame.assign(decode_tokens_per_s="", peak_memory_bytes="")
    path = paper_profile.write(empty, tmp_path / "empty.csv")
    with pytest.raises(UserError, match=r"empty.csv: no value of decode_tokens_per_s"):
        figures.write("speed", paper_profile.settings(), path, tmp_path / "none")


def test_equal_data_give_equal_bytes(profile, tmp_path):
    for folder in ("a", "b"):
        figures.write("memory", paper_profile.settings(), profile, tmp_path / folder / "memory")
    for suffix in ("svg", "png"):
        one, other = ((tmp_path / folder / f"memory.{suffix}").read_bytes() for folder in ("a", "b"))
        assert one == other


def test_the_page_of_a_preset_that_trains_nothing(profile, tmp_path):
    settings = paper_profile.settings()
    judged(tmp_path, profile)
    writers.write(tables.build("speed", settings, profile, None), tmp_path / "tables" / "speed")
    for name in NAMES:
        figures.write(name, settings, profile, tmp_path / "figures" / name)
    drawn = [tmp_path / "figures" / f"{name}.svg" for name in NAMES]
    made = [tmp_path / "tables" / "speed.html"]
    page.write(settings, tmp_path / "claims.csv", made, drawn, [profile], [], tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "weights of this preset are random" in text
    assert "magnitudes cannot" not in text
    assert "<dt>Seeds</dt>" not in text
    assert OWN in text


def test_the_scale_is_that_of_the_model_and_not_of_a_name():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings = Report.of(load_config(params | {"preset": "paper-profile"}))
    assert settings.at_paper_scale
    assert (settings.depth, settings.ablation, settings.tasks) == (32, None, ())
    assert not Report.of(load_config(params)).at_paper_scale
    small = params | {"preset": "paper-profile", "presets": {"paper-profile": yaml.safe_load(RANDOM)}}
    assert not Report.of(load_config(small)).at_paper_scale
