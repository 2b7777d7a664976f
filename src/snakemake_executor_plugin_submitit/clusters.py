"""Where jobs run, behind one face: Slurm, processes of this machine, or Snakemake itself.

A batch has a folder, named by its token; a job has a folder in it, named by its index.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.local.debug import DebugExecutor

from . import submission
from .call import RuleCall
from .local import Local
from .resources import clean_name
from .slurm import Slurm, SlurmError, available
from .states import JobState


class SlurmCluster:
    """Jobs in Slurm, one array a batch."""

    noun = "Slurm job"

    def __init__(self, folder: Path, requeues: int) -> None:
        if not available():
            raise SlurmError("no sbatch on PATH: is this a machine from which jobs can be submitted to Slurm?")
        self.folder = folder
        self.requeues = requeues
        self.client = Slurm()

    def largest_batch(self) -> int:
        """Most jobs in one array.

        Raises:
            SlurmAway: Slurm cannot be asked. SlurmError: it takes no arrays at all.
        """
        size = self.client.max_array_size()
        if size < 1:
            raise SlurmError("this Slurm takes no job arrays (MaxArraySize=0), as which jobs are submitted")
        return size

    def submit(self, token: str, calls: Sequence[RuleCall], parameters: Mapping[str, Any]) -> list[str]:
        """Submit jobs; returns their ids in order.

        Raises:
            SlurmAway: it is not known whether they were accepted. SlurmError: they were refused.
        """
        names = list(dict.fromkeys(call.name for call in calls))
        name = clean_name(names[0] if len(names) == 1 else f"{names[0]}-and-{len(names) - 1}-more")
        wanted = {**parameters, "comment": token, "job_name": name}
        return submission.submit_to_slurm(self.folder / token, calls, wanted, self.client, self.requeues)

    def states(self, job_ids: Iterable[str]) -> dict[str, JobState]:
        return self.client.states(job_ids)

    def cancel(self, job_ids: Iterable[str]) -> None:
        self.client.cancel(job_ids)

    def find(self, tokens: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
        """The jobs that carry each token, as index and id."""
        found = self.client.find_by_comment(tokens)
        return {
            token: [(int(one.partition("_")[2]), one) for one in job_ids if one.partition("_")[2].isdigit()]
            for token, job_ids in found.items()
        }

    def settle(self, token: str, index: int, job_id: str, state: JobState | None) -> bool:
        """Whether a job that was submitted by a Snakemake that died in the midst of it has what it needs to run.

        A job waits for a minute for its pickle; one that still waits for a node can be given it.
        """
        folder = self.folder / token
        if state is not None and state.pending:
            return submission.place_pickle(folder, index, job_id)
        # Not whether one still waits to be placed: another array with this token may have got it.
        return submission.has_pickle(folder, job_id)

    def place(self, token: str, index: int, job_id: str) -> None:
        """Give a job that this Snakemake submitted what it needs to run; it may wait for that already."""
        submission.place_pickle(self.folder / token, index, job_id)

    def know(self, token: str, index: int, job_id: str) -> None:
        """Hear of a job that an earlier Snakemake submitted."""

    def logs(self, token: str, index: int, job_id: str) -> tuple[Path, Path]:
        """What a job writes to: standard error and output."""
        return submission.log_paths(self.folder / token, job_id)


class LocalCluster:
    """Jobs as processes of this machine."""

    noun = "local job"

    def __init__(self, folder: Path, requeues: int) -> None:
        self.folder = folder
        self.requeues = requeues
        self.client = Local(folder)

    def largest_batch(self) -> int:
        return self.client.max_array_size()

    def submit(self, token: str, calls: Sequence[RuleCall], parameters: Mapping[str, Any]) -> list[str]:
        self.client.submit_calls += 1
        ids: list[str] = []
        try:
            for call in calls:
                job_id = submission.submit_locally(Path(call.folder), call, parameters, self.requeues)
                self.client.expect(job_id, Path(call.folder))
                ids.append(job_id)
        except OSError as error:
            self.client.cancel(ids)
            raise SlurmError(f"a process could not be started: {error}") from error
        return ids

    def states(self, job_ids: Iterable[str]) -> dict[str, JobState]:
        return self.client.states(job_ids)

    def cancel(self, job_ids: Iterable[str]) -> None:
        self.client.cancel(job_ids)

    def find(self, tokens: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
        return self.client.find_by_comment(tokens)

    def settle(self, token: str, index: int, job_id: str, state: JobState | None) -> bool:
        return submission.place_pickle(self.folder / token / str(index), index, job_id)

    def know(self, token: str, index: int, job_id: str) -> None:
        self.client.expect(job_id, self.folder / token / str(index))

    def logs(self, token: str, index: int, job_id: str) -> tuple[Path, Path]:
        return submission.log_paths(self.folder / token / str(index), job_id)


class DebugCluster(LocalCluster):
    """Jobs in Snakemake itself, one after another; when they are submitted they have run."""

    noun = "job in this process"

    def submit(self, token: str, calls: Sequence[RuleCall], parameters: Mapping[str, Any]) -> list[str]:
        ids = []
        for index, call in enumerate(calls):
            job = DebugExecutor(self.folder / token / str(index)).submit(_quietly, call)
            job.results()
            ids.append(f"debug-{index}")
        return ids

    def states(self, job_ids: Iterable[str]) -> dict[str, JobState]:
        return {}

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Nothing runs any more."""

    def know(self, token: str, index: int, job_id: str) -> None:
        """It has ended long since."""


CLUSTERS = {"slurm": SlurmCluster, "local": LocalCluster, "debug": DebugCluster}


def _quietly(call: RuleCall) -> None:
    """Run a call whose exit must not be Snakemake's."""
    try:
        call()
    except SystemExit:
        pass
    except Exception:
        # submitit would open a debugger here.
        traceback.print_exc()
