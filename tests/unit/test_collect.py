"""From the files of many runs to tidy CSV: the same bytes in any order, and one line for whatever is odd."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest

from matvlm.errors import UserError
from matvlm.provenance import COLUMNS, COST_COLUMNS
from matvlm.report import collect, metrics, order

SOURCE = {name: f"<{name}>" for name in COLUMNS} | {"dirty": False}
COST = dict(zip(COST_COLUMNS, (1.5, 0.0, 1000), strict=True))
CELL = {"init": "attention", "layout": "even-25", "loss": "prob", "divergence": "kl", "seed": 0}
TEACHER = dict.fromkeys(CELL)
LOG = "step,tokens,loss,loss_prob,lr,val_kl\n0,0,,,,2.5\n1,80,0.5,0.5,0.001,\n10,800,0.25,0.25,1e-05,1.25\n"


def score(value=0.5, task="easy_vqa_open", metric="accuracy", model="student", **cell):
    identity = {"model": model, **(CELL if model == "student" else TEACHER), **cell}
    return {**identity, "task": task, "metric": metric, "value": value, "n": 100}


def point(model="teacher", layout="", generated=128, repeat=0, **values):
    measured = {"prefill_s": 0.1, "decode_tokens_per_s": 50.0, "peak_memory_bytes": 10**9}
    key = {"protocol": "paper", "runtime": "eager", "batch": 1, "prompt_tokens": 64}
    return {
        **key,
        "model": model,
        "layout": layout,
        "generated_tokens": generated,
        "repeat": repeat,
        **measured,
    } | values


def document(*rows, **more):
    return {"rows": list(rows), "provenance": SOURCE, "cost": COST, **more}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def evals(tmp_path):
    """Files of evaluations, some with several rows."""
    scores = [
        document(*(score(0.9, task=t, model="teacher") for t in ("sort_of_clevr_relational", "easy_vqa_open"))),
        *(
            document(*(score(0.1 * seed + 0.3, seed=seed, layout=layout, metric=m) for m in ("f1", "accuracy")))
            for seed in (0, 1, 10)
            for layout in ("end-25", "even-50", "even-12.5")
        ),
    ]
    return [write(tmp_path / f"{i:02d}" / "results.json", content) for i, content in enumerate(scores)]


def test_scores_are_sorted_and_carry_their_source(evals):
    rows = read(collect.collect_eval(evals))
    assert len(rows) == 20
    assert [row["model"] for row in rows[:3]] == ["teacher", "teacher", "student"]
    assert [row["task"] for row in rows[:2]] == ["easy_vqa_open", "sort_of_clevr_relational"]
    layouts = list(dict.fromkeys(row["layout"] for row in rows))
    assert layouts == ["", "even-12.5", "even-50", "end-25"]
    assert list(dict.fromkeys(row["seed"] for row in rows)) == ["", "0", "1", "10"]
    assert {row["commit"] for row in rows} == {"<commit>"}
    assert {row["dirty"] for row in rows} == {"false"}
    assert rows[-1]["value"] == repr(0.1 * 10 + 0.3)  # as it was read, not rounded


def test_the_order_of_files_and_rows_changes_no_byte(evals, tmp_path):
    expected = collect.collect_eval(evals)
    for seed in range(5):
        shuffled = random.Random(seed).sample(evals, len(evals))
        for path in evals:
            content = json.loads(path.read_text())
            random.Random(seed).shuffle(content["rows"])
            write(path, content)
        assert collect.collect_eval(shuffled) == expected
    command = ["--kind", "eval", "--out", str(tmp_path / "eval.csv"), "--inputs", *map(str, reversed(evals))]
    assert collect.main(command) == 0
    assert (tmp_path / "eval.csv").read_text() == expected


def test_an_observation_made_twice(evals, tmp_path):
    again = write(tmp_path / "again" / "results.json", document(score(0.4, layout="end-25", seed=1)))
    with pytest.raises(UserError, match="measured a second time") as caught:
        collect.collect_eval([*evals, again])
    for word in (str(again), "layout end-25", "seed 1", "easy_vqa_open", "first in"):
        assert word in str(caught.value)


def test_logs_take_their_cell_from_the_provenance_beside_them(tmp_path):
    paths = []
    for seed in (1, 0):
        folder = tmp_path / str(seed)
        write(folder / "provenance.json", document(cell=CELL | {"seed": seed}, step="distill"))
        paths.append(write(folder / "log.csv", LOG))
    text = collect.collect_train(paths)
    assert text == collect.collect_train(paths[::-1])
    rows = read(text)
    assert [(row["seed"], row["step"]) for row in rows] == [(s, t) for s in "01" for t in ("0", "1", "10")]
    assert rows[1]["loss"] == "prob"
    assert (rows[1]["loss_total"], rows[1]["loss_layer"], rows[1]["lr"]) == ("0.5", "", "0.001")
    assert rows[2]["lr"] == "1e-05"
    assert rows[0]["config_hash"] == "<config_hash>"


def test_points_of_profiling(tmp_path):
    failed = point(generated=1024, decode_tokens_per_s=None, peak_memory_bytes=None, prefill_s=float("nan"))
    content = document(point(generated=512, cache="dynamic"), failed, point(generated=128))
    other = document(*(point("student", "even-25", repeat=repeat) for repeat in (10, 9)))
    paths = [write(tmp_path / name, data) for name, data in (("b.json", content), ("a.json", other))]
    text = collect.collect_profile(paths)
    assert text == collect.collect_profile(paths[::-1])
    rows = read(text)
    assert [row["generated_tokens"] for row in rows[:3]] == ["128", "512", "1024"]
    assert [row["repeat"] for row in rows[3:]] == ["9", "10"]
    assert (rows[2]["prefill_s"], rows[2]["decode_tokens_per_s"]) == ("", "")  # out of memory is a row
    assert [row["cache"] for row in rows[:2]] == ["", "dynamic"]  # a column of its own is kept


def test_what_runs_cost(tmp_path):
    contents = {
        "teacher": document(step="train_teacher"),
        "distill": document(step="distill", cell=CELL),
        "eval": document(score(), score(metric="f1")),
        "profile": document(point()),
    }
    for name in ("teacher", "distill"):
        del contents[name]["rows"]
    paths = [write(tmp_path / f"{name}.json", content) for name, content in contents.items()]
    text = collect.collect_runs(paths)
    assert text == collect.collect_runs(paths[::-1])
    found = {row["step"]: (row["model"], row["layout"], row["wall_s"]) for row in read(text)}
    assert found == {
        "train_teacher": ("teacher", "", "1.5"),
        "distill": ("student", "even-25", "1.5"),
        "evaluate": ("student", "even-25", "1.5"),
        "profile": ("teacher", "", "1.5"),
    }


@pytest.mark.parametrize(
    ("kind", "name", "content", "words"),
    [
        ("eval", "results.json", "{", "not JSON"),
        ("eval", "results.json", "[]", "not a JSON object"),
        ("eval", "results.json", document(), "'rows' is missing or empty"),
        ("eval", "results.json", {"rows": [score()]}, "'provenance' is missing"),
        ("eval", "results.json", {**document(score()), "provenance": {}}, "provenance: commit, dirty"),
        ("eval", "results.json", document({"task": "x"}), "rows[0]: model, init"),
        (
            "eval",
            "results.json",
            document(score(), score(float("nan"), "f1")),
            "rows[1].value: nan is not a finite",
        ),
        ("eval", "results.json", document(score(float("inf"))), "inf is not a finite number"),
        ("eval", "results.json", document(score("0.5")), "'0.5' is not a finite number"),
        ("eval", "results.json", document(score(True)), "True is not a finite number"),
        ("profile", "a.json", document({"model": "teacher"}), "rows[0]: protocol"),
        ("runs", "a.json", {**document(score()), "cost": {"wall_s": 1}}, "cost: gpu_s, peak_memory_bytes missing"),
        ("runs", "a.json", document(), "neither 'step' nor 'rows'"),
        ("train", "log.csv", "step,tokens,loss\n1,2,3\n", "column val_kl is missing"),
        ("train", "log.csv", "", "column step is missing"),
    ],
)
def test_a_file_that_is_odd_is_one_line(tmp_path, capsys, kind, name, content, words):
    path = write(tmp_path / name, content)
    if kind == "train":
        write(tmp_path / "provenance.json", document(cell=CELL))
    status = collect.main(["--kind", kind, "--inputs", str(path), "--out", str(tmp_path / "out.csv")])
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith(f"error: {path}")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_file_and_no_file(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out.csv")]
    assert collect.main(["--kind", "eval", "--inputs", str(tmp_path / "results.json"), *out]) == 1
    assert "No such file" in capsys.readouterr().err
    assert collect.main(["--kind", "eval", *out]) == 2
    assert "no files to collect" in capsys.readouterr().err


def test_metrics_are_means_over_seeds(evals, tmp_path):
    table = write(tmp_path / "eval.csv", collect.collect_eval(evals))
    tree = metrics.summarise(table)
    assert tree["teacher"] == {"easy_vqa_open": 0.9, "sort_of_clevr_relational": 0.9}
    cells = {f"attention/{layout}/prob/kl" for layout in ("end-25", "even-50", "even-12.5")}
    assert tree["student"].keys() == cells
    assert tree["student"]["attention/end-25/prob/kl"]["easy_vqa_open"] == pytest.approx((0.3 + 0.4 + 1.3) / 3)
    assert metrics.main(["--eval", str(table), "--out", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == tree


def test_metrics_of_a_preset_that_only_measures(tmp_path):
    rows = [point(repeat=repeat, decode_tokens_per_s=rate) for repeat, rate in enumerate((10.0, 30.0, 20.0))]
    rows += [point("student", "even-25", generated=512, decode_tokens_per_s=None, peak_memory_bytes=None)]
    path = write(tmp_path / "a.json", document(*rows))
    table = write(tmp_path / "profile.csv", collect.collect_profile([path]))
    assert metrics.main(["--profile", str(table), "--out", str(tmp_path / "b.json")]) == 0
    tree = json.loads((tmp_path / "b.json").read_text())
    first = rows[0]
    place = f"{first['batch']} x {first['prompt_tokens']} + {first['generated_tokens']}"
    measured = tree["teacher"][first["protocol"]][first["runtime"]][place]
    assert measured == {"decode_tokens_per_s": 20, "peak_memory_bytes": first["peak_memory_bytes"]}
    assert tree.keys() == {"teacher"}


def test_metrics_of_a_table_without_a_column(tmp_path, capsys):
    table = write(tmp_path / "eval.csv", "model,task,value\nteacher,x,1\n")
    assert metrics.main(["--eval", str(table), "--out", str(tmp_path / "a.json")]) == 2
    assert "column init, layout, loss, divergence, metric is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("model", ["teacher", "student", "another"]),
        ("loss", ["", "prob", "layer", "ce", "prob+layer+ce", "odd"]),
        ("divergence", ["none", "kl", "reverse", "jsd", "ce", "l2"]),
        (
            "layout",
            ["", "even-12.5", "even-25", "even-50", "even-100", "front-25", "middle-25", "end-25", "0,4,8"],
        ),
        ("seed", [None, 0, 2, 10]),
        ("batch", ["", "1", "8", "16", "large"]),
    ],
)
def test_the_order_of_values(column, expected):
    for seed in range(5):
        shuffled = random.Random(seed).sample(expected, len(expected))
        assert sorted(shuffled, key=lambda value: order.key(column, value)) == expected
