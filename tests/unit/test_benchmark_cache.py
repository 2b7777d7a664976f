"""The benchmark of caches: what it measures of top-k caches and of steps, on a Phi and on a Llama."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest
from tiny_models import llama_teacher

from matvlm.data.processor import load_processor
from matvlm.models import initialise
from matvlm.models.folder import save_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("cache")


@pytest.fixture(params=["phi", "llama"])
def models(request, small, tmp_path):
    """A teacher's folder and a student's."""
    if request.param == "phi":
        return small / "teacher", small / "init" / "attention-even-50"
    folder = tmp_path / "teacher"
    save_model(llama_teacher(small), folder, {"step": "t"}, processor=load_processor(small / "teacher"))
    arguments = f"--teacher {folder} --init attention --layout even-50 --seed 0 --out {tmp_path / 'student'}"
    assert initialise.main(arguments.split()) == 0
    return folder, tmp_path / "student"


def options(small, models, out, **changes) -> list[str]:
    teacher, student = models
    found = {"params": ROOT / "params.yaml", "preset": "debug", "teacher": teacher, "students": f"a={student}"}
    found |= {"data": small / "data" / "distill", "device": "cpu", "steps": 3, "repeats": 1, "out": out}
    found |= changes
    return [word for name, value in found.items() for word in (f"--{name}", *str(value).split(" "))]


def test_what_is_measured(bench, small, models, tmp_path):
    out = tmp_path / "cache.csv"
    argv = options(small, models, out, ks="3 1000", **{"step-k": 3})
    assert bench.main(argv) == 0
    with open(out, newline="") as stream:
        rows = list(csv.DictReader(stream))
    measured = [row for row in rows if row["measure"] == "accuracy"]
    accuracy = {(row["divergence"], row["k"]): row for row in measured if row["draws"] == "0"}
    (drawn,) = (row for row in measured if row["draws"] == "16" and row["k"] == "3")
    assert abs(float(drawn["error_nats"])) < abs(float(accuracy["kl", "3"]["error_nats"])) / 5
    assert len(accuracy) == 8
    assert len(measured) == 10
    for name in ("kl", "reverse", "jsd"):
        few, every = accuracy[name, "3"], accuracy[name, "1000"]
        assert float(few["error_nats"]) < -1e-4  # merging tokens only takes from a divergence
        assert float(few["exact_nats"]) + float(few["error_nats"]) == pytest.approx(float(few["topk_nats"]), 1e-2)
        assert float(every["relative_error"]) < 1e-3
        assert few["exact_nats"] == every["exact_nats"]
    assert float(accuracy["ce", "3"]["relative_error"]) < 1e-5
    steps = [row for row in rows if row["measure"] == "step"]
    assert [(row["mode"], row["reading"]) for row in steps] == [*bench.KINDS]
    assert steps[0]["ratio_to_online"] == "1.0000"
    assert all(float(row["step_s"]) > 0 for row in steps)
    assert int(steps[1]["bytes"]) > int(steps[3]["bytes"]) > int(steps[0]["bytes"]) == 0
    assert {row["command"] for row in rows} == {"python benchmarks/cache.py " + " ".join(argv)}
    assert all(row["torch"] and row["device"] and row["teacher_hash"] and row["student_hash"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "kinds"), [({"modes": "topk"}, ["online", "topk", "topk"]), ({"repeats": 0}, [])]
)
def test_only_what_is_asked_for_is_timed(bench, small, tmp_path, changes, kinds):
    out = tmp_path / "cache.csv"
    models = small / "teacher", small / "init" / "attention-even-50"
    assert bench.main(options(small, models, out, ks="3", **{"step-k": 3}, **changes)) == 0
    with open(out, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["mode"] for row in rows if row["measure"] == "step"] == kinds
    assert len([row for row in rows if row["measure"] == "accuracy"]) == 5


def test_rows_of_another_preset_stay(bench, tmp_path):
    out = tmp_path / "cache.csv"
    bench.write([dict.fromkeys((*bench.MEASURED, *bench.SETTING, *bench.ORIGIN), "") | {"preset": "other"}], out)
    assert [row["preset"] for row in bench.kept(out, "tiny")] == ["other"]
    assert bench.kept(out, "other") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "paper-profile"}, "--preset: 'paper-profile' is unknown or trains nothing; allowed: tiny, "),
        ({"students": "folder"}, "--students: 'folder' is not NAME=FOLDER"),
        ({"steps": 2}, "--steps: must be at least 3"),
        ({"ks": "0"}, "--ks: must be at least 1"),
    ],
)
def test_options_that_cannot_be_measured(bench, small, tmp_path, capsys, changes, message):
    assert bench.main(options(small, ("teacher", "student"), tmp_path / "out.csv", **changes)) == 2
    assert message in capsys.readouterr().err
