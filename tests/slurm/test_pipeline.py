"""The project itself on a real Slurm: the whole smallest preset, and a training that is preempted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, wait_until

from checkouts import clone, environment
from conftest import PROGRAMS, require, started

STUDENT = "distill/attention/even-25/prob+layer+ce/kl/seed0"
# Long enough to be met while it trains.
LONG = "presets={debug: {distill: {steps: 300, save_every: 10, validate_every: 300, log_every: 100}}}"


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[Cluster]:
    """A cluster of one node with as many CPUs as a small machine has."""
    require(PROGRAMS)
    yield from started(cpus=2)


class Checkout:
    """A fresh clone, for a user who has nothing in their home."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster, self.log = folder, cluster, folder.parent / "log"
        self.home = folder.parent / "home"
        self.home.mkdir()

    def start(self, *arguments: str, settings: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start `snakemake`; what it prints goes to `log`."""
        config = ["--config", "preset=debug", *settings, "--"]
        options = [one for one in arguments if one.startswith("-")]
        targets = [one for one in arguments if not one.startswith("-")]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                ["snakemake", *options, *config, *targets],
                cwd=self.folder,
                env=environment(self.folder) | self.cluster.environment() | {"HOME": str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of `snakemake`, which must be a good one."""
        try:
            status = process.wait(500)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert status == 0, self.output()

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-5000:]


@pytest.fixture(scope="module")
def reproduced(origin: Path, two_cpus: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A fresh clone in which `snakemake --profile slurm all` has run."""
    checkout = Checkout(clone(origin, tmp_path_factory.mktemp("pipeline") / "clone"), two_cpus)
    checkout.finish(checkout.start("--profile=slurm", "all"))
    return checkout


def test_whole_smallest_preset(reproduced: Checkout):
    results = reproduced.folder / "results/debug"
    for name in ("index.html", "claims.md", "tables/main.md", "tables/speed.md", "figures/speed.svg"):
        assert (results / name).stat().st_size > 0, name
    assert not reproduced.cluster.jobs_left()


def test_second_run_submits_nothing(reproduced: Checkout):
    reproduced.finish(reproduced.start("--profile=slurm", "all"))
    assert "Nothing to be done" in reproduced.output()


def test_preempted_training_ends_with_the_same_weights(reproduced: Checkout):
    """A job of a higher partition takes the CPUs; the training writes a checkpoint, waits and goes on."""
    target = f"runs/debug/{STUDENT}/provenance.json"
    weights = reproduced.folder / f"runs/debug/{STUDENT}/model.safetensors"
    state = reproduced.folder / "runs/debug/state"
    cluster = reproduced.cluster

    process = reproduced.start("--profile=slurm", target, settings=(LONG,))
    wait_until(lambda: list(state.rglob("step-*/state.json")), "a checkpoint", 90, reproduced.output)
    (training,) = cluster.jobs_left()
    urgent = cluster.submit("sleep 1", "--partition=high", "--cpus-per-task=2")
    cluster.wait_for_state(urgent, "RUNNING", "COMPLETED")
    assert training in cluster.jobs_left(), reproduced.output()
    reproduced.finish(process)
    assert "resumed at step" in (reproduced.folder / f"logs/debug/{STUDENT}.log").read_text()
    preempted = weights.read_bytes()

    reproduced.finish(reproduced.start("--cores=1", "--forcerun=distill", target, settings=(LONG,)))
    assert weights.read_bytes() == preempted
    assert "resumed" not in (reproduced.folder / f"logs/debug/{STUDENT}.log").read_text()
