"""Commands of the library as processes of their own, as a cluster runs them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_distill_run import arguments

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.device_count() > 1 else ["cpu"]
"""What two processes can run on here: a GPU each, where there are two."""
TIMEOUT = 120
"""Seconds; a process that hangs must not hang the suite."""


def distill(small: Path, out: Path, *, environment: dict[str, str] | None = None, before=None, **changes):
    """Start `python -m matvlm.distill.run` on the small fixture; what it prints is piped.

    Args:
        before: what the process does between fork and exec. changes: options, as `arguments` takes them.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "matvlm.distill.run", *arguments(small, out, **changes)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status of a process, and what it wrote to stderr."""
    try:
        _, error = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        _, error = process.communicate()
        raise AssertionError(f"did not end: {error[-2000:]}") from None
    return process.returncode, error


def until(happened, process: subprocess.Popen) -> None:
    """Wait for ``happened()`` while the process runs."""
    end = time.monotonic() + TIMEOUT
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)


def ranks(count: int) -> list[dict[str, str]]:
    """The variables of torch.distributed for each of ``count`` processes on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
