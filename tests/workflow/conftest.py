"""A fresh clone of the working tree, and the whole reproduction of the smallest preset in it, made once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from local_workflow import Workflow

from checkouts import clone, environment


def run(checkout: Path, *command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command in a checkout; its output, both streams together, is ``stdout``."""
    return subprocess.run(
        command,
        cwd=checkout,
        env=environment(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


def snakemake(
    checkout: Path, *arguments: str, preset: str = "debug", settings: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on two cores.

    Args:
        arguments: options and targets. settings: further configuration, as `key={yaml}`.
    """
    return run(checkout, *command(preset, settings), *arguments)


def command(preset: str, settings: str = "") -> list[str]:
    """Snakemake with its configuration; options and targets are to follow."""
    config = [f"preset={preset}", *([settings] if settings else [])]
    return ["snakemake", "--cores", "2", "--config", *config, "--keep-going"]


@pytest.fixture
def workflow(tmp_path) -> Workflow:
    """A folder for a Snakefile of the test's own."""
    return Workflow(tmp_path)


@pytest.fixture
def checkout(origin, tmp_path) -> Path:
    """A fresh clone in which nothing has run."""
    return clone(origin, tmp_path / "clone")


@pytest.fixture(scope="session")
def reproduced(origin, tmp_path_factory) -> Path:
    """A clone in which the whole reproduction of the preset `debug` has run."""
    folder = clone(origin, tmp_path_factory.mktemp("reproduced") / "clone")
    done = snakemake(folder, "all")
    assert done.returncode == 0, done.stdout[-5000:]
    return folder
