"""The plugin on a real Slurm: Snakemake's own tests of executors, submission in arrays, resources."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import snakemake.common.tests
from cluster import Cluster
from snakemake.settings.types import ResourceSettings
from workflows import Workflow, traced

from snakemake_executor_plugin_submitit.settings import ExecutorSettings


@pytest.mark.usefixtures("cluster")
class TestSnakemakesOwn(snakemake.common.tests.TestWorkflowsLocalStorageBase):
    """Snakemake's test class for executors."""

    __test__ = True

    def get_executor(self) -> str:
        return "submitit"

    def get_executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings(cluster="slurm", poll_interval=1)

    def get_resource_settings(self) -> ResourceSettings:
        return ResourceSettings()


def test_a_hundred_equal_jobs_are_one_array(cluster: Cluster, tmp_path: Path):
    names = [f"equal-{index}" for index in range(100)]
    workflow = Workflow(tmp_path, cluster, traced("equal", wildcard="number"), [f"{name}.out" for name in names])
    workflow.count("sbatch", "squeue", "scontrol", "sacct")
    assert workflow.run() == 0, workflow.output()
    workflow.check_all_ran_once(names)
    calls = workflow.calls()
    assert calls["sbatch"] == 1
    assert calls["sacct"] == 0
    assert calls["scontrol"] <= 1
    assert "100 of 101 steps" in workflow.output() or "101 of 101 steps" in workflow.output()


def test_jobs_that_ask_for_the_same_go_together(cluster: Cluster, tmp_path: Path):
    rules = (
        traced("small", wildcard="n", resources="mem_mb=200")
        + traced("alike", resources="mem_mb=200")
        + traced("other", resources="mem_mb=300")
    )
    names = ["small-0", "small-1", "alike", "other"]
    workflow = Workflow(tmp_path, cluster, rules, [f"{name}.out" for name in names])
    assert workflow.run() == 0, workflow.output()
    workflow.check_all_ran_once(names)
    assert workflow.calls()["sbatch"] == 2


def test_arrays_are_split(cluster: Cluster, tmp_path: Path):
    names = [f"split-{index}" for index in range(5)]
    workflow = Workflow(tmp_path, cluster, traced("split", wildcard="n"), [f"{name}.out" for name in names])
    assert workflow.run("--submitit-array-size", "2") == 0, workflow.output()
    workflow.check_all_ran_once(names)
    assert workflow.calls()["sbatch"] == 3


def test_resources_reach_slurm(cluster: Cluster, tmp_path: Path):
    report = "scontrol show job ${{SLURM_JOB_ID}} >job; echo gpus=$CUDA_VISIBLE_DEVICES >>job"
    resources = "mem_mb=700, runtime=7, gpus=2, tasks=1, slurm_partition='high', slurm_extra='--nice=5'"
    rules = traced("mapped", report, threads="3", resources=resources)
    workflow = Workflow(tmp_path, cluster, rules, ["mapped.out"])
    assert workflow.run() == 0, workflow.output()
    workflow.check_all_ran_once(["mapped"])
    job = (tmp_path / "job").read_text()
    for text in ("Partition=high", "TimeLimit=00:07:00", "mem=700M", "CPUs/Task=3", "Nice=5", "gpus=0,1"):
        assert text in job
    assert "JobName=mapped" in job


def test_gpus_are_not_shared(cluster: Cluster, tmp_path: Path):
    rules = traced(
        "gpu", "echo $CUDA_VISIBLE_DEVICES >{wildcards.n}.gpu; sleep 3", "n", resources="gpus=4, tasks=1"
    )
    names = ["gpu-0", "gpu-1"]
    workflow = Workflow(tmp_path, cluster, rules, [f"{name}.out" for name in names])
    assert workflow.run() == 0, workflow.output()
    workflow.check_all_ran_once(names)
    devices = [set((tmp_path / f"{n}.gpu").read_text().strip().split(",")) for n in (0, 1)]
    assert len(devices[0]) == len(devices[1]) == 4
    assert not devices[0] & devices[1]


def test_each_gpu_gets_a_task(cluster: Cluster, tmp_path: Path):
    rules = (
        "rule ranks:\n    output: 'ranks.out'\n    resources: gpus=3\n"
        "    shell: 'echo $RANK of $WORLD_SIZE >>ranks; sleep 1; touch {output}'\n"
    )
    workflow = Workflow(tmp_path, cluster, rules, ["ranks.out"])
    assert workflow.run() == 0, workflow.output()
    assert sorted((tmp_path / "ranks").read_text().splitlines()) == ["0 of 3", "1 of 3", "2 of 3"]


def test_odd_names_reach_no_shell(cluster: Cluster, tmp_path: Path):
    odd = "é 'x' \"y\" $(touch hacked);&|#ß"
    rules = (
        "rule odd:\n    output: '{name}.txt'\n    log: 'logs/{name}.log'\n"
        "    shell: 'echo made >{output:q} 2>{log:q}'\n"
        "rule wrapped:\n    input: '{name}.txt'\n    output: '{name}.csv'\n"
        "    run:\n        open(output[0], 'w').close()\n"
    )
    workflow = Workflow(tmp_path / "a folder, ü", cluster, rules, [f"{odd}.csv"])
    assert workflow.run() == 0, workflow.output()
    assert (workflow.folder / f"{odd}.csv").exists()
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize("keep", [False, True])
def test_interrupt_cancels_or_leaves(cluster: Cluster, tmp_path: Path, keep: bool):
    rules = traced("long", "sleep 15", wildcard="n")
    names = ["long-0", "long-1"]
    workflow = Workflow(tmp_path, cluster, rules, [f"{name}.out" for name in names])
    options = ["--submitit-keep-jobs"] if keep else []
    process = workflow.start(*options)
    workflow.wait_for("begin-long-0", "begin-long-1")
    process.send_signal(signal.SIGINT)
    assert workflow.finish(process, 40) != 0
    if keep:
        assert len(cluster.jobs_left()) == 2, workflow.output()
        assert workflow.run() == 0, workflow.output()
        workflow.check_all_ran_once(names)
        assert workflow.calls()["sbatch"] == 1
    else:
        workflow.check_nothing_left()
        assert "end-long-0" not in workflow.ran()
