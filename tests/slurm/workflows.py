"""Small workflows that run through the plugin on the test cluster, and leave a trace of what ran."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster import Cluster, wait_until

from snakemake_executor_plugin_submitit.slurm import JobState, Slurm

TIMEOUT = 200
"""Seconds after which a Snakemake is killed: a hanging one must not hang the suite."""
QUICK = ("--submitit-poll-interval", "1", "--submitit-grace", "5", "--latency-wait", "10")
# A job says when it begins and when it has ended: what begins twice without a reason ran twice.
TRACE = "echo begin-{{rule}}{wildcards} >>ran; {command}; echo end-{{rule}}{wildcards} >>ran; touch {{output}}"


def traced(name: str, command: str = "true", wildcard: str = "", **parts: str) -> str:
    """A rule that leaves a trace in the file `ran`.

    Args:
        command: of the shell, before the output is made. wildcard: name of one that the output has.
        parts: further sections, as `resources="mem_mb=200"`; `threads="2"`.
    """
    output = f"{name}-{{{wildcard}}}.out" if wildcard else f"{name}.out"
    shell = TRACE.format(wildcards=f"-{{wildcards.{wildcard}}}" if wildcard else "", command=command)
    sections = {"output": repr(output), **parts, "shell": repr(shell)}
    return f"rule {name}:\n" + "".join(f"    {key}: {value}\n" for key, value in sections.items()) + "\n"


class Workflow:
    """A Snakefile in a folder of its own.

    Args:
        rules: the text of the rules; the rule `all` wants ``targets``.
    """

    def __init__(self, folder: Path, cluster: Cluster, rules: str, targets: Sequence[str]) -> None:
        self.folder = folder
        self.cluster = cluster
        folder.mkdir(exist_ok=True)
        (folder / "Snakefile").write_text(f"rule all:\n    input: {list(targets)!r}\n\n{rules}")
        self.bin = folder / "bin"
        self.bin.mkdir(exist_ok=True)
        self.count("sbatch")

    def count(self, *names: str, before: str = "", after: str = "") -> None:
        """Put wrappers of Slurm's commands before them on PATH, which log their calls.

        Args:
            before, after: shell commands around the real one.
        """
        for name in names:
            real = f'{shutil.which(name)} "$@"'
            path = self.bin / name
            path.write_text(
                f"#!/bin/bash\necho {name} >>{self.folder}/calls\n{before}\n{real}\nr=$?\n{after}\nexit $r\n"
            )
            path.chmod(0o755)

    def calls(self) -> Counter[str]:
        """How often each command of `count` was called."""
        path = self.folder / "calls"
        return Counter(path.read_text().split() if path.exists() else [])

    def command(self, *options: str) -> list[str]:
        """The command line of Snakemake."""
        common = ("--jobs", "100", "--cores", "16", "--nolock", "--rerun-incomplete")
        where = ("--executor", "submitit", "--submitit-cluster", "slurm")
        return [sys.executable, "-m", "snakemake", *where, *common, *QUICK, *options]

    def start(self, *options: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start Snakemake; its output, both streams together, goes to `output`."""
        variables = os.environ | self.cluster.environment()
        variables |= {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*prefix, *self.command(*options)],
                cwd=self.folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def finish(self, process: subprocess.Popen[bytes], timeout: float = TIMEOUT) -> int:
        """Wait for Snakemake's exit status; it is killed when that takes too long."""
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"Snakemake did not end within {timeout} s:\n{self.output()}") from None

    def run(self, *options: str, prefix: Sequence[str] = (), timeout: float = TIMEOUT) -> int:
        """Run Snakemake and return its exit status."""
        return self.finish(self.start(*options, prefix=prefix), timeout)

    def output(self) -> str:
        """What all Snakemakes here have printed so far."""
        return (self.folder / "log").read_text(errors="replace")

    def told(self, rule: str) -> str:
        """What the user was told about the one failed job of a rule."""
        blocks = re.split(r"\n(?=\[|Error in rule|rule |localrule )", self.output())
        found = [block for block in blocks if block.startswith(f"Error in rule {rule}:")]
        assert len(found) == 1, self.output()
        return found[0]

    def ran(self) -> Counter[str]:
        """How often each job began (`begin-NAME`) and ended (`end-NAME`)."""
        path = self.folder / "ran"
        return Counter(path.read_text().split() if path.exists() else [])

    def wait_for(self, *marks: str, seconds: float = 60) -> None:
        """Wait until these marks are in `ran`."""
        wait_until(lambda: set(marks) <= self.ran().keys(), f"{marks}", seconds, self.output)

    def check_all_ran_once(self, names: Sequence[str], seconds: float = 10) -> None:
        """All these jobs and no others began and ended once, their outputs are there, and no job is left."""
        expected = Counter(f"{word}-{name}" for name in names for word in ("begin", "end"))
        assert self.ran() == expected, self.output()
        assert all((self.folder / f"{name}.out").exists() for name in names)
        self.check_nothing_left(seconds)

    def check_nothing_left(self, seconds: float = 10) -> None:
        """No job is in the queue; one may still be ending, for at most ``seconds``."""
        wait_until(lambda: not self.cluster.jobs_left(), "the queue to be empty", seconds, self.output)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a Snakemake as the kernel would, out of memory."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def pause(seconds: float) -> None:
    """Let time pass, where its passing is what is tested."""
    time.sleep(seconds)


def settled(client: Slurm, job_ids: list[str], seconds: float = 60) -> dict[str, JobState]:
    """The jobs' states, once all of them have ended."""
    found: dict[str, JobState] = {}

    def ended() -> bool:
        found.update(client.states(job_ids))
        return all(job_id in found and found[job_id].ended for job_id in job_ids)

    wait_until(ended, "jobs to end", seconds, lambda: str(found), pause=0.5)
    return found
