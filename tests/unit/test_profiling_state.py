"""What profiling keeps of a run that ends early, and how a later one goes on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from profiling_models import architecture, make_settings

from matvlm import provenance
from matvlm.errors import UserError
from matvlm.profiling import point, run
from matvlm.profiling.points import Point
from matvlm.profiling.state import Key, Measured

SETTINGS = make_settings(layouts=["even-25", "even-50"], generated_tokens=[16, 24], repeats=2)
ALL = 2 * 2 * 3
"""Measurements of `SETTINGS`."""
KEY = Key(0, Point(20, 16, 1), "same_runtime", "teacher", "")
OF = {"config_hash": "1", "device": "cpu"}


@pytest.fixture
def measure(monkeypatch):
    """What stands for measuring processes, and can be told how many measurements are made before it fails."""
    jobs: list[tuple] = []

    def measured(*arguments):
        job = point.Job(*arguments)
        if len(jobs) >= measured.allowed:
            raise KeyboardInterrupt
        jobs.append((job.first, job.point, job.layout))
        return {"runtime": "transformers", "decode_tokens_per_s": float(len(jobs))}

    measured.jobs, measured.allowed = jobs, 10**6
    monkeypatch.setattr(run, "_in_own_process", measured)
    return measured


def profile(state: Path | None, settings=SETTINGS) -> dict:
    return run.profile(settings, None, architecture(), ["cpu"], state)


def interrupted(measure, state: Path, after: int) -> None:
    measure.allowed = after
    with pytest.raises(KeyboardInterrupt):
        profile(state)
    assert len(measure.jobs) == after
    measure.allowed = 10**6


def command(state: Path, out: Path, settings=SETTINGS, *more: str) -> int:
    words = ["--settings", settings.model_dump_json(), "--architecture", architecture().model_dump_json()]
    return run.main([*words, "--device", "cpu", "--state", str(state), "--out", str(out), *more])


@pytest.mark.parametrize("after", [0, 1, 5, 6, 7, 11])
def test_nothing_is_measured_twice(measure, tmp_path, after):
    state = tmp_path / "deep" / "state.jsonl"
    interrupted(measure, state, after)
    documents = profile(state)
    assert len(measure.jobs) == len(set(measure.jobs)) == ALL
    rows = [row for document in documents.values() for row in document["rows"]]
    assert sorted(row["decode_tokens_per_s"] for row in rows) == [float(n + 1) for n in range(ALL)]
    profile(state)
    assert len(measure.jobs) == ALL


def test_a_line_that_was_cut_is_measured_again_and_nothing_else(measure, tmp_path):
    state = tmp_path / "state.jsonl"
    interrupted(measure, state, 5)
    lost = measure.jobs[4]
    state.write_text(state.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    documents = profile(state)
    assert [job for job in measure.jobs if measure.jobs.count(job) > 1] == [lost, lost]
    assert len(measure.jobs) == ALL + 1
    assert [len(document["rows"]) for document in documents.values()] == [4, 4, 4]
    # What was written behind the cut line counts too.
    assert len(Measured.load(state)) == ALL


def test_a_cut_first_line_begins_anew(measure, tmp_path):
    state = tmp_path / "state.jsonl"
    interrupted(measure, state, 5)
    state.write_text(state.read_text(encoding="utf-8")[:30], encoding="utf-8")
    profile(state)
    assert len(measure.jobs) == 5 + ALL


def test_a_file_of_other_settings_begins_anew(measure, tmp_path):
    state = tmp_path / "state.jsonl"
    interrupted(measure, state, 5)
    profile(state, SETTINGS.model_copy(update={"decode_steps": 5}))
    assert len(measure.jobs) == 5 + ALL
    profile(state)
    assert len(measure.jobs) == 5 + 2 * ALL


def test_costs_are_of_all_that_was_measured(measure, tmp_path):
    """Before the interruption too."""
    state = tmp_path / "state.jsonl"
    interrupted(measure, state, 6)
    head, *lines = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines() if line]
    for _, row in lines:
        row["seconds"] = 100.0
    state.write_text("\n".join(map(json.dumps, [head, *lines])), encoding="utf-8")
    for document in profile(state).values():
        assert 200 <= document["cost"]["wall_s"] < 210


def test_a_command_leaves_its_state_if_it_is_interrupted_and_only_then(measure, tmp_path):
    state, out = tmp_path / "state.jsonl", tmp_path / "profile"
    measure.allowed = 5
    with contextlib.suppress(KeyboardInterrupt):
        assert command(state, out) != 0
    assert state.is_file()
    assert not out.exists()
    measure.allowed = 10**6
    assert command(state, out) == 0
    assert len(measure.jobs) == ALL
    assert not state.exists()
    assert len(list(out.iterdir())) == 3


def test_what_can_be_compared_can_be_written_before_all_is_measured(measure, tmp_path):
    """Five measurements are one round of three models, and the turns of teacher and one hybrid in the next."""
    state, out = tmp_path / "state.jsonl", tmp_path / "profile"
    interrupted(measure, state, 5)
    assert command(state, out, SETTINGS, "--as-measured") == 0
    assert len(measure.jobs) == 5
    assert state.is_file()
    found = {path.stem: json.loads(path.read_text(encoding="utf-8"))["rows"] for path in out.iterdir()}
    assert {subject: [row["generated_tokens"] for row in rows] for subject, rows in found.items()} == {
        "teacher": [16, 24],
        "even-25": [16, 24],
        "even-50": [16],
    }


def test_a_round_without_all_of_the_teachers_turns_is_left_out(measure, tmp_path):
    """In protocol paper, which has two of its runtimes and one of a hybrid, and the next round has begun."""
    settings = make_settings(layouts=["even-25"], repeats=1, protocols=["paper"], generated_tokens=[16, 24])
    state, out = tmp_path / "state.jsonl", tmp_path / "profile"
    measure.allowed = 4
    with pytest.raises(KeyboardInterrupt):
        profile(state, settings)
    assert command(state, out, settings, "--as-measured") == 0
    for path in out.iterdir():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        assert {row["generated_tokens"] for row in rows} == {16}


def test_what_is_no_state_of_these_settings_cannot_be_written(measure, tmp_path, capsys):
    state, out = tmp_path / "state.jsonl", tmp_path / "profile"
    for content in (None, "", "{}\n", "no JSON\n"):
        if content is not None:
            state.write_text(content, encoding="utf-8")
        assert command(state, out, SETTINGS, "--as-measured") == 2
        line = f"error: {state}: missing, or not what profiling keeps while it measures\n"
        assert capsys.readouterr().err == line
    state.unlink()
    interrupted(measure, state, 5)
    capsys.readouterr()
    assert command(state, out, SETTINGS.model_copy(update={"decode_steps": 5}), "--as-measured") == 2
    assert capsys.readouterr().err == f"error: {state}: was measured with other settings\n"
    assert not out.exists()


def test_rows_come_back_as_they_were_in_their_order(tmp_path):
    path = tmp_path / "state.jsonl"
    found = Measured(path, OF)
    keys = [KEY, KEY._replace(repeat=1), KEY._replace(subject="0,2"), KEY._replace(runtime="generate-eager")]
    for number, key in enumerate(keys):
        found[key] = {"runtime": "x", "seconds": number / 3, "note": None, "first": True}
    for again in (Measured(path, OF), Measured.load(path)):
        assert list(again.items()) == list(found.items())
        assert again.of == OF
    assert keys[1].first == KEY


def test_without_a_file_nothing_is_kept(tmp_path):
    found = Measured(None, OF)
    found[KEY] = {"runtime": "x"}
    assert found[KEY] == {"runtime": "x"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("field", "kept"), [("torch", 0), ("device", 0), ("commit", 5)])
def test_a_provenance_that_is_another_keeps_rows_apart(measure, tmp_path, field, kept):
    """Other versions and devices give other figures; whether a commit does, the hash in the file's name tells."""
    state = tmp_path / "state.jsonl"
    interrupted(measure, state, 5)
    head, *lines = state.read_text(encoding="utf-8").splitlines()
    state.write_text("\n".join([json.dumps({**json.loads(head), field: "another"}), *lines]), encoding="utf-8")
    documents = profile(state)
    assert len(measure.jobs) == 5 + ALL - kept
    assert documents["teacher"]["provenance"]["commit"] == provenance.git_state()[0]


def test_a_missing_file_holds_nothing(tmp_path):
    with pytest.raises(UserError, match="missing, or not what profiling keeps"):
        Measured.load(tmp_path / "none")
