"""Batches of calls on their way to the cluster: written down first, sent, and sent again where no answer came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .call import RuleCall
from .ledger import Ledger
from .slurm import SlurmAway, SlurmError
from .watch import Absence, Watched


@dataclass
class Batch:
    """Calls that are one submission, the jobs that they belong to, and how often they were sent."""

    calls: Sequence[RuleCall]
    parameters: Mapping[str, Any]
    entries: Sequence[Watched]
    sent: int = 0


class Dispatcher:
    """Sends batches whose intent is in the ledger.

    Attributes:
        unsent: batches that the cluster has not confirmed, by token.
        doubtful: jobs, by token, of batches that were sent more than once: an earlier answer may have been lost,
            or jobs not have shown up yet, and then the cluster has an array too many.
    """

    def __init__(self, cluster: Any, ledger: Ledger, absence: Absence, logger: Any) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.absence = absence
        self.logger = logger
        self.unsent: dict[str, Batch] = {}
        self.doubtful: dict[str, Sequence[str]] = {}

    def send(self, token: str, batch: Batch) -> None:
        """Submit a batch, or keep it until the cluster is back.

        Its jobs have their ids afterwards, or ``refused`` says why they were not accepted.
        """
        self.unsent[token] = batch
        batch.sent += 1
        try:
            ids = self.cluster.submit(token, batch.calls, batch.parameters)
        except SlurmAway as error:
            self.absence.begins(str(error), self.logger)
        except SlurmError as error:
            del self.unsent[token]
            for entry in batch.entries:
                entry.refused = f"Not submitted: {error}"
        else:
            self._confirm(token, ids)

    def send_again(self) -> None:
        """Submit what is still here, unless the cluster has accepted it although its answer was lost; and cancel
        what it has accepted twice."""
        if not (self.unsent or self.doubtful) or not self.absence.may_try():
            return
        try:
            found = self.cluster.find([*self.unsent, *self.doubtful])
            # Without their pickles, these have not begun.
            kept = {job_id for ids in self.doubtful.values() for job_id in ids}
            self.cluster.cancel(
                [job_id for token in self.doubtful for _, job_id in found[token] if job_id not in kept]
            )
            self.doubtful.clear()
        except SlurmError as error:
            self.absence.begins(str(error), self.logger)
            return
        self.absence.ends(self.logger)
        for token, batch in list(self.unsent.items()):
            if not found[token]:
                self.send(token, batch)
                continue
            # Of two arrays the later one: its jobs have waited for their pickles for a shorter time.
            base = max((job_id.partition("_")[0] for _, job_id in found[token]), key=int)
            # Slurm may have forgotten elements of the array that have ended: results tell of them.
            ids = [f"{base}_{index}" for index in range(len(batch.calls))]
            for index, job_id in enumerate(ids):
                self.cluster.place(token, index, job_id)
            self._confirm(token, ids)

    def _confirm(self, token: str, ids: Sequence[str]) -> None:
        batch = self.unsent.pop(token)
        self.ledger.submitted(token, ids)
        if batch.sent > 1:
            self.doubtful[token] = ids
        for entry, job_id in zip(batch.entries, ids, strict=True):
            entry.job_id = entry.info.external_jobid = job_id
        rules = ", ".join(dict.fromkeys(entry.name for entry in batch.entries))
        span = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
        self.logger.info(f"Submitted {len(ids)} job(s) of {rules}: {self.cluster.noun} {span}.")
