"""A fresh clone of the working tree, and the whole reproduction of the smallest preset in it, made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from local_workflow import Workflow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as somebody."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def environment(checkout: Path) -> dict[str, str]:
    """Variables for a command in a checkout, whose own `src` comes before the installed one."""
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(checkout / "src")}


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


def clone(source: Path, target: Path) -> Path:
    """A clone of what is committed in ``source``."""
    subprocess.run(["git", "clone", "--quiet", str(source), str(target)], check=True, capture_output=True)
    return target


@pytest.fixture(scope="session")
def origin(tmp_path_factory) -> Path:
    """A repository whose one commit holds the working tree as it is, without results."""
    folder = tmp_path_factory.mktemp("origin")
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        there = (ROOT / name).is_file() or (ROOT / name).is_symlink()
        if there and not name.startswith("results/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Take the working tree")
    return folder


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
