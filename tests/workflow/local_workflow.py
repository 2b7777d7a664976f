"""A folder with a Snakefile, and Snakemake with the submitit executor in it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
COMMAND = (
    str(Path(sys.executable).parent / "snakemake"),
    *("--executor", "submitit", "--submitit-cluster", "local", "--submitit-poll-interval", "0.5"),
    *("--jobs", "50", "--nolock", "--rerun-incomplete", "--latency-wait", "3"),
)
VARIABLES = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


class Workflow:
    """A folder with a Snakefile, and Snakemake in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, snakefile: str) -> None:
        (self.folder / "Snakefile").write_text(textwrap.dedent(snakefile), encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it and go on; what it says goes into `controller.log`."""
        with open(self.folder / "controller.log", "a", encoding="utf-8") as log:
            return subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=self.folder,
                env=VARIABLES,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """Run to the end; ``stdout`` holds both streams."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=VARIABLES,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def lines(self, name: str = "runs.txt") -> list[str]:
        path = self.folder / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def wait_for_lines(self, count: int, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while len(self.lines()) < count:
            assert time.monotonic() < deadline, self.lines("controller.log")
            time.sleep(0.1)

    def jobs(self) -> list[str]:
        """Folders of submitted jobs that are left."""
        return [path.name for path in (self.folder / ".snakemake/submitit").glob("snakemake-*")]

    def processes(self, module: str) -> list[psutil.Process]:
        """Processes of this folder's jobs that run a module of submitit."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if module in command and command[-1].startswith(str(self.folder)):
                found.append(process)
        return found
