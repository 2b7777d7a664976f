"""Jobs as processes of this machine: what `slurm.Slurm` is for Slurm, for trying things out and for tests.

A job's id is the process id of submitit's watching process. Process ids are used again, so a process counts as a
job only if its command line names the job's own folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from .states import JobState

WATCHER = "submitit.local._local"
PATIENCE = 5.0


class Local:
    """The processes whose jobs are below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.submit_calls = self.status_calls = 0
        self._folders: dict[str, Path] = {}

    def expect(self, job_id: str, folder: Path) -> None:
        """Say which folder the job of an id has."""
        self._folders[job_id] = folder

    def states(self, job_ids: Iterable[str]) -> dict[str, JobState]:
        """The jobs that still run; of others nothing is known."""
        self.status_calls += 1
        found = {job_id: self._process(job_id) for job_id in job_ids}
        node = os.uname().nodename
        return {job_id: JobState(job_id, "RUNNING", node=node) for job_id, one in found.items() if one}

    def cancel(self, job_ids: Iterable[str]) -> None:
        """End jobs: politely at first, then by force, with all that they have started."""
        watchers = [process for job_id in job_ids if (process := self._process(job_id))]
        tree = list(watchers)
        for watcher in watchers:
            with contextlib.suppress(psutil.Error):
                tree += watcher.children(recursive=True)
        for watcher in watchers:
            with contextlib.suppress(psutil.Error):
                # It passes the signal on to the job, and that to its command.
                watcher.terminate()
        _, alive = psutil.wait_procs(tree, timeout=PATIENCE)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=1)

    def find_by_comment(self, tokens: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
        """For each token its running jobs, as index and id: a job's folder is `token/index`."""
        found: dict[str, list[tuple[int, str]]] = {token: [] for token in tokens}
        for process in psutil.process_iter(["cmdline"]):
            job = self._job(process.info["cmdline"] or ())
            if job is not None and job[0] in found:
                found[job[0]].append((job[1], str(process.pid)))
        return found

    def max_array_size(self) -> int:
        return 10_000

    def _process(self, job_id: str) -> psutil.Process | None:
        with contextlib.suppress(ChildProcessError, OSError, ValueError):
            # Ours, if this is not another Snakemake than that which started it: an ended one vanishes so.
            os.waitpid(int(job_id), os.WNOHANG)
        try:
            process = psutil.Process(int(job_id))
            command = process.cmdline()
            expected = self._folders.get(job_id)
            if process.status() != psutil.STATUS_ZOMBIE and self._job(command) is not None:
                return process if expected is None or str(expected) == command[-1] else None
        except (psutil.Error, ValueError):
            pass
        return None

    def _job(self, command: Sequence[str]) -> tuple[str, int] | None:
        """Token and index of the job that a process watches over, if it does and it is one of ours."""
        if WATCHER not in command:
            return None
        folder = Path(command[-1])
        if folder.parent.parent != self.folder or not folder.name.isdigit():
            return None
        return folder.parent.name, int(folder.name)


def wait_for_end(client, job_ids: Iterable[str], seconds: float) -> list[str]:
    """Wait until jobs have stopped; returns those that have not after ``seconds``."""
    waiting = list(job_ids)
    deadline = time.monotonic() + seconds
    while waiting:
        states = client.states(waiting)
        waiting = [one for one in waiting if one in states and (states[one].running or states[one].pending)]
        if not waiting or time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    return waiting
