"""What Slurm says about jobs, through its own commands: one call for all jobs, never one a job.

The commands are asked for fields that a user cannot fill with separators or newlines, and their time is
limited: with its controller dead a Slurm command hangs for as long as the site has told it to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from .states import BEFORE_START, FORGOTTEN, JobState, from_sacct, from_squeue

# squeue knows an ended job for MinJobAge seconds (300 by default), so most polls need no sacct.
SQUEUE_FIELDS = "ArrayJobID:24|,ArrayTaskID:24|,State:24|,exit_code:16|,NodeList:256|,Reason:256|"
SACCT_FIELDS = "JobID,State,ExitCode,NodeList,Reason"
# Comments are looked up for jobs as old as this: whoever resumes after longer finds the ledger's own records.
COMMENT_DAYS = 30
# Users set these for their own reading; they would filter or reformat what we read, or ask questions.
PERSONAL = re.compile(r"^(SQUEUE|SACCT|SCANCEL|SINFO)_")
AWAY = re.compile(
    r"unable to contact|connect(ion)? (failure|refused|reset|error)|timed out|zero bytes|not connected"
    r"|standby mode|temporarily|try again|munge|unreachable|no route to host|slurm_persist_conn|slurmdbd",
    re.IGNORECASE,
)


class SlurmError(Exception):
    """A command of Slurm failed; the message is one line."""


class SlurmAway(SlurmError):
    """slurmctld (or, for what only it knows, slurmdbd) cannot be reached now; it may come back."""


def available() -> bool:
    """Whether jobs can be submitted from this machine: ``sbatch`` is on PATH."""
    return shutil.which("sbatch") is not None


class Slurm:
    """A client of the Slurm that the environment points at.

    Args:
        timeout: seconds after which a command counts as unanswered.

    Attributes:
        calls: how often each command ran.
        status_calls: how many of them asked for the states of jobs.
        submit_calls: how many ``sbatch`` calls there were, counted by whoever submits.
    """

    def __init__(self, timeout: float = 20) -> None:
        self.timeout = timeout
        self.calls: Counter[str] = Counter()
        self.status_calls = 0
        self.submit_calls = 0
        self._config: dict[str, str] | None = None

    def states(self, job_ids: Iterable[str]) -> dict[str, JobState]:
        """The states of jobs, by ``squeue``; and one ``sacct``, where accounting is on, for jobs that ``squeue``
        no longer knows and for those that somebody cancelled (only ``sacct`` knows who).

        Args:
            job_ids: as `123`, or `123_4` for an element of an array.

        Returns:
            What is known of each job. A job that Slurm does not know is missing; one that slurmdbd would
            know, were it there, has the state `UNKNOWN`.

        Raises:
            SlurmAway: slurmctld cannot be reached.
        """
        wanted = list(dict.fromkeys(job_ids))
        if not wanted:
            return {}
        found = {job.id: job for job in self._squeue()}
        known = {job_id: found[job_id] for job_id in wanted if job_id in found}
        arrays = dict.fromkeys((_base(job_id) for job_id in found), FORGOTTEN)
        unclear = [job_id for job_id in wanted if job_id not in known or known[job_id].state == "CANCELLED"]
        if unclear and self.accounting():
            recorded = self._sacct(unclear)
            for job_id in unclear:
                # slurmdbd lags behind: what it still calls running does not overrule a job's end.
                if job_id in recorded and (job_id not in known or recorded[job_id].ended):
                    known[job_id] = recorded[job_id]
            arrays |= dict.fromkeys((_base(job_id) for job_id in recorded), BEFORE_START)
        for job_id in wanted:
            # An element that is cancelled while it waits vanishes, whereas the rest of its array is there.
            if job_id not in known and "_" in job_id and _base(job_id) in arrays:
                known[job_id] = JobState(job_id, "CANCELLED", arrays[_base(job_id)])
        return {job_id: known[job_id] for job_id in wanted if job_id in known}

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs in one call; those that have ended already are no error.

        Raises:
            SlurmAway: slurmctld cannot be reached. SlurmError: Slurm refuses.
        """
        names = compressed(job_ids)
        if names:
            self._run("scancel", "--quiet", *names, forgive=_only_gone)

    def find_by_comment(self, tokens: Iterable[str]) -> dict[str, list[str]]:
        """Jobs that were submitted with ``--comment=token``, ended ones too while Slurm still knows them.

        ``sacct`` is asked, where accounting is on, for tokens that ``squeue`` does not have; it knows comments
        only on a site with ``AccountingStoreFlags=job_comment``.

        Returns:
            For each token its jobs, `123_4` for elements of arrays; an empty list where there is none.

        Raises:
            SlurmAway: slurmctld cannot be reached, or slurmdbd for a token that ``squeue`` does not have.
        """
        found: dict[str, list[str]] = {token: [] for token in tokens}
        if not found:
            return found
        text = self._run("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%k")
        _collect(text, found)
        missing: dict[str, list[str]] = {token: [] for token, jobs in found.items() if not jobs}
        if missing and self.accounting():
            since = f"now-{COMMENT_DAYS}days"
            who = ("-u", str(os.getuid()), "-S", since)
            _collect(self._run("sacct", "-n", "-P", "-X", *who, "-o", "JobID,Comment"), missing)
            found |= missing
        return found

    def max_array_size(self) -> int:
        """One more than the highest index that an array may have, so the most elements it may have."""
        value = self.config().get("MaxArraySize", "")
        return int(value) if value.isdigit() else 1001

    def accounting(self) -> bool:
        """Whether ``sacct`` has something to say here."""
        value = self.config().get("AccountingStorageType", "")
        return value.startswith("accounting_storage/") and not value.endswith(("/none", "/filetxt"))

    def partitions(self) -> list[str]:
        """The partitions that there are, in Slurm's order."""
        return list(dict.fromkeys(self._run("sinfo", "-h", "-a", "-o", "%R").split()))

    def config(self) -> dict[str, str]:
        """Slurm's configuration, asked for once."""
        if self._config is None:
            pairs = (line.partition("=") for line in self._run("scontrol", "show", "config").splitlines())
            self._config = {key.strip(): value.strip() for key, equals, value in pairs if equals}
        return self._config

    def _squeue(self) -> list[JobState]:
        """All jobs of this user: one light request, whereas ``-j`` with one id that is gone is an error."""
        self.status_calls += 1
        arguments = ("-h", "-r", "-t", "all", "-u", str(os.getuid()), "-O", SQUEUE_FIELDS)
        return list(filter(None, map(from_squeue, self._run("squeue", *arguments).splitlines())))

    def _sacct(self, job_ids: list[str]) -> dict[str, JobState]:
        """What slurmdbd knows of these jobs and of the other elements of their arrays."""
        self.status_calls += 1
        bases = ",".join(dict.fromkeys(_base(job_id) for job_id in job_ids))
        try:
            text = self._run("sacct", "-n", "-P", "-X", "-j", bases, "-o", SACCT_FIELDS)
        except SlurmAway as error:
            return {one: JobState(one, "UNKNOWN", str(error)) for one in job_ids}
        return {job.id: job for line in text.splitlines() for job in from_sacct(line)}

    def _run(self, *command: str, forgive: Callable[[str], bool] = lambda text: False) -> str:
        """Run one command and return its output.

        Args:
            forgive: whether a failure with this text on stderr is none.
        """
        name = command[0]
        self.calls[name] += 1
        variables = {key: value for key, value in os.environ.items() if not PERSONAL.match(key)}
        variables["SLURM_BITSTR_LEN"] = "0"  # indices of arrays in full
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout,
                env=variables,
            )
        except FileNotFoundError as error:
            raise SlurmError(f"{name} is not on PATH: is this a machine of the cluster?") from error
        except subprocess.TimeoutExpired as error:
            raise SlurmAway(f"{name} did not answer within {self.timeout:g} s") from error
        if done.returncode == 0 or forgive(done.stderr):
            return done.stdout
        raise failure(name, done.returncode, done.stderr)


def failure(name: str, status: int, text: str) -> SlurmError:
    """The exception for what a failed command wrote to stderr."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kind = SlurmAway if AWAY.search(text) else SlurmError
    said = re.sub(r"^(\w+: )?(error|fatal): ", "", lines[-1]) if lines else f"exit status {status}"
    return kind(f"{name}: {said}")


def compressed(job_ids: Iterable[str]) -> list[str]:
    """Names for ``scancel``: elements of one array together, as `123_[0,1,5]`, since each name is one request."""
    elements: dict[str, list[str]] = defaultdict(list)
    for job_id in dict.fromkeys(job_ids):
        base, _, task = job_id.partition("_")
        elements[base].append(task)
    names = []
    for base, tasks in elements.items():
        numbers = sorted((task for task in tasks if task), key=int)
        names += [base] if "" in tasks else [f"{base}_[{','.join(numbers)}]"]
    return names


def _base(job_id: str) -> str:
    return job_id.partition("_")[0]


def _only_gone(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return all(re.search(r"invalid job id|already complet", line, re.IGNORECASE) for line in lines)


def _collect(text: str, found: dict[str, list[str]]) -> None:
    for line in text.splitlines():
        job_id, _, comment = line.partition("|")
        if comment in found:
            found[comment].append(job_id)
