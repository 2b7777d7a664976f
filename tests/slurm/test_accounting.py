"""Where slurmdbd remembers what slurmctld has forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from workflows import Workflow, kill, settled, traced

from snakemake_executor_plugin_submitit.slurm import Slurm

ID = "echo ${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}} >id"


@pytest.fixture(autouse=True)
def environment(accounting_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process's environment points at the cluster, which has no jobs after the test."""
    for key, value in accounting_cluster.environment().items():
        monkeypatch.setenv(key, value)
    yield
    accounting_cluster.reset()


def wait_until_forgotten(cluster: Cluster) -> None:
    """Wait until slurmctld knows no jobs at all."""
    wait_until(lambda: not cluster.run("squeue", "-h", "-t", "all"), "slurmctld to forget", 120)


def test_client(accounting_cluster: Cluster, calls):
    array = accounting_cluster.submit("exit $SLURM_ARRAY_TASK_ID", "--array=0-1", "--comment=token")
    endless = accounting_cluster.submit("sleep 60")
    accounting_cluster.wait_for_state(endless, "RUNNING")
    client = Slurm()
    client.cancel([endless])
    ids = [f"{array}_0", f"{array}_1", endless]
    settled(client, ids)
    wait_until_forgotten(accounting_cluster)
    start = len(calls())
    found = client.states([*ids, "999999"])
    assert calls()[start:] == ["squeue", "sacct"]
    assert found[ids[0]].succeeded
    assert found[ids[1]].words == "failed with exit code 1"
    assert found[endless].words == "cancelled by uid 0 (root)"
    assert "999999" not in found
    assert {key: sorted(jobs) for key, jobs in client.find_by_comment(["token", "none"]).items()} == {
        "token": ids[:2],
        "none": [],
    }


def test_elements_that_were_cancelled_while_they_waited(accounting_cluster: Cluster):
    array = accounting_cluster.submit("sleep 60", "--array=0-29")
    ids = [f"{array}_{index}" for index in range(30)]
    client = Slurm()
    wait_until(lambda: client.states(ids[:1])[ids[0]].running, "the first to run")
    client.cancel(ids[25:])
    found = settled(client, ids[25:])
    assert all(job.words.startswith("cancelled (before it started") for job in found.values()), found
    client.cancel(ids)
    assert {job.state for job in settled(client, ids).values()} == {"CANCELLED"}


def test_the_user_is_told_who_cancelled(accounting_cluster: Cluster, tmp_path: Path):
    workflow = Workflow(tmp_path, accounting_cluster, traced("stopped", f"{ID}; sleep 60"), ["stopped.out"])
    process = workflow.start()
    wait_until((tmp_path / "id").exists, "the job's id", 40, workflow.output)
    accounting_cluster.run("scancel", (tmp_path / "id").read_text().strip())
    assert workflow.finish(process) == 1
    assert "cancelled by uid 0 (root)" in workflow.told("stopped")
    workflow.check_nothing_left()


def test_jobs_that_slurmctld_has_forgotten_are_taken_over(accounting_cluster: Cluster, tmp_path: Path):
    names = ["job-0", "job-1"]
    rules = traced("job", "sleep 2; test {wildcards.n} = 0 || test -e again || exit 5", "n")
    workflow = Workflow(tmp_path, accounting_cluster, rules, [f"{name}.out" for name in names])
    process = workflow.start()
    workflow.wait_for("begin-job-0", "begin-job-1")
    kill(process)
    wait_until_forgotten(accounting_cluster)
    (tmp_path / "again").touch()
    assert workflow.run() == 0, workflow.output()
    assert workflow.ran() == {"begin-job-0": 1, "end-job-0": 1, "begin-job-1": 2, "end-job-1": 1}
    workflow.check_nothing_left()
