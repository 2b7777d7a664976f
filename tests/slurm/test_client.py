"""The plugin's Slurm client against a real Slurm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from workflows import settled

from snakemake_executor_plugin_submitit.slurm import Slurm, SlurmAway, available

HUNGRY = "exec python3 -c 'import time; held = b\"x\" * (600 << 20); time.sleep(60)'"


@pytest.fixture(scope="module")
def overlong(running_cluster: Cluster) -> Iterator[str]:
    """A job that will run into its time limit. Slurm looks every 30 s, so it runs beside the other tests."""
    job = running_cluster.submit("sleep 200", "--time=1", "--no-requeue")
    running_cluster.kept.add(job)
    running_cluster.wait_for_state(job, "RUNNING")
    running_cluster.run("scontrol", "update", f"jobid={job}", "endtime=now+2")
    yield job
    running_cluster.kept.clear()


def test_how_jobs_end(cluster: Cluster, overlong: str, calls):
    assert available()
    good = cluster.submit("true", "--job-name=odd | name\nß")
    bad = cluster.submit("exit 3")
    killed = cluster.submit("kill -SEGV $$")
    hungry = cluster.submit(HUNGRY, "--mem=200M")
    endless = cluster.submit("sleep 60")
    array = cluster.submit("exit $SLURM_ARRAY_TASK_ID", "--array=0-2")
    unstartable = cluster.submit("true", "--begin=now+1hour")
    client = Slurm()
    cluster.wait_for_state(endless, "RUNNING")
    before = calls()
    found = client.states([endless, unstartable, "999999"])
    assert found[endless].running
    assert found[endless].node == "node1"
    assert found[unstartable].pending
    assert found[unstartable].words == "waiting (BeginTime)"
    assert "999999" not in found
    client.cancel([endless, unstartable, "999999"])
    ended = settled(client, [good, bad, killed, hungry, endless, unstartable, *(f"{array}_{i}" for i in range(3))])
    words = {job_id: job.words for job_id, job in ended.items()}
    assert ended[good].succeeded
    assert words[bad] == "failed with exit code 3"
    assert words[killed] == "killed by signal 11 (SIGSEGV)"
    assert words[hungry] in {"out of memory", "killed by signal 9 (out of memory?)"}
    assert words[endless] == words[unstartable] == "cancelled"
    assert ended[f"{array}_0"].succeeded
    assert words[f"{array}_2"] == "failed with exit code 2"
    assert [job_id for job_id, job in ended.items() if job.succeeded] == [good, f"{array}_0"]
    made = [name for name in calls()[len(before) :] if name != "scontrol"]
    assert made.count("scancel") == 1
    assert "sacct" not in made
    assert made.count("squeue") == client.status_calls == client.calls["squeue"]


def test_one_call_for_many_jobs(cluster: Cluster, calls):
    array = cluster.submit("sleep 60", "--array=0-99")
    ids = [f"{array}_{index}" for index in range(100)]
    client = Slurm()
    start = len(calls())
    assert set(client.states(ids)) == set(ids)
    assert calls()[start:] == ["squeue"]
    client.cancel(ids[1:])
    assert calls()[start:] == ["squeue", "scancel"]
    ended = settled(client, ids[1:])
    assert {job.state for job in ended.values()} == {"CANCELLED"}
    assert ended[ids[-1]].words == "cancelled (before it started, or ended long ago)"
    assert not client.states(ids[:1])[ids[0]].ended


def test_jobs_are_found_by_their_comment(cluster: Cluster, calls):
    array = cluster.submit("true", "--array=0,3", "--comment=token one")
    single = cluster.submit("sleep 60", "--comment=token two")
    cluster.submit("true", "--comment=token one and more")
    settled(Slurm(), [f"{array}_0", f"{array}_3"])
    client = Slurm()
    start = len(calls())
    found = client.find_by_comment(["token one", "token two", "none"])
    assert {key: sorted(jobs) for key, jobs in found.items()} == {
        "token one": [f"{array}_0", f"{array}_3"],
        "token two": [single],
        "none": [],
    }
    assert calls()[start:].count("squeue") == 1
    assert "sacct" not in calls()[start:]


def test_configuration_is_asked_for_once(cluster: Cluster, calls):
    client = Slurm()
    assert client.max_array_size() == 1001
    assert client.max_array_size() == 1001
    assert not client.accounting()
    assert client.partitions() == ["main", "high"]
    assert calls() == ["scontrol", "sinfo"]


def test_stopped_controller(cluster: Cluster):
    job = cluster.submit("sleep 60")
    cluster.wait_for_state(job, "RUNNING")
    client = Slurm(timeout=3)
    cluster.stop_controller()
    for ask in (
        lambda: client.states([job]),
        lambda: client.cancel([job]),
        lambda: client.find_by_comment(["one"]),
    ):
        start = time.monotonic()
        with pytest.raises(SlurmAway) as away:
            ask()
        assert time.monotonic() - start < 5
        assert "\n" not in str(away.value)
    cluster.start_controller()
    assert client.states([job])[job].running


def test_frozen_controller(cluster: Cluster):
    job = cluster.submit("sleep 60")
    client = Slurm(timeout=2)
    cluster.freeze_controller()
    with pytest.raises(SlurmAway, match="squeue"):
        client.states([job])
    cluster.thaw_controller()
    wait_until(lambda: job in client.states([job]), "slurmctld to answer")


def test_time_limit(cluster: Cluster, overlong: str):
    assert settled(Slurm(), [overlong])[overlong].words == "time limit reached"


def test_requeued_job_waits_again(cluster: Cluster):
    job = cluster.submit("sleep 60", "--requeue")
    cluster.wait_for_state(job, "RUNNING")
    cluster.node_down()
    client = Slurm()
    wait_until(lambda: client.states([job])[job].pending, "the job to be requeued")
    cluster.node_up()
    wait_until(lambda: client.states([job])[job].running, "the job to run again")


def test_gpus_are_handed_out(cluster: Cluster, tmp_path: Path):
    job = cluster.submit(f"echo $CUDA_VISIBLE_DEVICES >{tmp_path}/gpus", "--gpus-per-node=3")
    settled(Slurm(), [job])
    assert len((tmp_path / "gpus").read_text().strip().split(",")) == 3
