"""Figures: what is drawn is what is in the data, at every width of the axes, and always with the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import figure_data
import numpy as np
import pytest

from matvlm.errors import UserError
from matvlm.report import figures, published
from matvlm.report.figures import ablations, profiles, radar, style
from matvlm.report.read import read_eval, read_profile, read_train


@pytest.fixture(autouse=True)
def in_style():
    """Draw as `figures.write` does."""
    with style.in_use():
        yield


def evaluated(tmp_path, report, change=lambda frame: frame):
    return read_eval(figure_data.write(change(figure_data.eval_frame(report)), tmp_path / "eval.csv"))


def trained(tmp_path, report, change=lambda frame: frame):
    return read_train(figure_data.write(change(figure_data.train_frame(report)), tmp_path / "train.csv"))


def profiled(tmp_path, **options):
    return read_profile(figure_data.write(figure_data.profile_frame(**options), tmp_path / "profile.csv"))


def line(axes, label):
    """The one line of a panel that has this label."""
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found


def panel(figure, title):
    """The one panel with this title."""
    (found,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return found


@pytest.mark.processes
def test_equal_data_give_equal_bytes_in_another_process(tmp_path):
    report = figure_data.settings(2)
    profile = figure_data.write(figure_data.profile_frame(), tmp_path / "profile.csv")
    scores = figure_data.write(figure_data.eval_frame(report), tmp_path / "eval.csv")
    train = figure_data.write(figure_data.train_frame(report), tmp_path / "train.csv")
    data = {"speed": profile, "memory": profile, "convergence": train, "ablations": scores, "radar": scores}
    code = (
        "import sys; from pathlib import Path; from matvlm.report import figures;"
        "from matvlm.report.settings import Report; import matplotlib; matplotlib.rcParams['font.size'] = 30;"
        "report = Report.model_validate_json(sys.argv[1]); there = Path(sys.argv[2]);"
        "names = [pair.split('=') for pair in sys.argv[3:]];"
        "[figures.write(name, report, Path(path), there / name) for name, path in names];"
        "assert 'torch' not in sys.modules, 'a figure imports torch'"
    )
    pairs = [f"{name}={path}" for name, path in data.items()]
    command = [sys.executable, "-c", code, report.model_dump_json(), str(tmp_path / "there"), *pairs]
    subprocess.run(command, check=True)
    for name, path in data.items():
        figures.write(name, report, path, tmp_path / "here" / name)
        for suffix in ("svg", "png"):
            here = (tmp_path / "here" / f"{name}.{suffix}").read_bytes()
            assert here == (tmp_path / "there" / f"{name}.{suffix}").read_bytes(), f"{name}.{suffix} differs"
            assert len(here) > 5000
        assert b"dc:date" not in (tmp_path / "here" / f"{name}.svg").read_bytes()
    assert data.keys() == figures.DRAW.keys()


def test_the_layout_is_free_of_the_solvers_last_digits(tmp_path):
    figure = profiles.draw_memory(figure_data.settings(), profiled(tmp_path))
    style.save(figure, tmp_path / "memory")
    bounds = [part for axes in figure.axes for part in axes.get_position(original=True).bounds]
    assert len(bounds) == 12
    np.testing.assert_allclose(bounds, np.round(bounds, 6), rtol=0, atol=1e-14)


def test_a_figure_is_written_aside(tmp_path, monkeypatch):
    """A picture that cannot be written whole leaves the one before it."""
    figure = style.Figure()
    style.save(figure, tmp_path / "speed")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"speed.svg", "speed.png"}
    write = Path.write_bytes

    def full(path, data):
        if "png" not in path.name:
            return write(path, data)
        write(path, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"speed\.png"):
        style.save(figure, tmp_path / "speed")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_data_give_another_figure(tmp_path):
    report = figure_data.settings()
    for name, scale in (("a", 1.0), ("b", 1.1)):
        frame = figure_data.profile_frame(scale=scale)
        figures.write("memory", report, figure_data.write(frame, tmp_path / f"{name}.csv"), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "b.svg").read_bytes()


def test_an_unknown_figure_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--figure pie: allowed: speed, memory"):
        figures.write("pie", figure_data.settings(), tmp_path / "x.csv", tmp_path / "x")


def test_speed_shows_medians_and_extremes(tmp_path):
    frame = profiled(tmp_path)
    figure = profiles.draw_speed(figure_data.settings(), frame)
    axes = panel(figure, "Decoding")
    rows = frame[frame["layout"] == "even-25"].groupby("generated_tokens")["decode_tokens_per_s"]
    drawn = line(axes, "Hybrid 25 %")
    assert list(drawn.get_xdata()) == [128, 512, 1536]
    np.testing.assert_allclose(drawn.get_ydata(), rows.median())
    bars = [part.get_segments()[0][:, 1] for part in axes.collections]
    assert any(np.allclose(bar, [rows.min()[512], rows.max()[512]]) for bar in bars)
    assert axes.get_ylim()[0] == 0
    assert figure.get_supxlabel().startswith(
        "cpu x86_64, batch 1, prompt of 128 tokens, all models in one runtime"
    )

    teacher = frame[frame["layout"] == ""].groupby("generated_tokens")["decode_tokens_per_s"].median()
    ratio = line(panel(figure, "Decoding, relative to the teacher"), "Hybrid 25 %").get_ydata()
    np.testing.assert_allclose(ratio, rows.median() / teacher)


def test_prompt_pass_takes_all_repeats_of_a_length(tmp_path):
    frame = profiled(tmp_path)
    axes = panel(profiles.draw_speed(figure_data.settings(), frame), "Prompt pass")
    median = frame[frame["layout"] == "even-50"]["prefill_s"].median()
    assert line(axes, "Hybrid 50 %").get_xdata()[0] == pytest.approx(1000 * median)
    assert "128 tokens (ms)" in axes.get_xlabel()

    frame = profiled(tmp_path, prompts=(128, 256))
    axes = panel(profiles.draw_speed(figure_data.settings(), frame), "Prompt pass")
    assert list(line(axes, "Hybrid 50 %").get_xdata()) == [128, 256]


def test_published_values_of_another_model_keep_to_themselves(tmp_path):
    figure = profiles.draw_speed(figure_data.settings(), profiled(tmp_path))
    hollow = {
        axes.get_title(loc="left"): [one for one in axes.lines if published.MARK in str(one.get_label())]
        for axes in figure.axes
    }
    assert [title for title, found in hollow.items() if found] == ["Published, 3.1B model"]
    first = hollow["Published, 3.1B model"][0]
    assert first.get_ydata()[0] == pytest.approx(114 / 32)
    assert 32768 not in first.get_xdata(), "the paper's teacher has no value there to compare with"


def test_memory_is_in_the_unit_that_fits(tmp_path):
    frame = profiled(tmp_path)
    axes = panel(profiles.draw_memory(figure_data.settings(), frame), "Peak memory")
    peaks = frame[frame["layout"] == ""].groupby("generated_tokens")["peak_memory_bytes"].median()
    np.testing.assert_allclose(line(axes, "Teacher").get_ydata(), peaks / 1e6)
    assert "(MB)" in axes.get_ylabel()
    frame = profiled(tmp_path, scale=400)
    axes = panel(profiles.draw_memory(figure_data.settings(), frame), "Peak memory")
    assert "(GB)" in axes.get_ylabel()


def test_out_of_memory_is_a_cross_and_no_value(tmp_path):
    frame = profiled(tmp_path, failed=(("", 1536), ("even-12.5", 1536)))
    figure = profiles.draw_memory(figure_data.settings(), frame)
    axes = panel(figure, "Peak memory")
    assert list(line(axes, "Teacher").get_xdata()) == [128, 512]
    crosses = [line(axes, f"{name}, out of memory") for name in ("Teacher", "Hybrid 12.5 %")]
    assert [list(cross.get_xdata()) for cross in crosses] == [[1536], [1536]]
    assert crosses[0].get_ydata() != crosses[1].get_ydata(), "one cross hides the other"
    ratios = panel(figure, "Relative to the teacher")
    assert list(line(ratios, "Hybrid 25 %").get_xdata()) == [128, 512]
    assert "out of memory" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_nothing_but_out_of_memory_is_one_line(tmp_path):
    failed = tuple((layout, 128) for layout in ("", "even-25"))
    frame = profiled(tmp_path, layouts=("even-25",), generated=(128,), failed=failed)
    with pytest.raises(UserError, match=r"profile.csv: no value of peak_memory_bytes"):
        profiles.draw_memory(figure_data.settings(), frame)


def test_convergence_shows_mean_and_seeds(tmp_path):
    report = figure_data.settings(3)
    frame = trained(tmp_path, report)
    figure = figures.draw_convergence(report, frame)
    (axes,) = figure.axes
    rows = frame[(frame["init"] == "random") & frame["val_kl"].notna()]
    np.testing.assert_allclose(line(axes, "random").get_ydata(), rows.groupby("step")["val_kl"].mean())
    np.testing.assert_allclose(
        line(axes, "random").get_xdata(), rows.groupby("step")["tokens"].mean() / 1000, err_msg=axes.get_xlabel()
    )
    np.testing.assert_allclose(line(axes, "random seed 1").get_ydata(), rows[rows["seed"] == 1]["val_kl"])
    assert axes.get_yscale() == "log"
    assert "mean of 3 seeds" in figure.get_supxlabel()


def test_convergence_with_one_seed_draws_no_seeds(tmp_path):
    report = figure_data.settings(1)
    figure = figures.draw_convergence(report, trained(tmp_path, report))
    assert {one.get_label() for one in figure.axes[0].lines} == {"level", *figure_data.ABLATION["inits"]}
    assert "one seed" in figure.get_supxlabel()


def test_a_seed_that_ends_early_does_not_bend_the_mean(tmp_path):
    report = figure_data.settings(2)
    shorter = trained(tmp_path, report, lambda f: f[~((f["seed"] == 1) & (f["step"] == 20))])
    (axes,) = figures.draw_convergence(report, shorter).axes
    assert len(line(axes, "attention").get_xdata()) == 8


def test_ablations_show_scores_intervals_and_seeds(tmp_path):
    report = figure_data.settings(3)
    frame = evaluated(tmp_path, report)
    figure = ablations.draw_ablations(report, frame)
    axes = panel(figure, "Placement")
    values = frame[(frame["layout"] == "front-25") & (frame["task"] == "mean")]["value"] * 100
    label = "attention/front-25/prob+layer+ce/kl"
    assert line(axes, label).get_xdata()[0] == pytest.approx(values.mean())
    np.testing.assert_allclose(line(axes, f"{label} seeds").get_xdata(), values)
    bar = axes.collections[[one.get_label() for one in axes.lines].index(label) // 2].get_segments()[0][:, 0]
    half = 4.3027 * values.std() / 3**0.5
    np.testing.assert_allclose(bar, [values.mean() - half, values.mean() + half], rtol=1e-4)
    assert "95 % interval over 3 seeds" in [text.get_text() for text in figure.legends[0].get_texts()]
    np.testing.assert_allclose(line(axes, "teacher").get_xdata(), 92)
    assert len(figure.axes) == 5
    assert len({one.get_xlim() for one in figure.axes}) == 1, "panels do not compare"


def test_the_base_cell_stands_out(tmp_path):
    report = figure_data.settings()
    figure = ablations.draw_ablations(report, evaluated(tmp_path, report))
    for axes in figure.axes:
        bold = [text for text in axes.get_yticklabels() if text.get_fontweight() == "bold"]
        assert len(bold) == 1
        assert line(axes, report.base_cell.path).get_color() == style.BLUE
    assert "95 % interval over test questions, one seed" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_a_missing_cell_is_one_line(tmp_path):
    report = figure_data.settings()
    frame = evaluated(tmp_path, report, lambda f: f[f["divergence"] != "jsd"])
    with pytest.raises(UserError, match=r"eval.csv: .*jsd"):
        ablations.draw_ablations(report, frame)


def test_radar_scales_each_axis_and_writes_its_ends(tmp_path):
    report = figure_data.settings(2)
    frame = evaluated(tmp_path, report)
    figure = radar.draw_radar(report, frame)
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    names = [text for text in texts if not text.isdigit()]
    assert names == [
        *("easy-VQA\nyes/no", "easy-VQA\nyes/no F1", "easy-VQA\nopen"),
        *("Sort-of-CLEVR\nnon-relational", "Sort-of-CLEVR\nrelational"),
    ]
    inner, outer = (float(text) for text in texts[1:3])
    rows = frame[(frame["layout"] == "even-50") & (frame["task"] == "easy_vqa_yesno")]
    mean = 100 * rows[rows["metric"] == "accuracy"]["value"].mean()
    radius = line(axes, "Hybrid 50 %").get_ydata()[0]
    assert inner + (radius - radar.INNER) / (1 - radar.INNER) * (outer - inner) == pytest.approx(mean)
    assert {"Teacher", "Hybrid 12.5 %", "Hybrid 25 %", "Hybrid 50 %"} <= {one.get_label() for one in axes.lines}


@pytest.mark.parametrize("values", [[0.0, 0.4], [99.9, 100.0], [52.0, 94.0], [71.2, 71.3], [0.0, 100.0]])
def test_a_radar_axis_holds_its_values_and_never_blows_up_noise(values):
    inner, outer = radar.nice_range(values)
    assert 0 <= inner <= min(values) <= max(values) <= outer <= 100
    assert outer - inner >= radar.SMALLEST_RANGE


@pytest.mark.parametrize("name", figures.DRAW)
def test_narrow_presets_are_drawn(name, tmp_path):
    report = figure_data.settings(1, narrow=True)
    frames = {"convergence": figure_data.train_frame(report)}
    for key in ("speed", "memory"):
        frames[key] = figure_data.profile_frame(layouts=("even-25",), generated=(16,), prompts=(32,))
    data = figure_data.write(frames.get(name, figure_data.eval_frame(report)), tmp_path / "data.csv")
    figures.write(name, report, data, tmp_path / "out")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_base_cell_that_is_no_ratio_and_few_tasks(tmp_path):
    report = figure_data.settings().model_copy(
        update={"base": figure_data.BaseCell(layout="front-25"), "tasks": ("easy_vqa_open",)}
    )
    frame = evaluated(tmp_path, report)
    (axes,) = radar.draw_radar(report, frame).axes
    assert "Hybrid front-25" in {one.get_label() for one in axes.lines}
    ratios = panel(ablations.draw_ablations(report, frame), "Ratio of replaced layers")
    assert ratios.get_yticklabels()[0].get_text() == "front-25 (4 of 16 layers)"


def test_tokens_are_written_as_in_the_paper():
    assert [style.token_count(n) for n in (16, 128, 1024, 1536, 32768, 1458)] == [
        *("16", "128", "1k", "1.5k", "32k", "1,458")
    ]
