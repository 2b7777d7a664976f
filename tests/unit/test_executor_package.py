"""The executor is a package that others can install alone."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PACKAGE = SOURCE / "snakemake_executor_plugin_submitit"


def imported(path: Path) -> set[str]:
    """First parts of all absolute imports of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def test_the_library_and_the_executor_do_not_know_each_other():
    for path in PACKAGE.rglob("*.py"):
        assert "matvlm" not in imported(path), path
    for path in (SOURCE / "matvlm").rglob("*.py"):
        assert not imported(path) & {PACKAGE.name, "snakemake", "submitit", "dvc"}, path


def test_it_needs_no_more_than_it_says():
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", one)[0].replace("-", "_") for one in project["dependencies"]}
    for path in PACKAGE.rglob("*.py"):
        assert imported(path) <= names | sys.stdlib_module_names | {PACKAGE.name}, path


def test_its_own_folder_builds_a_wheel(tmp_path):
    pytest.importorskip("setuptools")
    folder = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("snakemake_executor_plugin_submitit-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(f"{PACKAGE.name}/")}
    assert names == {f"{PACKAGE.name}/{path.name}" for path in PACKAGE.glob("*.py")}
