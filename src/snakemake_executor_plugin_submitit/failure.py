"""What a user is told about a job that failed: one text that needs no second look-up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .result import Result
from .states import JobState

LINES = 15
TAIL = 64 * 1024


def explain(
    name: str, noun: str, job_id: str, result: Result | None, state: JobState | None, log: Path | None
) -> str:
    """Say which job failed, how, and what its log says last.

    Args:
        name: of the rule. noun: what the job is one of, as `Slurm job`. log: where it wrote, None if nowhere.
    """
    text = f"{noun[0].upper()}{noun[1:]} {job_id} of rule {name}: {how(result, state)}."
    if log is None:
        return f"{text} It wrote no log: can the node see this folder, and write to it?"
    lines = last_lines(log)
    quoted = "".join(f"\n    {line}" for line in lines)
    return f"{text} The end of its log, {log}:{quoted}"


def how(result: Result | None, state: JobState | None) -> str:
    """How a job failed, from its own record and from what Slurm says; either may be missing."""
    if result is not None and not result.succeeded:
        said = result.words if result.reason else f"failed with {result.words}"
        where = f" on {result.node}" if result.node else ""
        # Slurm knows of memory and time what a command that was killed for it does not.
        telling = state is not None and state.ended and state.state not in {"FAILED", "COMPLETED"}
        return f"{state.words} ({said}{where})" if telling and state is not None else f"{said}{where}"
    if state is None:
        return "it is gone, and has left no result"
    if state.succeeded:
        return "it ended without an error, but has left no result"
    return f"{state.words}, and it has left no result" if not state.ended else state.words


def choose_log(candidates: Iterable[Path]) -> Path | None:
    """The first file that holds something, else the first that is there."""
    there = [path for path in candidates if path.is_file()]
    return next((path for path in there if path.stat().st_size), there[0] if there else None)


def last_lines(path: Path, count: int = LINES) -> list[str]:
    """The last lines of a log, without control characters that would upset a terminal."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return [f"(it cannot be read: {error.strerror})"]
    lines = [line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")][-count:]
    return ["".join(char if char.isprintable() or char == "\t" else "?" for char in line) for line in lines]
