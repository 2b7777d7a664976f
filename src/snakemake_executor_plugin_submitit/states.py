"""States of Slurm jobs: read from what Slurm prints, and put into words for people."""

from __future__ import annotations

import os
import pwd
import re
import signal as signals
from dataclasses import dataclass

# Requeued jobs wait again; SPECIAL_EXIT is a requeue into a held state.
PENDING = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "UPDATE_DB"}
)
RUNNING = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "POWER_UP_NODE", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}
    | {"SUSPENDED", "EXPEDITING"}
)
ENDED = {
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "time limit reached",
    "DEADLINE": "deadline reached",
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "the node did not boot",
    "LAUNCH_FAILED": "the job could not be launched",
    "PREEMPTED": "preempted",
    "REVOKED": "revoked",
}
# Slurm's "no reason", and reasons that only repeat the state.
EMPTY_REASONS = frozenset({"", "NonZeroExitCode", "RaisedSignal", "TimeLimit"})
# A cancelled job keeps the reason why it waited; these tell why it was cancelled.
BEFORE_START = "before it started"
FORGOTTEN = "before it started, or ended long ago"
CANCEL_REASONS = frozenset({"DependencyNeverSatisfied", BEFORE_START, FORGOTTEN})


@dataclass(frozen=True)
class JobState:
    """What Slurm knows about one job.

    Attributes:
        id: `123`, or `123_4` for an element of an array.
        state: Slurm's own word, as `RUNNING`.
        reason: why it waits or ended, in Slurm's words; may be empty.
        exit_code: exit status of an ended job, None if it has none. signal: that ended it, None if none did.
        node: the nodes it runs or ran on; may be empty.
        by: the user id of who cancelled it, None if not known.
    """

    id: str
    state: str
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    node: str = ""
    by: int | None = None

    @property
    def pending(self) -> bool:
        """It waits, for the first time or again."""
        return self.state in PENDING

    @property
    def running(self) -> bool:
        """It has nodes, and may still change files."""
        return self.state in RUNNING

    @property
    def ended(self) -> bool:
        """It is over and will not run again by itself."""
        return self.state in ENDED

    @property
    def succeeded(self) -> bool:
        """It is over and Slurm found nothing wrong. Whether the job's work was done, its result says."""
        return self.state == "COMPLETED" and not self.exit_code and not self.signal

    @property
    def unknown(self) -> bool:
        """Slurm's word is not one of those we know: neither success nor failure."""
        return not (self.pending or self.running or self.ended)

    @property
    def held(self) -> bool:
        """It waits for a person: held by a user or an administrator, or after a launch that failed."""
        return self.pending and "held" in self.reason.lower()

    @property
    def words(self) -> str:
        """The state for people, as `out of memory`."""
        if self.pending or self.running:
            word = "waiting" if self.pending else self.state.lower().replace("_", " ")
            where = f" on {self.node}" if self.running and self.node else ""
            return f"{word}{where}{self._because()}"
        if self.unknown:
            return f"in a state that is not known, {self.state}{self._because()}"
        if self.state == "FAILED" or (self.state == "COMPLETED" and not self.succeeded):
            return self._failure()
        if self.state == "CANCELLED":
            who = "" if self.by is None else f" by {user(self.by)}"
            return f"cancelled{who}{self._because() if self.reason in CANCEL_REASONS else ''}"
        if self.state == "NODE_FAIL" and self.node:
            return f"node failure ({self.node})"
        return ENDED[self.state]

    def _because(self) -> str:
        reason = self.reason.strip("()")
        return "" if reason in EMPTY_REASONS else f" ({reason.replace('_', ' ')})"

    def _failure(self) -> str:
        if re.fullmatch(r"out_?of_?memory", self.reason, re.IGNORECASE):
            return "out of memory"
        if self.signal:
            return f"killed by {signal_name(self.signal)}"
        code = self.exit_code
        if code and 128 < code < 128 + signals.NSIG:
            return f"failed with exit code {code}, killed by {signal_name(code - 128)}"
        if code:
            return f"failed with exit code {code}"
        return f"failed{self._because()}"


def signal_name(number: int) -> str:
    """A signal for people. Slurm without control groups kills a job over its memory limit by signal 9 and
    reports no more than that."""
    try:
        name = signals.Signals(number).name
    except ValueError:
        name = ""
    notes = {signals.SIGKILL: "out of memory?"}
    note = notes.get(number, name)
    return f"signal {number} ({note})" if note else f"signal {number}"


def user(uid: int) -> str:
    """A user for people, as `uid 1000 (ana)`."""
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"


def from_squeue(line: str) -> JobState | None:
    """Read a line of ``squeue -h -r -O`` with the fields of `slurm.SQUEUE_FIELDS`; None for any other line."""
    fields = [field.strip() for field in line.split("|", 5)]
    if len(fields) != 6 or not fields[0].isdigit():
        return None
    base, task, state, status, node, reason = fields
    job_id = f"{base}_{task}" if task.isdigit() else base
    code, signal = wait_status(status) if state in ENDED else (None, None)
    return JobState(job_id, state, _meaning(reason.removesuffix("|").strip()), code, signal, _meaning(node))


def from_sacct(line: str) -> list[JobState]:
    """Read a line of ``sacct -n -P -X`` with the fields of `slurm.SACCT_FIELDS`: one job, or the elements of an
    array that have not started, which share a line; none for any other line."""
    fields = line.split("|", 4)
    match = re.fullmatch(r"(\d+)(?:_(\d+|\[.*\]))?", fields[0])
    if len(fields) != 5 or not match:
        return []
    base, tasks = match.groups()
    _, words, status, node, reason = fields
    state, _, by = words.partition(" by ")
    code, signal = wait_status(status) if state in ENDED else (None, None)
    who = int(by) if by.isdigit() else None
    ids = [base] if tasks is None else [f"{base}_{task}" for task in indices(tasks)]
    return [JobState(one, state, _meaning(reason), code, signal, _meaning(node), who) for one in ids]


def indices(text: str) -> list[int]:
    """The indices in an array's notation, as `[1,4-8:2%10]`."""
    found: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = match[1], match[2] or match[1], match[3] or "1"
            found += range(int(first), int(last) + 1, int(step))
    return found


def wait_status(text: str) -> tuple[int | None, int | None]:
    """Exit code and signal: ``squeue`` prints the status of wait(2), ``sacct`` `code:signal`.

    Returns:
        The exit code, None after a signal or where there is none; the signal, None without.
    """
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        code, signal = int(match[1]), int(match[2])
    elif text.isdigit() and int(text) < 1 << 16:
        status = int(text)
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = 0 if signal else os.WEXITSTATUS(status)
    else:
        return None, None
    return (None, signal) if signal else (code, None)


def _meaning(text: str) -> str:
    return "" if text in {"(null)", "None assigned", "N/A", "None"} else text
