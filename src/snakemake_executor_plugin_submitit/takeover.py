"""Jobs of an earlier Snakemake that was killed, or left them running: found, and taken over where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import result as results
from .ledger import Batch, Ledger, Mark
from .local import wait_for_end
from .states import JobState
from .watch import STOPPING


class TakeoverError(RuntimeError):
    """A job that must not run does not stop; the message is one line."""


@dataclass(frozen=True)
class Claim:
    """A job that need not be submitted: it runs, or it has ended well."""

    token: str
    index: int
    job_id: str | None


class Takeover:
    """Decides about the jobs that the ledger of an earlier run still holds."""

    def __init__(self, cluster: Any, ledger: Ledger, workdir: Path) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.workdir = workdir

    def reconcile(self) -> None:
        """Find out whether batches were submitted whose Snakemake died before it could write that down.

        Raises:
            SlurmAway: Slurm cannot be asked.
        """
        for batch in self.ledger.batches.values():
            for index in batch.open:
                if job_id := batch.id(index):
                    self.cluster.know(batch.token, index, job_id)
        self._forget_cancelled()
        unsettled = [batch for batch in self.ledger.batches.values() if batch.ids is None]
        if not unsettled:
            return
        found = self.cluster.find([batch.token for batch in unsettled])
        for token, jobs in found.items():
            for index, job_id in jobs:
                self.cluster.know(token, index, job_id)
        states = self.cluster.states([job_id for jobs in found.values() for _, job_id in jobs])
        useless = []
        for batch in unsettled:
            ids: list[str | None] = [None] * len(batch.marks)
            for index, job_id in found[batch.token]:
                if index < len(ids) and self.cluster.settle(batch.token, index, job_id, states.get(job_id)):
                    ids[index] = job_id
                else:
                    useless.append(job_id)
            self.ledger.submitted(batch.token, ids)
        self._stop(useless)

    def claims(self, marks: Sequence[Mark]) -> dict[str, Claim]:
        """Of the jobs that are wanted now, those that need not be submitted, by their keys.

        Older jobs with the same outputs that do something else, or were told to stop, are stopped first; so are
        those with some of the outputs.

        Raises:
            SlurmAway: Slurm cannot be asked. TakeoverError: a job does not stop.
        """
        found = {mark: self.ledger.find(mark.key) for mark in marks}
        unwanted = self.ledger.rivals(marks)
        ids = [batch.id(index) for jobs in [*found.values(), unwanted] for batch, index in jobs]
        if not ids:
            return {}
        states = self.cluster.states([job_id for job_id in ids if job_id])
        claims: dict[str, Claim] = {}
        for mark, jobs in found.items():
            for batch, index in jobs:
                state = states.get(batch.id(index) or "")
                if mark.key not in claims and self._fits(batch, index, mark, state):
                    claims[mark.key] = Claim(batch.token, index, batch.id(index))
                else:
                    unwanted.append((batch, index))
        alive = {job_id for job_id, state in states.items() if not state.ended}
        self._stop([job_id for batch, index in unwanted if (job_id := batch.id(index)) in alive and job_id])
        for batch, index in unwanted:
            self.ledger.over(batch.token, [index])
        return claims

    def _forget_cancelled(self) -> None:
        """Be done with jobs that were told to stop and have stopped."""
        jobs = [
            (batch.token, index, batch.id(index))
            for batch in self.ledger.batches.values()
            if batch.cancelled and batch.ids is not None
            for index in batch.open
        ]
        states = self.cluster.states([job_id for _, _, job_id in jobs if job_id]) if jobs else {}
        for token, index, job_id in jobs:
            state = states.get(job_id or "")
            if (state is None or state.ended) and self._result(token, index) is None:
                self.ledger.over(token, [index])

    def _result(self, token: str, index: int) -> results.Result | None:
        return results.read(self.ledger.folder / token / str(index))

    def _fits(self, batch: Batch, index: int, mark: Mark, state: JobState | None) -> bool:
        """Whether an earlier job does what is wanted: it does the same, and runs or has ended well."""
        if batch.marks[index].fingerprint != mark.fingerprint:
            return False
        done = self._result(batch.token, index)
        if done is not None or batch.cancelled:
            return done is not None and done.succeeded and done.intact(self.workdir)
        # One that ended well a moment ago may show its result late; one that failed is run again.
        return state is not None and (not state.ended or state.succeeded)

    def _stop(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        self.cluster.cancel(job_ids)
        left = wait_for_end(self.cluster, job_ids, STOPPING)
        if left:
            raise TakeoverError(
                f"{self.cluster.noun} {left[0]} was told to stop, but still runs after {STOPPING:g} s"
            )
