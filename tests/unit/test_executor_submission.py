"""sbatch and its answers, and what becomes of jobs whose answer was lost; `sbatch` is a script here."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from snakemake_executor_plugin_submitit.clusters import SlurmCluster
from snakemake_executor_plugin_submitit.dispatch import Batch, Dispatcher
from snakemake_executor_plugin_submitit.resources import slurm_parameters
from snakemake_executor_plugin_submitit.slurm import SlurmAway, SlurmError
from snakemake_executor_plugin_submitit.states import JobState
from snakemake_executor_plugin_submitit.submission import sbatch_environment
from snakemake_executor_plugin_submitit.watch import Absence

TOKEN = "snakemake-token"


class Logger:
    def info(self, text: str) -> None:
        pass

    warning = info


class Records:
    """What a dispatcher needs of the ledger."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def submitted(self, token, ids):
        self.ids = list(ids)


class Patient(Absence):
    """One that may always try again."""

    def may_try(self) -> bool:
        return True


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A maker of Slurm's commands, as shell scripts that come first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    for name in ("sbatch", "srun", "squeue", "scancel"):
        make(name, "true")
    make("scontrol", "echo 'MaxArraySize = 1001'")
    return make


@pytest.fixture
def cluster(programs, tmp_path):
    (tmp_path / "jobs" / TOKEN).mkdir(parents=True)
    return SlurmCluster(tmp_path / "jobs", 0)


def submit(cluster: SlurmCluster, count: int = 1) -> list[str]:
    calls = [SimpleNamespace(name="rule")] * count
    return cluster.submit(TOKEN, calls, slurm_parameters({}, 1))


def test_the_users_defaults_for_sbatch_do_not_come_before_resources(cluster, programs, tmp_path, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "mine")
    monkeypatch.setenv("SBATCH_ARRAY_INX", "5-9")
    programs("sbatch", f"env >{tmp_path}/env; echo Submitted batch job 7")
    assert submit(cluster, 2) == ["7_0", "7_1"]
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert "PATH" in names
    assert not [name for name in names if name.startswith("SBATCH_")]


def test_the_marks_of_a_job_around_snakemake_are_dropped():
    around = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "3", "SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin"}
    assert sbatch_environment(around) == {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin"}
    outside = {"SLURM_CLUSTERS": "far", "SBATCH_QOS": "long"}
    assert sbatch_environment(outside) == {"SLURM_CLUSTERS": "far"}


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("kill -9 $$", "did not end by itself"),
        ("exit 143", "did not end by itself"),
        ("echo 'welcome to the cluster'", "answered 'welcome to the cluster'"),
        ("echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1", "timed out"),
    ],
)
def test_whether_jobs_were_accepted_is_not_known(cluster, programs, script, says):
    programs("sbatch", script)
    with pytest.raises(SlurmAway, match=says) as error:
        submit(cluster)
    assert "\n" not in str(error.value)


def test_refused(cluster, programs):
    programs("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    with pytest.raises(SlurmError, match="invalid partition") as error:
        submit(cluster)
    assert not isinstance(error.value, SlurmAway)


def test_a_slurm_without_arrays(cluster, programs):
    programs("scontrol", "echo 'MaxArraySize = 0'")
    with pytest.raises(SlurmError, match="takes no job arrays"):
        cluster.largest_batch()


def dispatcher(cluster: SlurmCluster) -> tuple[Dispatcher, Records, Batch]:
    records = Records()
    entries = [SimpleNamespace(name="rule", info=SimpleNamespace(), job_id=None, refused="") for _ in range(2)]
    batch = Batch([SimpleNamespace(name="rule")] * 2, slurm_parameters({}, 1), entries)
    return Dispatcher(cluster, records, Patient(600), Logger()), records, batch


def pickles(cluster: SlurmCluster) -> set[str]:
    return {path.name for path in Path(cluster.folder / TOKEN).glob("*.pkl")}


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_of_two_jobs_with_one_pickle_one_has_what_it_needs(cluster, state):
    """As a Snakemake that was killed may leave them."""
    (cluster.folder / TOKEN / "0.pkl").touch()
    cluster.place(TOKEN, 0, "7_0")
    assert cluster.settle(TOKEN, 0, "7_0", JobState("7_0", state))
    assert not cluster.settle(TOKEN, 0, "8_0", JobState("8_0", state))


def test_a_running_job_of_a_killed_snakemake_may_have_waited_for_too_long(cluster):
    (cluster.folder / TOKEN / "0.pkl").touch()
    assert not cluster.settle(TOKEN, 0, "7_0", JobState("7_0", "RUNNING"))
    assert cluster.settle(TOKEN, 0, "7_0", JobState("7_0", "PENDING"))


LOST = "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"


def test_jobs_that_run_although_the_answer_was_lost_get_what_they_wait_for(cluster, programs):
    sent, records, batch = dispatcher(cluster)
    programs("sbatch", LOST)
    sent.send(TOKEN, batch)
    assert not records.ids
    programs("squeue", f"echo '7_0|{TOKEN}'; echo '7_1|{TOKEN}'")
    sent.send_again()
    assert records.ids == [entry.job_id for entry in batch.entries] == ["7_0", "7_1"]
    assert pickles(cluster) == {"7_0_submitted.pkl", "7_1_submitted.pkl"}
    assert cluster.client.submit_calls == 1
    assert not sent.unsent


@pytest.mark.parametrize("again", [LOST, "echo Submitted batch job 8"])
def test_of_jobs_that_were_accepted_twice_the_earlier_are_cancelled(cluster, programs, tmp_path, again):
    sent, records, batch = dispatcher(cluster)
    programs("sbatch", LOST)
    sent.send(TOKEN, batch)
    programs("sbatch", again)
    programs("scancel", f'echo "$*" >>{tmp_path}/cancelled')
    sent.send_again()
    # Those of the first come to light only now.
    programs("squeue", "; ".join(f"echo '{job}|{TOKEN}'" for job in ("7_0", "7_1", "8_1", "8_0")))
    sent.send_again()
    sent.send_again()
    sent.send_again()
    assert records.ids == ["8_0", "8_1"]
    assert pickles(cluster) == {"8_0_submitted.pkl", "8_1_submitted.pkl"}
    assert (tmp_path / "cancelled").read_text().splitlines() == ["--quiet 7_[0,1]"]
    assert cluster.client.submit_calls == 2
