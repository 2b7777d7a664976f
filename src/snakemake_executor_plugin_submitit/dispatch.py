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
    """Calls that are one submission, and the jobs that they belong to."""

    calls: Sequence[RuleCall]
    parameters: Mapping[str, Any]
    entries: Sequence[Watched]


class Dispatcher:
    """Sends batches whose intent is in the ledger.

    Attributes:
        unsent: batches that the cluster has not confirmed, by token.
    """

    def __init__(self, cluster: Any, ledger: Ledger, absence: Absence, logger: Any) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.absence = absence
        self.logger = logger
        self.unsent: dict[str, Batch] = {}

    def send(self, token: str, batch: Batch) -> None:
        """Submit a batch, or keep it until the cluster is back.

        Its jobs have their ids afterwards, or ``refused`` says why they were not accepted.
        """
        self.unsent[token] = batch
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
        """Submit what is still here, unless the cluster has accepted it although its answer was lost."""
        if not self.unsent or not self.absence.may_try():
            return
        try:
            found = self.cluster.find(list(self.unsent))
            states = self.cluster.states([job_id for jobs in found.values() for _, job_id in jobs])
        except SlurmError as error:
            self.absence.begins(str(error), self.logger)
            return
        self.absence.ends(self.logger)
        for token, batch in list(self.unsent.items()):
            ids = dict(found[token])
            if not ids:
                self.send(token, batch)
                continue
            for index, job_id in ids.items():
                self.cluster.settle(token, index, job_id, states.get(job_id))
            # Slurm may have forgotten elements of the array that have ended: results tell of them.
            base = next(iter(ids.values())).partition("_")[0]
            self._confirm(token, [ids.get(index, f"{base}_{index}") for index in range(len(batch.calls))])

    def _confirm(self, token: str, ids: Sequence[str]) -> None:
        batch = self.unsent.pop(token)
        self.ledger.submitted(token, ids)
        for entry, job_id in zip(batch.entries, ids, strict=True):
            entry.job_id = entry.info.external_jobid = job_id
        rules = ", ".join(dict.fromkeys(entry.name for entry in batch.entries))
        span = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
        self.logger.info(f"Submitted {len(ids)} job(s) of {rules}: {self.cluster.noun} {span}.")
