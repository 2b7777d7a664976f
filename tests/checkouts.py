"""Clones of the working tree, in which tests run what a user would run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as somebody."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def environment(checkout: Path) -> dict[str, str]:
    """Variables for a command in a checkout, whose own `src` comes before the installed one."""
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(checkout / "src")}


def clone(source: Path, target: Path) -> Path:
    """A clone of what is committed in ``source``."""
    subprocess.run(["git", "clone", "--quiet", str(source), str(target)], check=True, capture_output=True)
    return target


def commit_working_tree(folder: Path) -> Path:
    """Make ``folder`` a repository whose one commit holds the working tree as it is, without results."""
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
