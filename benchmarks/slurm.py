"""`python benchmarks/slurm.py`: this project's Slurm executor beside the official one, on the same Slurm.

Each runs workflows of trivial shell jobs (`touch`), as its user would start it, with its own defaults; in turn,
so that a busier minute hits both. Wrapper scripts on PATH count the calls of Slurm's commands. The official
executor lives in an environment of its own, made by this script, since it acts in every Snakemake process
wherever it is installed.

Needs root and an installed Slurm (`apt-get install slurm-wlm munge slurmdbd mariadb-server`), and a machine that
does nothing else. Writes results/benchmarks/slurm.csv and prints a verdict; exit status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from matvlm.files import csv_text, write_text

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "tests/slurm/cluster.py"
OURS, OFFICIAL = "submitit", "slurm"
SUBMIT, STATUS = ("sbatch",), ("squeue", "sacct")
# Counted too, to see that nothing hides there.
OTHER = ("scontrol", "scancel", "sinfo", "sacctmgr", "srun")
TIMEOUT = 1800
WORKFLOW = """\
rule all:
    input: expand("out/{{number}}", number=range({jobs}))

rule one:
    output: "out/{{number}}"
    resources: mem_mb=1000, runtime=5
    shell: "touch {{output}}"
"""
WRAPPER = """\
#!/bin/sh
echo {name} >> {calls}
SLURM_CONF={conf} exec {real} "$@"
"""
COLUMNS = ("executor", "jobs", "repeat", "makespan_s", "submit_calls", "status_calls")
CONTEXT = ("other_calls", "executor_version", "snakemake", "slurm", "cores")


def main() -> int:
    """Run both executors and compare them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results/benchmarks/slurm.csv")
    parser.add_argument("--environment", type=Path, default=ROOT / "tmp/official", help="of the official executor")
    args = parser.parse_args()
    programs = {OURS: Path(sys.executable), OFFICIAL: make_environment(args.environment)}
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with slurm(folder / "slurm", "--accounting") as conf:  # which the official executor expects
            bench = Bench(folder, conf, programs)
            rows = [
                bench.measure(executor, jobs, repeat)
                for jobs in args.jobs
                for repeat in range(args.repeats)
                for executor in (OURS, OFFICIAL)
            ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_text(args.out, csv_text(COLUMNS + CONTEXT, rows))
    text, good = verdict(rows, bench.poll)
    print(text)
    return 0 if good else 1


@contextlib.contextmanager
def slurm(folder: Path, *options: str) -> Iterator[str]:
    """A Slurm; gives the path of its slurm.conf. For ``options`` see tests/slurm/cluster.py."""
    command = [sys.executable, CLUSTER, folder, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            name, _, conf = process.stdout.readline().strip().removeprefix("export ").partition("=")
            if name != "SLURM_CONF":
                sys.exit("error: no Slurm here; see above")
            yield conf
        finally:
            process.terminate()


def make_environment(folder: Path) -> Path:
    """Python of an environment with the official executor and this Snakemake, which is made if it is not there."""
    python = folder / "bin/python"
    wanted = [f"snakemake=={metadata.version('snakemake')}", "snakemake-executor-plugin-slurm"]
    if not (folder / ".ready").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing {' '.join(wanted)} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / ".ready").touch()
    return python


class Bench:
    """One Slurm, and the ways to use it.

    Args:
        folder: for workflows and wrappers. conf: path of slurm.conf. programs: Python of each executor.
    """

    def __init__(self, folder: Path, conf: str, programs: dict[str, Path]) -> None:
        self.folder, self.programs = folder, programs
        self.variables = os.environ | {"SLURM_CONF": conf}
        self.poll = default_poll()
        self.calls = folder / "calls"
        self.wrappers = folder / "bin"
        self.wrappers.mkdir()
        for name in SUBMIT + STATUS + OTHER:
            # The official executor removes SLURM_CONF from the environment; the wrapper puts it back.
            text = WRAPPER.format(name=name, calls=self.calls, conf=conf, real=shutil.which(name))
            (self.wrappers / name).write_text(text)
            (self.wrappers / name).chmod(0o755)
        version = subprocess.check_output(["sinfo", "--version"], text=True, env=self.variables)
        self.context = {
            "snakemake": metadata.version("snakemake"),
            "slurm": version.split()[-1],
            "cores": len(os.sched_getaffinity(0)),
        }
        self.versions = {name: version_of(name, python) for name, python in programs.items()}

    def measure(self, executor: str, jobs: int, repeat: int) -> dict[str, object]:
        """Run one workflow in a fresh folder, from the start of the command to its end.

        Raises:
            SystemExit: it failed, or a job did not run.
        """
        place = self.folder / f"{executor}-{jobs}-{repeat}"
        place.mkdir()
        (place / "Snakefile").write_text(WORKFLOW.format(jobs=jobs))
        self.calls.write_text("")
        python = self.programs[executor]
        path = os.pathsep.join([str(self.wrappers), str(python.parent), os.environ["PATH"]])
        variables = self.variables | {"PATH": path}
        # Without the file system's cache a first run would pay for reading the libraries.
        subprocess.run([python, "-m", "snakemake", "--version"], check=True, capture_output=True, env=variables)
        command = [python, "-m", "snakemake", "--executor", executor, "--jobs", str(jobs), "--latency-wait", "10"]
        log = place / "snakemake.log"
        start = time.perf_counter()
        with open(log, "w") as stream:
            done = subprocess.run(
                command, cwd=place, env=variables, stdout=stream, stderr=subprocess.STDOUT, timeout=TIMEOUT
            )
        makespan = time.perf_counter() - start
        made = len(list((place / "out").glob("*")))
        if done.returncode or made != jobs:
            logs = [log, *sorted((place / ".snakemake").rglob("*.log"))]
            text = "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in logs[:3])
            sys.exit(f"error: {executor}: {made} of {jobs} jobs made their file\n{text}")
        calls = Counter(self.calls.read_text().split())
        row = {
            "executor": executor,
            "jobs": jobs,
            "repeat": repeat,
            "makespan_s": round(makespan, 2),
            "submit_calls": sum(calls[name] for name in SUBMIT),
            "status_calls": sum(calls[name] for name in STATUS),
            "other_calls": sum(calls[name] for name in OTHER),
            "executor_version": self.versions[executor],
        } | self.context
        print(", ".join(f"{key} {row[key]}" for key in COLUMNS), file=sys.stderr)
        return row


def default_poll() -> float:
    """Seconds between two looks at the jobs, as our executor is set by default."""
    from snakemake_executor_plugin_submitit import ExecutorSettings

    return float(ExecutorSettings().poll_interval)


def version_of(executor: str, python: Path) -> str:
    """Version of an executor; ours has that of this project."""
    name = "matvlm" if executor == OURS else f"snakemake-executor-plugin-{executor}"
    code = f"from importlib import metadata; print(metadata.version({name!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def verdict(rows: list[dict[str, object]], poll: float) -> tuple[str, bool]:
    """A line for each bar and number of jobs, and whether all are met.

    Bars: the median makespan at most a quarter of the official one's; one sbatch for 100 equal jobs; one status
    call a poll, which makespan over ``poll`` seconds bounds.
    """
    lines, good = [], True
    for jobs in dict.fromkeys(row["jobs"] for row in rows):
        spans = {
            name: statistics.median(r["makespan_s"] for r in rows if (r["executor"], r["jobs"]) == (name, jobs))
            for name in (OURS, OFFICIAL)
        }
        ours = [row for row in rows if (row["executor"], row["jobs"]) == (OURS, jobs)]
        submits = max(row["submit_calls"] for row in ours)
        asked = max(row["status_calls"] / (1 + row["makespan_s"] / poll) for row in ours)
        share = spans[OURS] / spans[OFFICIAL]
        met = share <= 0.25 and submits <= math.ceil(jobs / 100) and asked <= 1
        good = good and met
        lines.append(
            f"{jobs} jobs: {spans[OURS]:.1f} s against {spans[OFFICIAL]:.1f} s ({share:.2f}, bar 0.25); "
            f"{submits} sbatch (bar {math.ceil(jobs / 100)}); {asked:.2f} status calls a poll (bar 1): "
            f"{'met' if met else 'MISSED'}"
        )
    return "\n".join(lines), good


if __name__ == "__main__":
    raise SystemExit(main())
