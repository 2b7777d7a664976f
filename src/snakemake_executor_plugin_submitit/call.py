"""What is submitted: a callable that runs one job's command and records how it ended.

It is importable and stateless: whatever a second start of the job needs is in the job's folder. Slurm may start
a job again (a node failed, a job with a higher priority came), and `checkpoint` hands submitit a fresh copy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NoReturn

from . import result as results
from .benchmark import Benchmark
from .process import Child
from .ranks import Place, seconds_left
from .result import Result

RESUMABLE = 75
"""Exit status (EX_TEMPFAIL) of a command that was told to stop and can go on where it was."""
RANK = "@SUBMITIT-RANK@"
"""Stands for the number of the task in the command of tasks other than the first."""
THREADS = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
PATIENCE = 600
"""Seconds for the other tasks to end after the first has."""
SIGNAL_LAG = 2.0
"""Seconds in which all processes of a job get a signal that is meant for all."""
LONGEST = 100_000
"""Characters of one argument of a command; Linux allows 128 KiB."""


@dataclass
class RuleCall:
    """The command of one job.

    Attributes:
        name: of the rule, for people.
        argv: the command. peer_argv: the same for tasks other than the first, with `RANK` in it.
        folder: the job's own folder, which exists. workdir: where the command runs.
        variables: of its environment, beside those that are there. threads: None leaves theirs alone.
        inputs: files to wait for, at most latency seconds.
        outputs: files to look at afterwards.
        clears: files and (True) folders to remove first, and whose folders to make.
        benchmark: file to write a benchmark to.
        no_checkpoint: `requeue` or `fail`, for a job that is stopped without a checkpoint.
        time_limit: in seconds, None if not known. signal_before: seconds of warning.
        wrapped: whether the command is a Snakemake, which hides the exit status of the rule's own.
    """

    name: str
    argv: tuple[str, ...]
    folder: str
    workdir: str
    peer_argv: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    inputs: tuple[str, ...] = ()
    latency: float = 5
    outputs: tuple[str, ...] = ()
    clears: tuple[tuple[str, bool], ...] = ()
    benchmark: str | None = None
    no_checkpoint: str = "requeue"
    time_limit: float | None = None
    signal_before: float = 90
    wrapped: bool = False

    # submitit may call `checkpoint` before `__call__` has begun: nothing runs then.
    _child: ClassVar[Child | None] = None

    def __call__(self) -> NoReturn:
        """Run the command in this task of the job, and exit with its status.

        It exits, rather than return or raise, so that submitit pickles no result and Slurm sees the status.
        """
        self._place = Place.here()
        self._began = time.time()
        self._child = None
        self._benchmark: Benchmark | None = None
        self._terminated = self._warned = False
        before = self._listen()
        try:
            if done := results.read(Path(self.folder)):
                _say(f"{self.name} has run before: nothing to do")
                _leave(done)
            if self._done_with():
                _say(f"{self.name} is done with, its folder is gone: nothing to do")
                sys.exit(0)
            self._lead() if self._place.leads else self._follow()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def checkpoint(self):
        """Ask the command for a checkpoint; submitit calls it in a signal handler of the first task.

        Returns:
            A submission of a fresh copy: the job is requeued. It exits instead where the job is over.
        """
        from submitit.helpers import DelayedSubmission

        resumable = True
        warned = time.time()
        if self._child is not None:
            status, deadline = None, time.monotonic() + 0.8 * self.signal_before
            while status is None and time.monotonic() < deadline:
                # Again and again: a command that has just begun may not listen yet.
                self._child.signal(signal.SIGUSR2)
                status = self._child.wait_until(min(deadline, time.monotonic() + 2))
            resumable = status == RESUMABLE or (self.wrapped and bool(status))
            if status is not None and not resumable:
                self._finish(status)
            if status is None:
                self._child.stop()
        # Another run from the start would reach the same limit again.
        late = not resumable and self._at_time_limit(warned)
        if not resumable and (late or self.no_checkpoint == "fail"):
            why = "time limit reached" if late else "preempted"
            _leave(self._record(reason=f"{why}, and the command wrote no checkpoint"))
        if resumable and self._child is not None:
            self._others_failed(time.monotonic() + 0.1 * self.signal_before)
            self._mark("checkpointed")
        self._forget_tasks()
        _say(f"{self.name} is requeued, to {'go on where it was' if resumable else 'start again'}")
        return DelayedSubmission(replace(self))

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def _done_with(self) -> bool:
        """Whether Snakemake has accepted the outputs and removed the record: Slurm may still start the job again.

        A file is made to find out, as a file system of many nodes may answer any question from memory.
        """
        try:
            self._mark(f"seen-{self._place.rank}")
        except OSError as error:
            return error.errno in {errno.ENOENT, errno.ESTALE}
        return False

    def _listen(self) -> dict[int, object]:
        """Pass signals on to the command; the handlers that were there before are returned."""
        if self._place.cluster == "debug" or threading.current_thread() is not threading.main_thread():
            return {}
        handlers = {signal.SIGTERM: self._on_term, signal.SIGINT: self._on_interrupt}
        if not self._place.leads:
            # submitit calls `checkpoint` in the first task only; the others' commands hear of it too.
            handlers[signal.SIGUSR2] = self._on_warning
        return {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def _on_term(self, number: int, frame: object) -> None:
        """Somebody cancels or preempts the job: which of the two, Slurm will say. There will be no record."""
        self._terminated = True
        if self._child is not None:
            self._child.signal(signal.SIGTERM)

    def _on_interrupt(self, number: int, frame: object) -> None:
        """submitit's local executor gives one second before it kills this process, but not the command's."""
        self._terminated = True
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    def _on_warning(self, number: int, frame: object) -> None:
        self._warned = True
        if self._child is not None:
            self._child.signal(signal.SIGUSR2)

    def _lead(self) -> NoReturn:
        """Run the command in the first or only task, and write the record."""
        if self._place.restart and self.no_checkpoint == "fail" and not self._marked("checkpointed"):
            _leave(self._record(reason="stopped by Slurm (preempted, or its node failed) without a checkpoint"))
        try:
            self._forget_tasks()
            self._prepare()
            self._mark(f"ready-{self._place.restart}")
            self._start(self.argv)
        except OSError as error:
            _leave(self._record(reason=f"could not start: {error}"))
        if self.benchmark is not None:
            self._benchmark = Benchmark(self._child.pid)
        tick = self._watch if self._benchmark is not None or self._place.size > 1 else None
        try:
            status = self._child.wait(tick)
        except TaskFailed as error:
            self._child.stop()
            _leave(self._record(reason=str(error)))
        self._finish(status)

    def _follow(self) -> NoReturn:
        """Run the command in one of the other tasks; the first one reads how it ended."""
        deadline = time.monotonic() + 300
        while not self._marked(f"ready-{self._place.restart}"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the first task of {self.name} did not begin within 5 minutes")
            time.sleep(0.1)
        # A log of its own, beside the job's.
        (Path(self.folder) / f"rank-{self._place.rank}").mkdir(exist_ok=True)
        self._start([word.replace(RANK, str(self._place.rank)) for word in self.peer_argv])
        status = self._child.wait()
        results.write(Path(self.folder), _result(status, began=self._began), self._task_record(self._place.rank))
        # A task that stopped with a checkpoint must not bring down the first before that has requeued the job.
        sys.exit(0 if self._warned and status == RESUMABLE else _exit_status(status))

    def _start(self, argv) -> None:
        variables = dict(os.environ) | dict(self.variables)
        if self.threads is not None:
            variables |= dict.fromkeys(THREADS, str(self.threads))
        self._child = Child(self._short(argv), self.workdir, variables | self._place.variables())
        if self._terminated:
            self._child.signal(signal.SIGTERM)

    def _short(self, argv) -> list[str]:
        """The command; a shell's text that is too long for one argument goes into a file."""
        if len(argv) == 3 and argv[1] == "-c" and len(argv[2].encode()) > LONGEST:
            script = Path(self.folder) / f"command-{self._place.rank}.sh"
            script.write_text(argv[2], encoding="utf-8")
            return [argv[0], str(script)]
        return list(argv)

    def _prepare(self) -> None:
        """Wait for the inputs, and clear the way for the outputs, as Snakemake does before it runs a job."""
        workdir = Path(self.workdir)
        deadline = time.monotonic() + self.latency
        for path in self.inputs:
            while not os.path.lexists(workdir / path):
                if time.monotonic() > deadline:
                    where = socket.gethostname()
                    raise FileNotFoundError(f"input {path!r} is not there on {where} after {self.latency:g} s")
                time.sleep(0.2)
        for path, is_folder in self.clears:
            target = workdir / path
            if target.is_dir() and not target.is_symlink():
                if is_folder:
                    shutil.rmtree(target)
                else:
                    with contextlib.suppress(OSError):
                        target.rmdir()
            else:
                target.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)

    def _watch(self) -> None:
        if self._benchmark is not None:
            self._benchmark.sample()
        if failed := self._others_failed():
            raise TaskFailed(failed)

    def _finish(self, status: int) -> NoReturn:
        """The command has ended: write the record, unless Slurm ended the job, which then says why."""
        if status != 0:
            # Slurm may signal the command first and this process a moment later: not the command's fault.
            until = time.monotonic() + SIGNAL_LAG
            while not self._terminated and time.monotonic() < until:
                time.sleep(0.1)
        if self._terminated and status != 0:
            if status == RESUMABLE:
                self._mark("checkpointed")
            sys.exit(_exit_status(status))
        reason = ""
        if status == 0:
            reason = self._others_failed(time.monotonic() + PATIENCE, final=True) or ""
            if self._benchmark is not None and not reason:
                self._benchmark.write(Path(self.workdir) / str(self.benchmark))
        _leave(self._record(status, reason))

    def _record(self, status: int | None = None, reason: str = "") -> Result:
        outputs = results.outputs_now(Path(self.workdir), self.outputs)
        done = _result(status, reason, self._began, outputs)
        results.write(Path(self.folder), done)
        return done

    def _others_failed(self, deadline: float = 0, final: bool = False) -> str | None:
        """Say which other task failed, waiting for all to end until ``deadline``; None if none has.

        Args:
            final: whether the job is over, so that none may still run or want to go on later.
        """
        waiting = set(range(1, self._place.size))
        while waiting:
            for rank in sorted(waiting):
                done = results.read(Path(self.folder), self._task_record(rank))
                if done is None:
                    continue
                waiting.discard(rank)
                if not done.succeeded and (final or done.exit_code != RESUMABLE):
                    return f"task {rank} of {self._place.size} failed with {done.words}"
            if waiting and time.monotonic() >= deadline:
                return f"task {min(waiting)} still ran {PATIENCE} s after the first" if final else None
            time.sleep(0.2)
        return None

    def _at_time_limit(self, warned: float) -> bool:
        """Whether a warning at this time was that of the time limit, which Slurm may give a minute too early."""
        if self.time_limit is None:
            return seconds_left(self._place) + time.time() - warned <= self.signal_before + 65
        left = self._began + self.time_limit - warned
        return left <= self.signal_before + min(65, self.time_limit / 4)

    def _task_record(self, rank: int) -> str:
        return f"rank-{rank}-{self._place.restart}.json"

    def _forget_tasks(self) -> None:
        """Remove what an earlier start left for the tasks to see, so that none takes it for this one's."""
        for old in [*Path(self.folder).glob("ready-*"), *Path(self.folder).glob("rank-*.json")]:
            old.unlink(missing_ok=True)

    def _mark(self, name: str) -> None:
        (Path(self.folder) / name).touch()

    def _marked(self, name: str) -> bool:
        return (Path(self.folder) / name).exists()


class TaskFailed(Exception):
    """Another task of the job failed."""


def _result(status: int | None, reason: str = "", began: float = 0, outputs=()) -> Result:
    """The record for an exit status, negative for a signal."""
    exit_code = status if status is not None and status >= 0 else None
    number = -status if status is not None and status < 0 else None
    return Result(exit_code, number, reason, began, time.time(), socket.gethostname(), tuple(outputs))


def _exit_status(status: int) -> int:
    """As a shell would say it."""
    return status if status >= 0 else 128 - status


def _leave(done: Result) -> NoReturn:
    if done.succeeded:
        sys.exit(0)
    if done.reason:
        _say(done.reason)
    sys.exit(done.exit_code or (128 + done.signal if done.signal else 1))


def _say(text: str) -> None:
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}", file=sys.stderr, flush=True)
