"""Where one process of a run fails, all end soon, with one clear line each; the last checkpoint stays, and the run
resumes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import DEVICES, distill, finish, ranks, until
from test_distill_run import arguments, log_of

from matvlm.distill import run

pytestmark = pytest.mark.processes
SETTINGS = {"steps": 40, "micro_batch_size": 1, "validate_every": 20, "save_every": 2}
SOON_S = 20
"""Seconds in which all processes end, on a machine that does other things too."""


def launch(small: Path, tmp_path: Path, device: str, *program: str) -> subprocess.Popen:
    """Two processes of one run under torchrun, whose logs go to `tmp_path/logs`."""
    options = ["--nproc-per-node", "2", "--master-port", ranks(1)[0]["MASTER_PORT"]]
    options += ["--redirects", "3", "--log-dir", str(tmp_path / "logs")]
    words = arguments(small, tmp_path / "out", settings=SETTINGS, device=device)
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *program, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(tmp_path: Path, rank: int) -> str:
    """What a process under torchrun wrote to stderr."""
    (log,) = tmp_path.glob(f"logs/*/attempt_0/{rank}/stderr.log")
    return log.read_text()


def worker(launcher: subprocess.Popen, rank: int) -> int:
    """Process id of a rank under torchrun."""
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)
    raise AssertionError(f"no process has rank {rank}")


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


def resumes(small: Path, tmp_path: Path, capsys) -> None:
    """One process goes on from what is left and comes to the end."""
    assert run.main(arguments(small, tmp_path / "out", settings=SETTINGS)) == 0
    (step,) = re.findall(r"resumed at step (\d+) of 40", capsys.readouterr().err)
    assert 0 < int(step) < 40
    assert log_of(tmp_path / "out")[-1]["step"] == "40"


FAILING = """
import sys, torch
from matvlm.distill import run, task
losses = task.DistillTask.losses
steps = iter(range(1000))
def failing(self, batch, counts):
    if torch.distributed.get_rank() == 1 and next(steps) == 9:  # of two micro-batches a step: in step 5
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return losses(self, batch, counts)
task.DistillTask.losses = failing
sys.exit(run.main())
"""


@pytest.mark.parametrize("device", DEVICES)
def test_a_process_that_finds_no_memory(small, cache, tmp_path, capsys, device):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    status, report = finish(launch(small, tmp_path, device, str(script)))
    assert status != 0
    first, other = (said(tmp_path, rank) for rank in (1, 0))
    (line,) = errors(first)
    assert re.search(r"out of GPU memory at step 5: .*; the state to resume from is in ", line)
    (echo,) = errors(other)
    assert echo.startswith("error: process 1 of 2 failed: distill ")
    assert "out of GPU memory at step 5" in echo
    assert "process 0 ends too" in echo
    assert "Traceback" not in first + other
    assert "out of GPU memory at step 5" in report.partition("Root Cause")[2]  # torchrun's own words
    resumes(small, tmp_path, capsys)


@pytest.mark.parametrize("device", DEVICES)
def test_a_process_that_is_killed(small, cache, tmp_path, capsys, device):
    launcher = launch(small, tmp_path, device, "-m", "matvlm.distill.run")
    until(lambda: list(tmp_path.glob("state/*/step-*")), launcher)
    os.kill(worker(launcher, 1), signal.SIGKILL)
    start = time.monotonic()
    status, _ = finish(launcher)
    assert time.monotonic() - start < SOON_S
    assert status != 0
    (line,) = errors(said(tmp_path, 0))
    assert line.startswith(
        "error: process 1 of 2 was killed, or its machine is gone; process 0 ends too; the state"
    )
    assert str(tmp_path / "state") in line
    assert "Traceback" not in said(tmp_path, 0)
    resumes(small, tmp_path, capsys)


@pytest.mark.parametrize("device", DEVICES)
def test_bad_input_of_one_process_before_the_first_step(small, cache, tmp_path, device):
    """The other one waits in a collective by then."""
    missing, wrong = tmp_path / "missing", 1
    start = time.monotonic()
    inputs = {"settings": SETTINGS, "device": device}
    processes = [
        distill(small, tmp_path / "out", environment=variables, **inputs | wrongly)
        for variables, wrongly in zip(ranks(2), ({}, {"val": missing}), strict=True)
    ]
    ended = [finish(process) for process in processes]
    assert time.monotonic() - start < 2 * SOON_S
    assert [status for status, _ in ended] == [2 if rank == wrong else 1 for rank in range(2)], ended
    (line,) = errors(ended[wrong][1])
    assert str(missing) in line
    (echo,) = errors(ended[1 - wrong][1])
    assert (
        echo == f"error: process {wrong} of 2 failed: {line.removeprefix('error: ')}; process {1 - wrong} ends too"
    )
    assert "Traceback" not in ended[0][1] + ended[1][1]
