"""A Slurm for the tests, started once; skipped with the reason where there can be none."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster

PROGRAMS = {"sbatch": "slurm-wlm", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
COMMANDS = ("squeue", "sacct", "scancel", "scontrol", "sinfo", "sbatch")
LOCK = Path(tempfile.gettempdir()) / "install-slurm.lock"
POLICY = Path("/usr/sbin/policy-rc.d")


def require(programs: dict[str, str]) -> None:
    """Make sure that programs are there, given with their packages: install them in CI, else skip."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    with LOCK.open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = sorted({package for program, package in programs.items() if shutil.which(program) is None})
        if not missing:
            return
        if os.environ.get("CI") != "true" or shutil.which("apt-get") is None:
            pytest.skip(f"not installed: {' '.join(missing)} (with CI=true the tests install them by apt-get)")
        install(missing)


def install(packages: list[str]) -> None:
    """Install Debian packages, and let none of them start a daemon."""
    before = POLICY.exists()
    if not before:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *command], env=quiet, check=True, stdout=subprocess.DEVNULL)
    finally:
        if not before:
            POLICY.unlink()


def started(**arguments: object) -> Iterator[Cluster]:
    """A running cluster in a folder of its own, whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder, **arguments)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """One node without accounting, as a plain cluster is."""
    require(PROGRAMS)
    yield from started()


@pytest.fixture
def cluster(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, at which this process's environment points, without jobs before and after the test."""
    for key, value in running_cluster.environment().items():
        monkeypatch.setenv(key, value)
    yield running_cluster
    running_cluster.reset()


@pytest.fixture(scope="module")
def accounting_cluster() -> Iterator[Cluster]:
    """A cluster with slurmdbd, whose slurmctld forgets jobs after seconds."""
    require(PROGRAMS | ACCOUNTING)
    yield from started(accounting=True, options={"MinJobAge": 2})


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Tells the names of Slurm's commands that were run, in order."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} >>{log}\nexec {shutil.which(name)} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return lambda: log.read_text().split() if log.exists() else []
