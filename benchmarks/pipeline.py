"""`python benchmarks/pipeline.py`: the whole smallest preset through Slurm, beside the same without it.

Each run is `snakemake all` in a fresh clone of HEAD, from the start of the command to its end, in turn, on a Slurm
of one node with as many CPUs as this machine. Needs root and an installed Slurm, and a machine that does nothing
else. Writes results/benchmarks/pipeline.csv; exit status 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from matvlm.files import csv_text, write_text
from matvlm.provenance import device_name
from slurm import ROOT, slurm

BAR = 1.5
"""Median wall time through Slurm over the one without."""
WAYS = {"local": [], "slurm": ["--profile", "slurm"]}


def main() -> int:
    """Run both ways and compare them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--preset", default="debug")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "results/benchmarks/pipeline.csv")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    commit = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True).strip()
    made = {"preset": args.preset, "device": device_name("cpu"), "commit": commit}
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-") as place,
        slurm(Path(place) / "slurm", "--cpus", str(cores)) as conf,
    ):
        for repeat in range(args.repeats):
            for way, options in WAYS.items():
                folder = Path(place) / f"{way}-{repeat}"
                seconds = measure(folder, [*options, f"--cores={cores}"], args.preset, conf)
                rows.append({"way": way, "repeat": repeat, "wall_s": round(seconds, 1), **made})
                print(rows[-1], file=sys.stderr)
    write_text(args.out, csv_text(rows[0], rows))
    local, through = (statistics.median(row["wall_s"] for row in rows if row["way"] == way) for way in WAYS)
    print(f"{through:.1f} s through Slurm, {local:.1f} s without: {through / local:.2f} times, bar {BAR}")
    return 0 if through <= BAR * local else 1


def measure(folder: Path, options: list[str], preset: str, conf: str) -> float:
    """Seconds that the whole preset takes in a fresh clone.

    Raises:
        SystemExit: it failed.
    """
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = os.environ | {"SLURM_CONF": conf, "PATH": path, "PYTHONPATH": str(folder / "src")}
    command = ["snakemake", *options, "--config", f"preset={preset}", "--", "all"]
    log = folder.with_suffix(".log")
    start = time.perf_counter()
    with open(log, "wb") as stream:
        done = subprocess.run(command, cwd=folder, env=variables, stdout=stream, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}\n{log.read_text()[-3000:]}")
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
