"""Reports of a preset whose teacher is a pretrained language model of 30 layers, profiled on a GPU."""

from __future__ import annotations

import csv
from pathlib import Path

import figure_data
import pandas as pd
import pytest

from matvlm.report import claims, figures, page, tables, writers
from matvlm.report.claim_rows import read_claims
from matvlm.report.figures import style
from matvlm.report.figures.ablations import draw_ablations
from matvlm.report.figures.convergence import draw_convergence
from matvlm.report.figures.radar import draw_radar
from matvlm.report.read import read_eval, read_train

SETTINGS = figure_data.smol_settings()
TABLES = ("main", "losses", "layouts", "ratios", "inits", "divergences", "speed")


def far_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """Attention starts below where random ends: far from each other, and within one decade."""
    known = frame["val_kl"] != ""
    shift = (frame["init"] == "random").map({True: 2.0, False: 0.8})
    frame.loc[known, "val_kl"] = 0.5 * frame.loc[known, "val_kl"].astype(float) + shift[known]
    return frame.assign(tokens=97 * frame["tokens"])


def profile() -> pd.DataFrame:
    """Two batch sizes on a GPU, at lengths that the paper has too."""
    layouts = ("even-12.5", "even-25", "even-50", "even-100")
    one = figure_data.profile_frame(layouts, (512, 2048, 8192), (256,), scale=60)
    both = pd.concat([one, one.assign(batch=8)])
    return both.assign(device="NVIDIA H100 80GB HBM3", kernel_path="mamba_ssm", runtime="fused")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Everything that is rendered of the preset."""
    root = tmp_path_factory.mktemp("results") / "smol"
    frames = {
        "eval": figure_data.eval_frame(SETTINGS),
        "train": far_apart(figure_data.train_frame(SETTINGS)),
        "profile": profile(),
        "runs": figure_data.runs_frame(SETTINGS),
    }
    data = {kind: figure_data.write(frame, root / f"data/{kind}.csv") for kind, frame in frames.items()}
    for name in TABLES:
        source = (data["profile"], None) if name == "speed" else (data["eval"], data["train"])
        writers.write(tables.build(name, SETTINGS, *source), root / "tables" / name)
    sources = {"speed": "profile", "memory": "profile", "convergence": "train"}
    for name in figures.DRAW:
        figures.write(name, SETTINGS, data[sources.get(name, "eval")], root / "figures" / name)
    claims.write(SETTINGS, data["eval"], data["train"], data["profile"], root / "claims")
    page.write(
        SETTINGS,
        root / "claims.csv",
        [root / f"tables/{name}.html" for name in TABLES],
        [root / f"figures/{name}.svg" for name in figures.DRAW],
        [*data.values()],
        [],
        root / "index.html",
    )
    return root


def test_achieved_ratios_are_those_of_thirty_layers(root):
    lines = (root / "tables/ratios.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines if line.startswith("| even")]
    assert cells == [
        ["even-12.5", "4 of 30", "13.33 %"],
        ["even-25 (base)", "8 of 30", "26.67 %"],
        ["even-50", "15 of 30", "50 %"],
        ["even-100", "30 of 30", "100 %"],
    ]


def test_the_whole_model_replaced_is_drawn_like_any_ratio(root):
    frame = read_eval(root / "data/eval.csv")
    with style.in_use():
        radar, ablations = draw_radar(SETTINGS, frame), draw_ablations(SETTINGS, frame)
    names = [text.get_text() for text in radar.legends[0].get_texts()]
    assert names == ["Teacher", "12.5 %", "25 %", "50 %", "100 %"]
    colors = {line.get_color() for line in radar.legends[0].get_lines()}
    assert len(colors) == 5
    labels = [text.get_text() for axes in ablations.axes for text in axes.get_yticklabels()]
    assert "100 % (30 of 30 layers)" in labels


@pytest.mark.parametrize("name", figures.DRAW)
def test_no_legend_is_cut_off(root, name, monkeypatch):
    """Text beyond the edge of a picture is lost in the PNG."""
    kept = []
    monkeypatch.setattr(style, "save", lambda figure, out: kept.append(figure))
    kind = {"speed": "profile", "memory": "profile", "convergence": "train"}.get(name, "eval")
    figures.write(name, SETTINGS, root / f"data/{kind}.csv", root / "unused")
    (figure,) = kept
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is None or (box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1), axes.get_title(loc="left")


def test_a_narrow_range_of_the_kl_has_ticks_enough(root):
    with style.in_use():
        figure = draw_convergence(SETTINGS, read_train(root / "data/train.csv"))
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert high / low < 8
    assert len(ticks) >= 3
    assert "million" in axes.get_xlabel()


def test_a_run_that_starts_below_the_level_is_told_of(root):
    claim = next(claim for claim in read_claims(root / "claims.csv") if claim.id == "init")
    assert claim.verdict == "holds"
    assert "attention was below it at the first validation of 3 of 3 runs" in claim.detail
    log = read_train(root / "data/train.csv").query("init == 'attention' and layout == 'even-25' and tokens > 0")
    assert f"attention took {log.groupby('seed')['tokens'].min().mean():,.0f} tokens" in claim.detail
    assert "starts below it" in (root / "tables/inits.md").read_text()


def test_numbers_of_another_model_do_not_stand_in_the_table_of_speed(root):
    text = (root / "tables/speed.md").read_text()
    assert "published, read from figure" not in text
    assert "so that sizes do not compare" in text
    assert "NVIDIA H100 80GB HBM3" in text
    assert "## All models in one runtime, batch 8" in text


def test_what_was_not_configured_is_not_spoken_of(root):
    text = "".join(path.read_text() for path in (*root.glob("tables/*.md"), root / "claims.md"))
    for words in ("release-random", "so small", "two million"):
        assert words not in text


def test_every_claim_but_one_is_answered(root):
    with open(root / "claims.csv", newline="", encoding="utf-8") as stream:
        verdicts = {row["id"]: row["verdict"] for row in csv.DictReader(stream)}
    assert [name for name, verdict in verdicts.items() if verdict == "not run"] == ["mamba_vlms"]
    assert "even-100 minus even-12.5" in (root / "claims.md").read_text()


def test_the_page_is_whole(root):
    text = (root / "index.html").read_text(encoding="utf-8")
    assert text.count("<svg") == len(figures.DRAW)
    assert "preset <code>smol</code>" in text
    assert "much smaller than the paper" in text
