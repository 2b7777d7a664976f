"""The ledger of submitted jobs, and which of them a later run takes over."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import stat
from types import SimpleNamespace

import pytest

from snakemake_executor_plugin_submitit.executor import Executor
from snakemake_executor_plugin_submitit.ledger import Ledger, LedgerError, Mark, tidy
from snakemake_executor_plugin_submitit.result import Output, Result, write
from snakemake_executor_plugin_submitit.states import JobState
from snakemake_executor_plugin_submitit.takeover import Takeover
from snakemake_executor_plugin_submitit.watch import Watched

MARKS = [Mark("k0", "f0", "make"), Mark("k1", "f1", "make")]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "jobs"


def reopened(ledger: Ledger, folder) -> Ledger:
    ledger.close()
    return Ledger(folder)


def test_jobs_survive_a_restart(folder):
    ledger = Ledger(folder)
    token = ledger.intend(MARKS)
    ledger.submitted(token, ["7_0", "7_1"])
    ledger = reopened(ledger, folder)
    ((batch, index),) = ledger.find("k1")
    assert (batch.token, batch.id(index), batch.marks[index]) == (token, "7_1", MARKS[1])
    assert ledger.find("k2") == []


def test_an_intent_without_confirmation_has_no_ids(folder):
    ledger = Ledger(folder)
    token = ledger.intend(MARKS)
    ledger = reopened(ledger, folder)
    assert ledger.batches[token].ids is None
    assert ledger.batches[token].id(0) is None


def test_what_is_over_is_forgotten(folder):
    ledger = Ledger(folder)
    token = ledger.intend(MARKS)
    assert not ledger.over(token, [0])
    ledger = reopened(ledger, folder)
    assert ledger.find("k0") == []
    assert ledger.find("k1")
    assert ledger.over(token, [1])
    ledger = reopened(ledger, folder)
    assert ledger.batches == {}
    assert (folder / "ledger.jsonl").read_text() == ""


def test_cancelled_jobs_are_remembered_as_such(folder):
    ledger = Ledger(folder)
    token = ledger.intend(MARKS)
    ledger.submitted(token, ["1_0", None])
    ledger.cancelled([token])
    batch = reopened(ledger, folder).batches[token]
    assert batch.cancelled
    assert batch.ids == ["1_0", None]


def test_the_newest_comes_first(folder):
    ledger = Ledger(folder)
    old, new = ledger.intend(MARKS[:1]), ledger.intend(MARKS[:1])
    assert [batch.token for batch, _ in ledger.find("k0")] == [new, old]


@pytest.mark.parametrize("tail", ['{"event": "over", "tok', "null\n", '{"event": "over"}\n', "\x00\xff\n", "[]\n"])
def test_a_damaged_line_is_skipped(folder, tail):
    ledger = Ledger(folder)
    token = ledger.intend(MARKS)
    ledger.close()
    with open(folder / "ledger.jsonl", "a", encoding="latin-1") as file:
        file.write(tail)
    ledger = Ledger(folder)
    assert ledger.batches[token].open == [0, 1]
    ledger.submitted(token, ["1_0", "1_1"])
    assert reopened(ledger, folder).batches[token].ids == ["1_0", "1_1"]


def test_a_token_that_is_a_path_is_not_believed(folder):
    folder.mkdir()
    record = {"event": "intent", "token": "../../home", "jobs": []}
    (folder / "ledger.jsonl").write_text(json.dumps(record) + "\n")
    assert Ledger(folder).batches == {}


def test_the_folder_is_made_private(folder):
    folder.mkdir(mode=0o755)
    Ledger(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used(folder):
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(LedgerError, match="belongs to another user"):
        Ledger(folder)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot be used: Not a directory"):
        Ledger(tmp_path / "file" / "jobs")


def test_a_lock_that_cannot_be_opened_is_one_line(folder):
    (folder / "controller.lock").mkdir(parents=True)
    with pytest.raises(LedgerError, match="cannot be used: Is a directory"):
        Ledger(folder)


def test_two_at_a_time_are_refused_and_a_dead_one_leaves_no_lock(folder):
    ledger = Ledger(folder)
    with pytest.raises(LedgerError, match=f"is in use by process {os.getpid()} on "):
        Ledger(folder)
    ledger.close()
    process = multiprocessing.get_context("fork").Process(target=_open_and_die, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert next(iter(Ledger(folder).batches.values())).marks == tuple(MARKS)


class FakeCluster:
    """Jobs as somebody says they are."""

    noun = "job"

    def __init__(self, **states: str) -> None:
        self.jobs = {job_id.replace("j", ""): JobState(job_id, state) for job_id, state in states.items()}
        self.cancelled: list[str] = []
        self.found: list[tuple[int, str]] = []

    def states(self, job_ids):
        return {one: self.jobs[one] for one in job_ids if one in self.jobs}

    def cancel(self, job_ids):
        self.cancelled += job_ids
        for one in job_ids:
            self.jobs.pop(one, None)

    def find(self, tokens):
        return dict.fromkeys(tokens, self.found)

    def settle(self, token, index, job_id, state):
        return index == 0

    def know(self, token, index, job_id):
        pass


def left_behind(folder, cluster, result: Result | None = None, cancelled: bool = False) -> tuple[Ledger, Takeover]:
    """A job of an earlier run with the id 1, and what decides about it."""
    ledger = Ledger(folder)
    token = ledger.intend(MARKS[:1])
    ledger.submitted(token, ["1"])
    if cancelled:
        ledger.cancelled([token])
    (folder / token / "0").mkdir(parents=True)
    if result is not None:
        write(folder / token / "0", result)
    takeover = Takeover(cluster, ledger, folder)
    takeover.reconcile()
    return ledger, takeover


@pytest.mark.parametrize(
    ("state", "result", "cancelled", "wanted"),
    [
        ("RUNNING", None, False, True),
        ("PENDING", None, False, True),
        ("COMPLETED", None, False, True),
        ("UNKNOWN", None, False, True),
        ("FAILED", None, False, False),
        ("NODE_FAIL", None, False, False),
        (None, None, False, False),
        (None, Result(0), False, True),
        ("COMPLETED", Result(0), True, True),
        ("RUNNING", Result(1), False, False),
        ("RUNNING", None, True, False),
        (None, Result(0, outputs=(Output("gone", "file", 1),)), False, False),
        (None, Result(0, outputs=(Output("never", "missing"),)), False, True),
    ],
)
def test_which_jobs_are_taken_over(folder, state, result, cancelled, wanted):
    cluster = FakeCluster(**({"j1": state} if state else {}))
    ledger, takeover = left_behind(folder, cluster, result, cancelled)
    assert set(takeover.claims(MARKS)) == ({"k0"} if wanted else set())
    assert bool(ledger.batches) == wanted
    assert cluster.cancelled == (["1"] if state == "RUNNING" and not wanted else [])


def test_a_job_that_does_other_work_is_stopped(folder):
    cluster = FakeCluster(j1="RUNNING")
    ledger, takeover = left_behind(folder, cluster)
    assert takeover.claims([Mark("k0", "other", "make")]) == {}
    assert cluster.cancelled == ["1"]
    assert ledger.batches == {}


@pytest.mark.parametrize("wanted", [[("b",)], [("a", "b", "c")], [("a",), ("b",)]])
def test_a_job_with_some_of_the_outputs_is_stopped(folder, wanted):
    """A group that was half done is smaller after a restart, and a rule may have gained or lost an output."""
    cluster = FakeCluster(j1="RUNNING", j2="RUNNING")
    ledger = Ledger(folder)
    token = ledger.intend([Mark("ab", "f", "group", ("a", "b")), Mark("d", "f", "other", ("d",))])
    ledger.submitted(token, ["1", "2"])
    ledger = reopened(ledger, folder)
    takeover = Takeover(cluster, ledger, folder)
    assert takeover.claims([Mark("".join(files), "f", "make", files) for files in wanted] + MARKS) == {}
    assert cluster.cancelled == ["1"]
    assert ledger.batches[token].open == [1]


def test_a_job_with_all_of_the_outputs_is_not_stopped(folder):
    cluster = FakeCluster(j1="RUNNING")
    ledger = Ledger(folder)
    mark = Mark("ab", "f", "group", ("a", "b"))
    ledger.submitted(ledger.intend([mark]), ["1"])
    assert set(Takeover(cluster, reopened(ledger, folder), folder).claims([mark])) == {"ab"}
    assert cluster.cancelled == []


def test_a_failed_job_that_does_not_stop_stays_in_the_ledger(folder):
    """Its second attempt must not start beside it."""
    cluster = FakeCluster(j1="RUNNING")
    ledger, takeover = left_behind(folder, cluster, Result(1))
    (token,) = ledger.batches
    entry = Watched("job", None, "make", token, 0, folder / token / "0", [], "1", Result(1), loose=True)
    executor = SimpleNamespace(
        _mutex=contextlib.nullcontext(),
        _watched={"job": entry},
        _failed_batches=set(),
        ledger=ledger,
        settings=SimpleNamespace(keep_logs=False),
    )
    Executor._close(executor, "job", succeeded=False)
    assert takeover.claims(MARKS) == {}
    assert cluster.cancelled == ["1"]
    assert ledger.batches == {}


def test_a_record_without_outputs_is_read(folder):
    folder.mkdir()
    token = f"snakemake-{'a' * 32}"
    record = {"event": "intent", "token": token, "jobs": [{"key": "k0", "fingerprint": "f0", "name": "make"}]}
    (folder / "ledger.jsonl").write_text(json.dumps(record) + "\n")
    assert Ledger(folder).batches[token].marks == tuple(MARKS[:1])


def test_what_was_submitted_in_the_last_moment_is_found(folder):
    cluster = FakeCluster(j1="RUNNING", j2="RUNNING")
    cluster.found = [(0, "1"), (1, "2")]
    ledger = Ledger(folder)
    token = ledger.intend(MARKS)
    Takeover(cluster, ledger, folder).reconcile()
    assert ledger.batches[token].ids == ["1", None]
    assert cluster.cancelled == ["2"], "it has no pickle and would wait for it in vain"


def test_what_old_runs_left_is_removed(folder):
    ledger = Ledger(folder)
    token = ledger.intend(MARKS)
    old, new = (folder / f"snakemake-{digit * 32}" for digit in "ab")
    for path in (folder / token, old, new, folder / "mine"):
        path.mkdir()
        if path != new:
            os.utime(path, (0, 0))
    tidy(ledger)
    left = {path.name for path in folder.iterdir() if path.is_dir()}
    assert left == {token, new.name, "mine"}


def _open_and_die(folder):
    Ledger(folder).intend(MARKS)
    os.kill(os.getpid(), 9)
