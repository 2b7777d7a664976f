"""What goes wrong on a cluster, on purpose: what the user sees, that finished work stays, nothing runs twice and
no job is left behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from workflows import Workflow, kill, pause, traced

ID = "echo ${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}} >id"
HUNGRY = "python3 -c 'import time; held = b\"x\" * (900 << 20); time.sleep(60)'"
FAULTS = (
    traced("good", "sleep 2")
    + traced("bad", "echo last words of bad; echo more >&2; exit 3")
    + traced("logged", "echo only in the log >{log}; false", log="'logged.log'")
    + traced("hungry", HUNGRY, resources="mem_mb=400")
    + traced("endless", "sleep 300", resources="runtime=1")
    + traced("stopped", f"{ID}; sleep 300", resources="mem_mb=260")
    + traced("nowhere", resources="slurm_partition='nowhere'")
    + traced("huge", resources="mem_mb=99000000")
)
NAMES = ["good", "bad", "logged", "hungry", "endless", "stopped", "nowhere", "huge"]


@pytest.fixture(scope="module")
def faults(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """One run in which all jobs but one come to grief in ways of their own."""
    folder = tmp_path_factory.mktemp("faults")
    workflow = Workflow(folder, running_cluster, FAULTS, [f"{name}.out" for name in NAMES])
    process = workflow.start("--keep-going")
    workflow.wait_for("begin-stopped")
    wait_until((folder / "id").exists, "the job's id")
    running_cluster.run("scancel", (folder / "id").read_text().strip())
    assert workflow.finish(process) == 1
    return workflow


def test_exit_code(faults: Workflow):
    text = faults.told("bad")
    assert "exit code 3" in text
    assert "last words of bad" in text or "more" in text
    assert re.search(r"Slurm job \d+_\d+", text)
    assert str(faults.folder) in text


def test_the_log_of_the_rule_is_shown(faults: Workflow):
    text = faults.told("logged")
    assert "exit code 1" in text
    assert "only in the log" in text
    assert "logged.log" in text


def test_memory_limit(faults: Workflow):
    assert "out of memory" in faults.told("hungry")


def test_time_limit(faults: Workflow):
    assert "time limit reached" in faults.told("endless")


def test_cancelled_by_another(faults: Workflow):
    assert "cancelled" in faults.told("stopped")


def test_refused(faults: Workflow):
    assert "nvalid partition" in faults.told("nowhere")
    assert "Requested node configuration is not available" in faults.told("huge")


def test_others_are_not_concerned(faults: Workflow):
    ran = faults.ran()
    assert (ran["begin-good"], ran["end-good"]) == (1, 1)
    assert [name for name in NAMES if (faults.folder / f"{name}.out").exists()] == ["good"]
    assert max(ran.values()) == 1
    assert not {"begin-nowhere", "begin-huge"} & ran.keys()
    assert "Traceback" not in faults.output()
    faults.check_nothing_left()


def test_what_was_finished_is_not_run_again(faults: Workflow, cluster: Cluster):
    assert faults.run("good.out") == 0
    assert faults.ran()["begin-good"] == 1


def jobs(folder: Path, cluster: Cluster, seconds: int, count: int = 3) -> tuple[Workflow, list[str]]:
    """A workflow of equal jobs that sleep, of different length, and the jobs' names."""
    names = [f"job-{index}" for index in range(count)]
    rules = traced("job", f"sleep $(({seconds} + {{wildcards.n}}))", "n")
    return Workflow(folder, cluster, rules, [f"{name}.out" for name in names]), names


def test_node_down_and_back(cluster: Cluster, tmp_path: Path):
    workflow, names = jobs(tmp_path, cluster, 3)
    process = workflow.start()
    workflow.wait_for(*(f"begin-{name}" for name in names))
    cluster.node_down()
    pause(2)
    cluster.node_up()
    assert workflow.finish(process) == 0, workflow.output()
    ran = workflow.ran()
    assert all(ran[f"end-{name}"] == 1 for name in names), ran
    assert workflow.calls()["sbatch"] == 1
    workflow.check_nothing_left()


def test_controller_of_slurm_away(cluster: Cluster, tmp_path: Path):
    """Longer than the client waits for an answer; jobs end meanwhile, and others are to follow."""
    rules = traced("first", "sleep 3") + traced("then", input="'first.out'")
    workflow = Workflow(tmp_path, cluster, rules, ["then.out"])
    process = workflow.start()
    workflow.wait_for("begin-first")
    cluster.stop_controller()
    pause(60)
    assert process.poll() is None, workflow.output()
    cluster.start_controller()
    assert workflow.finish(process) == 0, workflow.output()
    # The node reports the end of a job to slurmctld, which was away, again after a minute at most.
    workflow.check_all_ran_once(["first", "then"], seconds=70)
    assert "out of reach" in workflow.output()
    assert "Slurm is back" in workflow.output()


def test_slurmd_killed(cluster: Cluster, tmp_path: Path):
    workflow, names = jobs(tmp_path, cluster, 4)
    process = workflow.start()
    workflow.wait_for(*(f"begin-{name}" for name in names))
    cluster.kill_slurmd()
    pause(3)
    cluster.start_slurmd()
    assert workflow.finish(process) == 0, workflow.output()
    workflow.check_all_ran_once(names)
    assert workflow.calls()["sbatch"] == 1


def test_preempted(cluster: Cluster, tmp_path: Path):
    workflow = Workflow(tmp_path, cluster, traced("low", "sleep 6", threads="16"), ["low.out"])
    process = workflow.start()
    workflow.wait_for("begin-low")
    urgent = cluster.submit("sleep 2", "--partition=high", "--cpus-per-task=16")
    cluster.wait_for_state(urgent, "RUNNING", "COMPLETED")
    assert "end-low" not in workflow.ran()
    assert workflow.finish(process) == 0, workflow.output()
    assert workflow.ran() == {"begin-low": 2, "end-low": 1}
    assert workflow.calls()["sbatch"] == 1
    workflow.check_nothing_left()


def test_preempted_where_that_is_a_failure(cluster: Cluster, tmp_path: Path):
    workflow = Workflow(tmp_path, cluster, traced("low", "sleep 30", threads="16"), ["low.out"])
    process = workflow.start("--submitit-no-checkpoint", "fail")
    workflow.wait_for("begin-low")
    cluster.submit("sleep 2", "--partition=high", "--cpus-per-task=16")
    assert workflow.finish(process) == 1
    assert "checkpoint" in workflow.told("low")
    assert workflow.ran() == {"begin-low": 1}
    workflow.check_nothing_left()


def test_killed_and_started_again(cluster: Cluster, tmp_path: Path):
    """Some jobs end before the kill, some while no Snakemake runs, some after the second start."""
    names = [f"job-{index}" for index in (1, 3, 12)] + ["last"]
    rules = traced("job", "sleep {wildcards.n}", "n")
    rules += traced("last", input="['job-1.out', 'job-3.out', 'job-12.out']")
    workflow = Workflow(tmp_path, cluster, rules, ["last.out"])
    process = workflow.start()
    workflow.wait_for("end-job-1", "begin-job-3", "begin-job-12")
    kill(process)
    workflow.wait_for("end-job-3")
    assert len(cluster.jobs_left()) >= 1
    assert workflow.run() == 0, workflow.output()
    workflow.check_all_ran_once(names)
    assert workflow.calls()["sbatch"] == 2
    assert "Took over" in workflow.output()


def test_killed_while_it_submits(cluster: Cluster, tmp_path: Path):
    """sbatch has accepted the jobs, and its answer is not written down."""
    workflow, names = jobs(tmp_path, cluster, 5)
    workflow.count("sbatch", after="touch accepted; sleep 3")
    process = workflow.start()
    wait_until((tmp_path / "accepted").exists, "sbatch", 30, workflow.output)
    kill(process)
    assert workflow.run() == 0, workflow.output()
    # Jobs that wait for what only the dead Snakemake could have given them are cancelled and submitted anew.
    workflow.check_all_ran_once(names)


# sbatch as it is when slurmctld accepts jobs and then is too busy to say so: the first time only.
LOST = "[ -e lost ] || { sleep 4; touch lost; echo 'sbatch: error: Socket timed out on send/recv' >&2; r=1; }"


def test_the_answer_of_sbatch_is_lost(cluster: Cluster, tmp_path: Path):
    """The jobs run, and wait for what they get only after their ids are known."""
    workflow, names = jobs(tmp_path, cluster, 1)
    workflow.count("sbatch", after=LOST)
    assert workflow.run() == 0, workflow.output()
    workflow.check_all_ran_once(names)
    assert workflow.calls()["sbatch"] == 1
    assert "Slurm is back" in workflow.output()


def test_jobs_are_accepted_twice(cluster: Cluster, tmp_path: Path):
    """The answer is lost, and the jobs do not show up at once: those of the first array are cancelled."""
    workflow, names = jobs(tmp_path, cluster, 3)
    workflow.count("sbatch", after=LOST)
    hide = 'seen=seen-${0##*/}; if [ -e lost ] && [ ! -e "$seen" ]; then touch "$seen"; exit 0; fi'
    workflow.count("squeue", "sacct", before=hide)
    assert workflow.run() == 0, workflow.output()
    assert workflow.calls()["sbatch"] == 2
    # Left alone, they would wait for a minute.
    workflow.check_all_ran_once(names)


def test_the_users_own_defaults_for_sbatch(cluster: Cluster, tmp_path: Path):
    workflow, names = jobs(tmp_path, cluster, 1)
    assert workflow.run(prefix=["env", "SBATCH_PARTITION=nowhere", "SBATCH_ARRAY_INX=7"]) == 0, workflow.output()
    workflow.check_all_ran_once(names)


def test_truncated_result(cluster: Cluster, tmp_path: Path):
    workflow, _ = jobs(tmp_path, cluster, 2, 1)
    process = workflow.start()
    workflow.wait_for("begin-job-0")
    process.send_signal(signal.SIGSTOP)
    records = tmp_path / ".snakemake/submitit"
    wait_until(lambda: list(records.glob("*/0/done.json")), "the result")
    (record,) = records.glob("*/0/done.json")
    text = record.read_text()
    assert json.loads(text)["exit_code"] == 0
    record.write_text(text[: len(text) // 2])
    process.send_signal(signal.SIGCONT)
    assert workflow.finish(process) == 1
    assert "no result" in workflow.told("job")
    assert workflow.ran() == {"begin-job-0": 1, "end-job-0": 1}
    workflow.check_nothing_left()


def private_mount(options: str) -> list[str]:
    """A command that runs another with something mounted over `jobs`, which only the latter sees."""
    script = f'mount {options} "$PWD/jobs" && exec "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script, "bash"]
    probe = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    return prefix


def test_folder_read_only(cluster: Cluster, tmp_path: Path):
    workflow, _ = jobs(tmp_path, cluster, 1, 1)
    (tmp_path / "jobs").mkdir()
    status = workflow.run("--submitit-folder", "jobs", prefix=private_mount("-t tmpfs -o ro none"))
    assert status == 1
    assert "Read-only file system" in workflow.output()
    assert "Traceback" not in workflow.output()
    assert not workflow.ran()
    assert workflow.calls()["sbatch"] == 0


def test_folder_that_nodes_do_not_see(cluster: Cluster, tmp_path: Path):
    workflow, _ = jobs(tmp_path, cluster, 1, 1)
    (tmp_path / "jobs").mkdir()
    status = workflow.run("--submitit-folder", "jobs", prefix=private_mount("-t tmpfs none"))
    assert status == 1
    assert "can the node see this folder" in workflow.told("job")
    assert not workflow.ran()
    workflow.check_nothing_left()


def test_no_slurm_here(cluster: Cluster, tmp_path: Path):
    workflow, _ = jobs(tmp_path, cluster, 1, 1)
    (workflow.bin / "sbatch").unlink()
    (workflow.bin / "bash").symlink_to("/bin/bash")
    assert workflow.run(prefix=["env", f"PATH={workflow.bin}"]) == 1
    assert "no sbatch on PATH" in workflow.output()
    assert "Traceback" not in workflow.output()
