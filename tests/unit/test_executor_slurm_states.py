"""What Slurm prints about jobs: read, put into words, and kept apart from success."""

from __future__ import annotations

import os
import stat

import pytest

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.slurm import JobState, Slurm, SlurmAway, SlurmError
from snakemake_executor_plugin_submitit.states import (
    ENDED,
    PENDING,
    RUNNING,
    from_sacct,
    from_squeue,
    indices,
    wait_status,
)


def squeue(base="7", task="N/A", state="RUNNING", status="0", node="node1", reason="None") -> str:
    fields = [base, task, state, status, node, reason]
    return "".join(f"{field:<24}|" for field in fields)


def test_squeue_line_of_a_plain_job():
    assert from_squeue(squeue()) == JobState("7", "RUNNING", node="node1")


def test_squeue_line_of_an_array_element():
    assert from_squeue(squeue(task="12")).id == "7_12"


@pytest.mark.parametrize("line", ["", "CLUSTER: far", "slurm_load_jobs error", "|||||", "7|8"])
def test_other_lines_are_no_jobs(line):
    assert from_squeue(line) is None
    assert from_sacct(line) == []


def test_separators_in_a_reason_do_not_shift_fields():
    job = from_squeue(squeue(state="PENDING", node="", reason="(odd | reason)"))
    assert (job.state, job.node) == ("PENDING", "")
    assert job.reason.startswith("(odd | reason")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", (0, None)),
        ("256", (1, None)),
        ("9", (None, 9)),
        ("35072", (137, None)),
        ("3:0", (3, None)),
        ("0:15", (None, 15)),
        ("4294967294", (None, None)),
        ("", (None, None)),
        ("odd", (None, None)),
    ],
)
def test_wait_status(text, expected):
    assert wait_status(text) == expected


def test_running_jobs_have_no_exit_code():
    assert from_squeue(squeue(state="RUNNING", status="0")).exit_code is None


def test_sacct_names_who_cancelled():
    (job,) = from_sacct("7_1|CANCELLED by 4294967|0:15|node1|None")
    assert (job.id, job.state, job.by, job.signal) == ("7_1", "CANCELLED", 4294967, 15)
    assert job.words == "cancelled by uid 4294967"


def test_sacct_has_one_line_for_elements_that_wait():
    jobs = from_sacct("7_[3-4,8]|PENDING|0:0|None assigned|None")
    assert jobs == [JobState(f"7_{index}", "PENDING") for index in (3, 4, 8)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", [5]), ("[5]", [5]), ("[1,4-8:2%10]", [1, 4, 6, 8]), ("[0-2%1]", [0, 1, 2]), ("[odd]", []), ("[]", [])],
)
def test_indices(text, expected):
    assert indices(text) == expected


def test_a_known_user_is_named():
    assert JobState("7", "CANCELLED", by=0).words == "cancelled by uid 0 (root)"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (JobState("7", "COMPLETED", exit_code=0), "completed"),
        (JobState("7", "FAILED", exit_code=1), "failed with exit code 1"),
        (JobState("7", "FAILED", "NonZeroExitCode", exit_code=1), "failed with exit code 1"),
        (
            JobState("7", "FAILED", exit_code=137),
            "failed with exit code 137, killed by signal 9 (out of memory?)",
        ),
        (JobState("7", "FAILED", signal=9), "killed by signal 9 (out of memory?)"),
        (JobState("7", "FAILED", signal=11), "killed by signal 11 (SIGSEGV)"),
        (JobState("7", "FAILED", signal=200), "killed by signal 200"),
        (JobState("7", "FAILED", "OutOfMemory", signal=9), "out of memory"),
        (JobState("7", "FAILED", "Prolog"), "failed (Prolog)"),
        (JobState("7", "FAILED"), "failed"),
        (JobState("7", "COMPLETED", exit_code=2), "failed with exit code 2"),
        (JobState("7", "OUT_OF_MEMORY", signal=9), "out of memory"),
        (JobState("7", "TIMEOUT", "TimeLimit"), "time limit reached"),
        (JobState("7", "NODE_FAIL", node="node1"), "node failure (node1)"),
        (JobState("7", "PREEMPTED"), "preempted"),
        (JobState("7", "CANCELLED"), "cancelled"),
        (JobState("7", "CANCELLED", "Resources"), "cancelled"),
        (JobState("7", "CANCELLED", "DependencyNeverSatisfied"), "cancelled (DependencyNeverSatisfied)"),
        (JobState("7", "PENDING", "Resources"), "waiting (Resources)"),
        (JobState("7", "PENDING", "(Priority)"), "waiting (Priority)"),
        (JobState("7", "REQUEUED"), "waiting"),
        (JobState("7", "RUNNING", node="node1"), "running on node1"),
        (JobState("7", "COMPLETING"), "completing"),
        (JobState("7", "ODD", "slurmdbd is away"), "in a state that is not known, ODD (slurmdbd is away)"),
    ],
)
def test_words(job, words):
    assert job.words == words


@pytest.mark.parametrize("state", sorted([*PENDING, *RUNNING, *ENDED, "UNKNOWN", "", "completed", "COMPLETED+"]))
def test_each_state_is_one_of_four_kinds_and_has_words(state):
    job = JobState("7", state)
    assert [job.pending, job.running, job.ended, job.unknown].count(True) == 1
    assert job.words


def test_success_is_completed_and_nothing_else():
    good = {state for state in [*PENDING, *RUNNING, *ENDED, "UNKNOWN", ""] if JobState("7", state).succeeded}
    assert good == {"COMPLETED"}
    assert not JobState("7", "COMPLETED", exit_code=1).succeeded
    assert not JobState("7", "COMPLETED", signal=9).succeeded


def test_held_jobs_wait_for_a_person():
    assert JobState("7", "PENDING", "launch failed requeued held").held
    assert JobState("7", "PENDING", "JobHeldUser").held
    assert not JobState("7", "PENDING", "Priority").held


def test_ids_of_one_array_are_cancelled_together():
    assert slurm.compressed(["3_10", "5", "3_2", "3_2", "8_0", "8"]) == ["3_[2,10]", "5", "8"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", SlurmAway),
        ("scancel: error: Kill job error on job id 3: Socket timed out on send/recv operation", SlurmAway),
        ("sacct: error: Problem talking to the database: Connection refused", SlurmAway),
        ("squeue: error: If munged is up, restart with --num-threads=10", SlurmAway),
        ("squeue: error: Invalid user: nobody", SlurmError),
        ("", SlurmError),
    ],
)
def test_failures_are_one_line_and_tell_away_from_wrong(text, kind):
    error = slurm.failure("squeue", 1, f"\n{text}\n")
    assert type(error) is kind
    assert "\n" not in str(error)
    assert str(error).startswith("squeue: ")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder as the only one on PATH, and a maker of programs in it that log their arguments."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/calls\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    make.calls = lambda: (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return make


def test_no_slurm_here(fake):
    assert not slurm.available()
    with pytest.raises(SlurmError, match="squeue is not on PATH"):
        Slurm().states(["1"])


def test_nothing_is_asked_about_no_jobs(fake):
    client = Slurm()
    assert client.states([]) == {}
    assert client.find_by_comment([]) == {}
    client.cancel([])
    assert fake.calls() == []


def test_a_hanging_command_is_cut_off(fake):
    fake("squeue", "exec /bin/sleep 20")
    with pytest.raises(SlurmAway, match=r"did not answer within 0\.2 s"):
        Slurm(timeout=0.2).states(["1"])


def test_one_squeue_whatever_the_number_of_jobs(fake):
    lines = "\n".join(squeue(task=str(index)) for index in range(50))
    fake("squeue", f"/bin/cat <<END\n{lines}\nEND")
    client = Slurm()
    assert len(client.states(f"7_{index}" for index in range(50))) == 50
    assert len(fake.calls()) == client.status_calls == 1


def test_settings_for_people_do_not_reach_the_commands(fake, monkeypatch):
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SACCT_FORMAT", "SCANCEL_INTERACTIVE"):
        monkeypatch.setenv(name, "odd")
    fake(
        "squeue",
        f"echo '{squeue()}'; exit $(test -z \"$SQUEUE_FORMAT$SQUEUE_STATES$SACCT_FORMAT$SCANCEL_INTERACTIVE\")",
    )
    assert Slurm().states(["7"])["7"].running


def test_slurmdbd_away_leaves_jobs_unknown(fake):
    fake("squeue", f"echo '{squeue(state='COMPLETED')}'")
    fake("scontrol", "echo 'AccountingStorageType   = accounting_storage/slurmdbd'")
    fake("sacct", "echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1")
    found = Slurm().states(["7", "8"])
    assert found["7"].succeeded
    assert found["8"].unknown
    assert not found["8"].succeeded


def test_accounting_does_not_turn_an_ended_job_into_a_running_one(fake):
    fake("squeue", f"echo '{squeue(state='CANCELLED')}'")
    fake("scontrol", "echo 'AccountingStorageType = accounting_storage/slurmdbd'")
    fake("sacct", "echo '7|RUNNING|0:0|node1|None'")
    assert Slurm().states(["7"])["7"].state == "CANCELLED"


def test_elements_cancelled_while_they_waited(fake):
    fake("squeue", f"echo '{squeue(task='0')}'; echo '{squeue(base='8')}'")
    fake("scontrol", "true")
    found = Slurm().states(["7_0", "7_1", "8", "9_0", "10"])
    assert {job_id: job.words for job_id, job in found.items()} == {
        "7_0": "running on node1",
        "7_1": "cancelled (before it started, or ended long ago)",
        "8": "running on node1",
    }


def test_sacct_is_asked_once_for_all_elements(fake):
    fake("squeue", "true")
    fake("scontrol", "echo 'AccountingStorageType = accounting_storage/slurmdbd'")
    fake("sacct", "echo '7_0|COMPLETED|0:0|node1|'; echo '7_1|FAILED|2:0|node1|'")
    client = Slurm()
    found = client.states(["7_0", "7_1", "7_2", "8"])
    states = {job_id: job.state for job_id, job in found.items()}
    assert states == {"7_0": "COMPLETED", "7_1": "FAILED", "7_2": "CANCELLED"}
    assert client.calls == {"squeue": 1, "scontrol": 1, "sacct": 1}
    assert [call for call in fake.calls() if call.startswith("sacct") and "-j 7,8 " in call]


def test_without_accounting_sacct_is_not_asked(fake):
    fake("squeue", "true")
    fake("scontrol", "echo 'AccountingStorageType = (null)'; echo 'MaxArraySize = 201'")
    client = Slurm()
    assert client.states(["7"]) == {}
    assert client.max_array_size() == 201
    assert client.calls == {"squeue": 1, "scontrol": 1}


def test_the_client_asks_for_its_own_user_only(fake):
    fake("squeue", "true")
    fake("scontrol", "true")
    Slurm().states(["7"])
    assert f"-u {os.getuid()} " in fake.calls()[0]


def test_comments_are_matched_whole(fake):
    fake("squeue", "printf '%s\\n' '7_0|one' '7_1|one' '8|one and more' '9|' '10|a|b'")
    fake("scontrol", "true")
    found = Slurm().find_by_comment(["one", "a|b", "none"])
    assert found == {"one": ["7_0", "7_1"], "a|b": ["10"], "none": []}


def test_cancelling_what_is_gone_is_no_error(fake):
    fake("scancel", "echo 'scancel: error: Kill job error on job id 7: Invalid job id specified' >&2; exit 1")
    Slurm().cancel(["7"])
    fake("scancel", "echo 'scancel: error: Kill job error on job id 7: Access/permission denied' >&2; exit 1")
    with pytest.raises(SlurmError, match="permission denied"):
        Slurm().cancel(["7"])
