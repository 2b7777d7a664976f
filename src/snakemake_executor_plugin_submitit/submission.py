"""Submission through submitit: one array for any number of jobs, on Slurm, and its like on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedSubmissionError, JobPaths
from submitit.local.local import LocalJob
from submitit.slurm.slurm import SlurmJob

from .call import RuleCall
from .slurm import Slurm, SlurmAway, failure

A_YEAR = 60 * 24 * 365
"""Minutes; stands for no time limit where submitit needs a number."""
SBATCH_TIMEOUT = 120
"""Seconds. A busy slurmctld takes its time, and what was accepted must not be submitted again."""


class ArrayExecutor(SlurmExecutor):
    """submitit's executor for Slurm, changed where it stands in the way of not losing jobs.

    Any number of jobs is an array; a pickle is in its place, named by index, before ``sbatch`` is called, so that
    a restarted controller can finish the work of a killed one; ``sbatch`` has a timeout; and a job without a
    runtime gets the partition's default, not submitit's five minutes.
    """

    def __init__(self, folder: Path, slurm: Slurm, requeues: int) -> None:
        super().__init__(folder, max_num_timeout=requeues)
        self.slurm = slurm

    def _internal_process_submissions(self, delayed_submissions):
        minutes = self.parameters.get("time") or A_YEAR
        for index, delayed in enumerate(delayed_submissions):
            delayed.set_timeout(minutes, self.max_num_timeout)
            delayed.dump(waiting_pickle(self.folder, index))
        size = len(delayed_submissions)
        self.parameters |= {"map_count": size, "array_parallelism": size}
        script = self.folder / "submission.sh"
        script.write_text(self._make_submission_file_text(self._submitit_command_str, ""), encoding="utf-8")
        base = self._sbatch(script)
        jobs = []
        for index in range(size):
            job = SlurmJob(self.folder, f"{base}_{index}", list(range(self._num_tasks())))
            place_pickle(self.folder, index, job.job_id)
            jobs.append(job)
        return jobs

    def _sbatch(self, script: Path) -> str:
        self.slurm.submit_calls += 1
        try:
            done = subprocess.run(
                ["sbatch", str(script)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SBATCH_TIMEOUT,
                env=sbatch_environment(os.environ),
                # Ctrl-C is for Snakemake, which then cancels what was submitted.
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise SlurmAway(f"sbatch did not answer within {SBATCH_TIMEOUT} s") from error
        if not 0 <= done.returncode <= 128:
            # Killed, it or what it is wrapped in: perhaps after slurmctld had the jobs.
            raise SlurmAway(f"sbatch did not end by itself (status {done.returncode})")
        if done.returncode != 0:
            raise failure("sbatch", done.returncode, done.stderr)
        try:
            return self._get_job_id_from_submission_command(done.stdout)
        except FailedSubmissionError as error:
            raise SlurmAway(f"sbatch answered {done.stdout.strip()[:80]!r}, without a job's id") from error


class DetachedExecutor(LocalExecutor):
    """submitit's local executor, whose processes outlive the terminal and Snakemake."""

    def __init__(self, folder: Path, requeues: int) -> None:
        super().__init__(folder, max_num_timeout=requeues)
        self._throttling = 0

    def _submit_command(self, command: str) -> LocalJob:
        tasks = self.parameters["tasks_per_node"]
        gpus = ",".join(map(str, range(self.parameters["gpus_per_node"])))
        variables = {
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * self.parameters["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "CUDA_VISIBLE_DEVICES": gpus,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "submitit.local._local", str(self.folder)],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return LocalJob(self.folder, str(process.pid), list(range(tasks)), process)


def submit_to_slurm(
    folder: Path, calls: Sequence[RuleCall], parameters: Mapping[str, Any], slurm: Slurm, requeues: int
) -> list[str]:
    """Submit calls as one array; returns their ids.

    Args:
        folder: of the batch, which holds nothing yet. parameters: submitit's.

    Raises:
        SlurmAway: it is not known whether they were accepted. SlurmError: they were refused.
    """
    executor = ArrayExecutor(folder, slurm, requeues)
    executor.update_parameters(**parameters)
    return [job.job_id for job in executor.submit_array(calls)]


def submit_locally(folder: Path, call: RuleCall, parameters: Mapping[str, Any], requeues: int) -> str:
    """Start a call as a process of this machine; returns the id of the process that watches over it."""
    executor = DetachedExecutor(folder, requeues)
    executor.update_parameters(
        timeout_min=parameters["time"] or A_YEAR,
        tasks_per_node=parameters["ntasks_per_node"] * parameters["nodes"],
        gpus_per_node=(parameters["gpus_per_node"] or 0) * parameters["nodes"],
        signal_delay_s=parameters["signal_delay_s"],
    )
    return executor.submit(call).job_id


def waiting_pickle(folder: Path, index: int) -> Path:
    """Where the pickle of a job is before its id is known."""
    return folder / f"{index}.pkl"


def place_pickle(folder: Path, index: int, job_id: str) -> bool:
    """Put a pickle where the job of this id looks for it; returns whether it is there."""
    target = JobPaths(folder, job_id).submitted_pickle
    if not target.exists() and waiting_pickle(folder, index).exists():
        waiting_pickle(folder, index).rename(target)
    return target.exists()


def has_pickle(folder: Path, job_id: str) -> bool:
    """Whether a pickle is where the job of this id looks for it."""
    return JobPaths(folder, job_id).submitted_pickle.exists()


def sbatch_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would bind the jobs: defaults of the user's own for ``sbatch``, which come
    before the options in its script, and the marks of a Slurm job that Snakemake itself runs in."""
    found = {name: value for name, value in environment.items() if not name.startswith("SBATCH_")}
    if "SLURM_JOB_ID" not in found:
        return found
    return {name: value for name, value in found.items() if name == "SLURM_CONF" or name[:6] != "SLURM_"}


def log_paths(folder: Path, job_id: str) -> tuple[Path, Path]:
    """What a job writes to: standard error and output."""
    paths = JobPaths(folder, job_id, 0)
    return paths.stderr, paths.stdout
