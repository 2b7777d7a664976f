"""When a job that has no result counts as failed, and how long a silent cluster is borne."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError

from . import result as results
from .result import Result
from .states import JobState

FLICKER = 10.0
"""Seconds that a failure must last: Slurm calls a job failed for a moment before it requeues it."""
STOPPING = 90.0
"""Seconds for a job that failed, or is not wanted any more, to stop; Slurm itself gives it 30 after SIGTERM."""
FIRST, LONGEST = 2.0, 60.0


@dataclass
class Watched:
    """A submitted job.

    Attributes:
        job, info: Snakemake's. name: of the rule. token, index: in the ledger. folder: its own.
        rule_logs: the rule's log files. job_id: None until the cluster has confirmed it.
        result: what it has left, as far as seen. suspect: since when it looks as if it had failed.
        warned: whether the user was told that it waits for a person.
        stopping: since when it is to stop, having failed. blamed: its state at that moment.
        told: whether it was told to stop. loose: whether it was reported as failed, but has not stopped.
        refused: why it was not submitted; else empty.
    """

    job: Any
    info: Any
    name: str
    token: str
    index: int
    folder: Path
    rule_logs: list[Path]
    job_id: str | None
    result: Result | None = None
    suspect: float | None = None
    warned: bool = False
    stopping: float | None = None
    blamed: JobState | None = None
    told: bool = False
    loose: bool = False
    refused: str = ""


def failed(entry: Watched, state: JobState | None, grace: float, away: float, now: float | None = None) -> bool:
    """Whether a job without a good result has failed.

    Args:
        state: what the cluster says, None if it does not know the job.
        grace: seconds for a result to show up, or for a failed job to end.
        away: seconds for a state to become known that is neither success nor failure: slurmdbd may be down.
    """
    now = time.monotonic() if now is None else now
    alive = state is not None and (state.running or state.pending)
    bad = entry.result is not None
    if alive and not bad:
        entry.suspect = None
        return False
    if bad and not alive:
        return True
    if entry.suspect is None:
        entry.suspect = now
    patience = grace
    if state is not None and state.unknown:
        patience = max(grace, away)
    elif state is not None and state.ended and not state.succeeded:
        patience = min(grace, FLICKER)
    return now - entry.suspect >= patience


def look(entry: Watched) -> Result | None:
    """The result of a job, read anew where it is missed."""
    if entry.suspect is not None:
        # NFS may have remembered that the file is not there; to list the folder makes it ask.
        with contextlib.suppress(OSError):
            os.listdir(entry.folder)
    return results.read(entry.folder)


def may_report(entry: Watched, state: JobState | None, cluster: Any, now: float | None = None) -> bool:
    """Whether a job that has failed can be reported: it has ended, or has not for long after it was told to stop.

    Until it has ended it may write its outputs, beside a second attempt. One that does not end is ``loose``.

    Raises:
        SlurmError: it could not be told to stop.
    """
    if state is None or state.ended:
        return True
    now = time.monotonic() if now is None else now
    if entry.stopping is None:
        entry.stopping, entry.blamed = now, state
    if now - entry.stopping >= STOPPING:
        entry.loose = True
    elif not entry.told:
        cluster.cancel([entry.job_id])
        entry.told = True
    return entry.loose


class Absence:
    """The cluster does not answer: ask less and less often, and give up after ``limit`` seconds.

    Attributes:
        too_long: whether it was given up.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.too_long = False
        self._since: float | None = None
        self._next = 0.0
        self._delay = FIRST

    def may_try(self) -> bool:
        return time.monotonic() >= self._next

    def begins(self, why: str, logger: Any) -> None:
        """Note a question that was not answered.

        Raises:
            WorkflowError: it has lasted for too long. Jobs run on, and can be taken over.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            logger.warning(
                f"Slurm is out of reach ({why}): jobs run on, waiting up to {self.limit / 60:g} minutes."
            )
        if now - self._since > self.limit:
            self.too_long = True
            raise WorkflowError(
                f"Slurm has been out of reach for {self.limit / 60:g} minutes ({why}). Submitted jobs run on: "
                "start the same command again to take them over."
            )
        self._next = now + self._delay
        self._delay = min(LONGEST, 2 * self._delay)

    def ends(self, logger: Any) -> None:
        """Note an answer."""
        if self._since is not None:
            logger.info("Slurm is back.")
        self._since, self._next, self._delay = None, 0.0, FIRST
