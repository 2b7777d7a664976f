"""What was submitted, on disk: so that a Snakemake that was killed finds its jobs when it is started again.

One JSON record a line, on disk before the next step is taken. An intent is written before ``sbatch`` with a token
that the jobs carry as their comment: if Snakemake dies between the two, Slurm is asked who has the token.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

TOKEN = re.compile(r"snakemake-[0-9a-f]{32}")


class LedgerError(RuntimeError):
    """The folder cannot be used; the message is one line."""


@dataclass(frozen=True)
class Mark:
    """A job in the ledger.

    Attributes:
        key: says which job it is: hash of its outputs.
        fingerprint: says whether it is still the same work: hash of its command and inputs.
        name: of the rule, for people.
        files: hashes of its outputs, one by one: jobs with different keys may share some.
    """

    key: str
    fingerprint: str
    name: str
    files: tuple[str, ...] = ()


@dataclass
class Batch:
    """Jobs that were submitted together.

    Attributes:
        token: their comment, and the name of their folder. marks: the jobs, by index.
        ids: their ids in Slurm; None while it is not known whether they were submitted.
        over: indices of jobs that are done with. cancelled: whether they were told to stop.
    """

    token: str
    marks: tuple[Mark, ...]
    ids: list[str | None] | None = None
    over: set[int] = field(default_factory=set)
    cancelled: bool = False

    @property
    def open(self) -> list[int]:
        """Indices of jobs that are not done with."""
        return [index for index in range(len(self.marks)) if index not in self.over]

    def id(self, index: int) -> str | None:
        return None if self.ids is None else self.ids[index]


class Ledger:
    """The ledger of one folder, held by one process at a time.

    Attributes:
        batches: those with jobs that are not done with, by token, oldest first.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder private, take its lock and read it.

        Raises:
            LedgerError: the folder is somebody else's, or another Snakemake uses it.
        """
        self.folder = private_folder(folder)
        self._path = self.folder / "ledger.jsonl"
        try:
            self._lock = _locked(self.folder / "controller.lock")
            self.batches = {token: batch for token, batch in _read(self._path).items() if batch.open}
            self._file = self._compact()
        except OSError as error:
            raise LedgerError(f"the folder {folder} cannot be used: {error.strerror}") from error

    def intend(self, marks: Sequence[Mark]) -> str:
        """Write down that jobs will be submitted; returns the token that they must carry."""
        token = f"snakemake-{uuid.uuid4().hex}"
        self.batches[token] = Batch(token, tuple(marks))
        self._write(_intent(self.batches[token]))
        return token

    def submitted(self, token: str, ids: Sequence[str | None]) -> None:
        """Write down the jobs' ids, None for one that was not submitted after all."""
        self.batches[token].ids = list(ids)
        self._write({"event": "submitted", "token": token, "ids": list(ids)})

    def cancelled(self, tokens: Iterable[str]) -> None:
        """Write down that jobs were told to stop: they may still run for a while, but are not wanted."""
        for token in tokens:
            self.batches[token].cancelled = True
            self._write({"event": "cancelled", "token": token})

    def over(self, token: str, indices: Iterable[int]) -> bool:
        """Write down that jobs are done with; returns whether all of their batch are."""
        new = sorted(set(indices))
        batch = self.batches[token]
        batch.over.update(new)
        self._write({"event": "over", "token": token, "indices": new})
        if batch.open:
            return False
        del self.batches[token]
        return True

    def find(self, key: str) -> list[tuple[Batch, int]]:
        """Jobs with this key that are not done with, newest first."""
        found = [
            (batch, index)
            for batch in self.batches.values()
            for index in batch.open
            if batch.marks[index].key == key
        ]
        return found[::-1]

    def rivals(self, marks: Iterable[Mark]) -> list[tuple[Batch, int]]:
        """Jobs that are none of these, but write some of their outputs, and are not done with.

        A group that had done a part of its work is a smaller group after a restart, with another key.
        """
        marks = list(marks)
        keys = {mark.key for mark in marks}
        files = {file for mark in marks for file in mark.files}
        return [
            (batch, index)
            for batch in self.batches.values()
            for index in batch.open
            if batch.marks[index].key not in keys and not files.isdisjoint(batch.marks[index].files)
        ]

    def close(self) -> None:
        """Release the folder."""
        self._file.close()
        self._lock.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _compact(self) -> IO[str]:
        """Rewrite the file without what is over, in one rename."""
        aside = self._path.with_suffix(".new")
        with open(aside, "w", encoding="utf-8") as file:
            for batch in self.batches.values():
                for record in _records(batch):
                    file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._path)
        return open(self._path, "a", encoding="utf-8")


def private_folder(folder: Path) -> Path:
    """Make a folder that its owner alone may enter; whoever can write there can run code as that user.

    Raises:
        LedgerError: it belongs to somebody else, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise LedgerError(f"the folder {folder} belongs to another user (uid {status.st_uid}): not used")
        if stat.S_IMODE(status.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise LedgerError(f"the folder {folder} cannot be used: {error.strerror}") from error
    return folder.resolve()


def tidy(ledger: Ledger, days: float = 14) -> None:
    """Remove what older runs have left for people to read: folders of batches that are over."""
    for folder in ledger.folder.iterdir():
        if TOKEN.fullmatch(folder.name) and folder.name not in ledger.batches:
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > days * 86400:
                    shutil.rmtree(folder)


def _locked(path: Path) -> IO[str]:
    """Lock a file for as long as this process lives: a killed one leaves nothing behind."""
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        file.close()
        raise LedgerError(f"the folder {path.parent} is in use by {who}") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file


def _read(path: Path) -> dict[str, Batch]:
    """Batches from the file; a line that a crash cut short is skipped, as if it had not been written."""
    batches: dict[str, Batch] = {}
    if not path.exists():
        return batches
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
            _apply(batches, json.loads(line))
    return batches


def _apply(batches: dict[str, Batch], record: dict[str, Any]) -> None:
    token = record["token"]
    # It names a folder that may be removed.
    if not TOKEN.fullmatch(token):
        return
    if record["event"] == "intent":
        batches[token] = Batch(token, tuple(map(_mark, record["jobs"])))
    elif record["event"] == "submitted":
        if len(record["ids"]) == len(batches[token].marks):
            batches[token].ids = list(record["ids"])
    elif record["event"] == "cancelled":
        batches[token].cancelled = True
    elif record["event"] == "over":
        batches[token].over.update(int(index) for index in record["indices"])


def _intent(batch: Batch) -> dict[str, Any]:
    return {"event": "intent", "token": batch.token, "jobs": [asdict(mark) for mark in batch.marks]}


def _mark(job: dict[str, Any]) -> Mark:
    return Mark(job["key"], job["fingerprint"], job["name"], tuple(job.get("files", ())))


def _records(batch: Batch) -> Iterable[dict[str, Any]]:
    yield _intent(batch)
    if batch.ids is not None:
        yield {"event": "submitted", "token": batch.token, "ids": batch.ids}
    if batch.cancelled:
        yield {"event": "cancelled", "token": batch.token}
    if batch.over:
        yield {"event": "over", "token": batch.token, "indices": sorted(batch.over)}
