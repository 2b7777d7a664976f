"""What is said of a job that failed, and when a job counts as failed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_submitit import failure, watch
from snakemake_executor_plugin_submitit.result import Result
from snakemake_executor_plugin_submitit.states import JobState
from snakemake_executor_plugin_submitit.watch import Absence, Watched, failed, may_report

RUNNING, PENDING = JobState("1", "RUNNING"), JobState("1", "PENDING")
COMPLETED, FAILED = JobState("1", "COMPLETED", exit_code=0), JobState("1", "FAILED", exit_code=1)
MEMORY, STRANGE = JobState("1", "OUT_OF_MEMORY"), JobState("1", "UNKNOWN")


def entry(result: Result | None = None) -> Watched:
    return Watched(None, None, "make", "t", 0, Path("f"), [], "1", result)


@pytest.mark.parametrize("state", [RUNNING, PENDING])
def test_a_job_that_runs_or_waits_has_not_failed(state):
    assert not failed(entry(), state, grace=0, away=0, now=1)


@pytest.mark.parametrize("state", [COMPLETED, None])
def test_without_a_result_it_fails_after_a_grace_period(state):
    job = entry()
    assert not failed(job, state, grace=30, away=600, now=100)
    assert not failed(job, state, grace=30, away=600, now=129)
    assert failed(job, state, grace=30, away=600, now=130)


def test_a_state_that_is_not_known_is_waited_out():
    job = entry()
    assert not failed(job, STRANGE, grace=30, away=600, now=100)
    assert not failed(job, STRANGE, grace=30, away=600, now=699)
    assert failed(job, STRANGE, grace=30, away=600, now=700)


def test_a_failure_that_flickers_is_none():
    job = entry()
    assert not failed(job, FAILED, grace=30, away=600, now=100)
    assert not failed(job, PENDING, grace=30, away=600, now=105)
    assert not failed(job, FAILED, grace=30, away=600, now=111)
    assert failed(job, FAILED, grace=30, away=600, now=121)


def test_its_own_word_and_slurms_together_are_enough():
    assert failed(entry(Result(1)), FAILED, grace=30, away=600, now=1)
    assert failed(entry(Result(1)), None, grace=30, away=600, now=1)


def test_a_failed_job_has_time_to_end():
    job = entry(Result(1))
    assert not failed(job, RUNNING, grace=30, away=600, now=1)
    assert failed(job, RUNNING, grace=30, away=600, now=31)


class Cluster:
    def __init__(self):
        self.cancelled = []

    def cancel(self, job_ids):
        self.cancelled += job_ids


@pytest.mark.parametrize("state", [COMPLETED, FAILED, MEMORY, None])
def test_a_failed_job_that_has_ended_is_reported(state):
    cluster, job = Cluster(), entry(Result(1))
    assert may_report(job, state, cluster, now=1)
    assert cluster.cancelled == []
    assert not job.loose


@pytest.mark.parametrize("state", [RUNNING, PENDING, STRANGE, JobState("1", "COMPLETING")])
def test_a_failed_job_that_may_run_is_stopped_before_it_is_reported(state):
    cluster, job = Cluster(), entry(Result(1))
    assert not may_report(job, state, cluster, now=1)
    assert not may_report(job, RUNNING, cluster, now=60)
    assert may_report(job, JobState("1", "CANCELLED"), cluster, now=61)
    assert cluster.cancelled == ["1"]
    assert job.blamed is state
    assert not job.loose


def test_a_failed_job_that_does_not_stop_is_reported_as_loose():
    cluster, job = Cluster(), entry(Result(1))
    assert not may_report(job, RUNNING, cluster, now=1)
    assert may_report(job, RUNNING, cluster, now=1 + watch.STOPPING)
    assert job.loose


@pytest.mark.parametrize(
    ("result", "state", "words"),
    [
        (Result(3, node="n1"), FAILED, "failed with exit code 3 on n1"),
        (Result(None, 9), None, "failed with signal 9 (SIGKILL)"),
        (Result(None, 9), MEMORY, "out of memory (failed with signal 9 (SIGKILL))"),
        (
            Result(None, reason="time limit reached, and the command wrote no checkpoint"),
            FAILED,
            "time limit reached",
        ),
        (None, None, "it is gone, and has left no result"),
        (None, COMPLETED, "it ended without an error, but has left no result"),
        (None, MEMORY, "out of memory"),
        (None, JobState("1", "TIMEOUT"), "time limit reached"),
    ],
)
def test_how_it_failed(result, state, words):
    assert words in failure.how(result, state)


def test_the_text_names_all_that_one_looks_for(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("".join(f"line {i}\n" for i in range(100)))
    text = failure.explain("make", "Slurm job", "12_3", Result(1), FAILED, log)
    assert text.startswith("Slurm job 12_3 of rule make: failed with exit code 1.")
    assert str(log) in text
    assert text.endswith("line 99")
    assert "line 85" in text
    assert "line 84" not in text


def test_no_log_is_said_so():
    text = failure.explain("make", "Slurm job", "12_3", None, FAILED, None)
    assert "It wrote no log: can the node see this folder" in text


def test_the_first_log_with_something_in_it(tmp_path):
    empty, full, missing = tmp_path / "empty", tmp_path / "full", tmp_path / "missing"
    empty.touch()
    full.write_text("x")
    assert failure.choose_log([missing, empty, full]) == full
    assert failure.choose_log([missing, empty]) == empty
    assert failure.choose_log([missing]) is None


def test_a_log_cannot_upset_a_terminal(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\x1b[2Jgone\n 10%\r100%\n\xff\xfe\n")
    assert failure.last_lines(log) == ["?[2Jgone", "100%", "��"]


def test_a_large_log_is_not_read_whole(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 10_000_000 + b"\nend\n")
    assert failure.last_lines(log, 1) == ["end"]


class Logger:
    def __init__(self):
        self.lines = []

    def warning(self, text):
        self.lines.append(text)

    info = warning


def test_an_absence_is_borne_asked_about_less_often_and_given_up(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    absence, logger = Absence(600), Logger()
    asked = []

    def ask_every_second():
        while True:
            if absence.may_try():
                asked.append(clock[0])
                absence.begins("squeue did not answer", logger)
            clock[0] += 1

    with pytest.raises(WorkflowError, match="start the same command again"):
        ask_every_second()
    pauses = [late - early for early, late in itertools.pairwise(asked)]
    assert pauses == sorted(pauses)
    assert max(pauses) == watch.LONGEST
    assert 600 < clock[0] - 1000 < 670
    assert len(logger.lines) == 1
    assert absence.too_long


def test_an_absence_that_ends():
    absence, logger = Absence(600), Logger()
    absence.begins("x", logger)
    assert not absence.may_try()
    absence.ends(logger)
    assert absence.may_try()
    assert logger.lines[1:] == ["Slurm is back."]
