"""The record that a job leaves behind when its command has ended: JSON, whole or not there at all."""

from __future__ import annotations

import json
import os
import signal as signals
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

NAME = "done.json"


@dataclass(frozen=True)
class Output:
    """What became of a declared output: its kind (`file`, `folder` or `missing`), and a file's size in bytes."""

    path: str
    kind: str
    size: int = 0


@dataclass(frozen=True)
class Result:
    """How a job's command ended.

    Attributes:
        exit_code: its exit status, None if a signal ended it or it never ran. signal: that signal.
        reason: why it failed, where the status does not say it; else empty.
        started, ended: seconds since 1970. node: where it ran.
        outputs: the rule's outputs as they were at the end.
    """

    exit_code: int | None
    signal: int | None = None
    reason: str = ""
    started: float = 0.0
    ended: float = 0.0
    node: str = ""
    outputs: tuple[Output, ...] = field(default=())

    @property
    def succeeded(self) -> bool:
        """The command ran and found nothing wrong."""
        return self.exit_code == 0 and not self.reason

    @property
    def words(self) -> str:
        """How it ended, for people."""
        if self.reason:
            return self.reason
        if self.signal is not None:
            return f"signal {self.signal} ({signals.Signals(self.signal).name})"
        return f"exit code {self.exit_code}"

    def intact(self, workdir: Path) -> bool:
        """Whether all outputs that the job left are still there as it left them."""
        there = [output for output in self.outputs if output.kind != "missing"]
        return all(look(workdir, output.path) == output for output in there)


def look(workdir: Path, path: str) -> Output:
    """What is at ``path`` now."""
    try:
        status = os.stat(workdir / path)
    except OSError:
        return Output(path, "missing")
    if stat.S_ISDIR(status.st_mode):
        return Output(path, "folder")
    return Output(path, "file", status.st_size)


def write(folder: Path, result: Result, name: str = NAME) -> None:
    """Write the record in one rename, and see it to the disk first."""
    aside = folder / f".{name}.{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(asdict(result), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / name)


def read(folder: Path, name: str = NAME) -> Result | None:
    """The record of a job, or None if there is none, or none that can be read: never a success by mistake."""
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        outputs = tuple(Output(**output) for output in data.pop("outputs"))
        result = Result(**data, outputs=outputs)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    numbers = (result.exit_code, result.signal)
    return result if all(number is None or type(number) is int for number in numbers) else None


def outputs_now(workdir: Path, paths: Iterable[str]) -> tuple[Output, ...]:
    """Look at each of ``paths``."""
    return tuple(look(workdir, path) for path in paths)
