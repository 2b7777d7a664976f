"""The locked environments agree with each other and with what the library tells users to install."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from matvlm.ops.install import KERNELS, NEEDS, TORCH, install_command

ENVS = Path(__file__).parents[2] / "envs"
PIN = re.compile(r"^([\w.-]+)==(\S+)$")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(file: str) -> dict[str, str]:
    lines = [line for line in (ENVS / file).read_text().splitlines() if not line.startswith("#")]
    pins = [PIN.match(line) for line in lines]
    assert all(pins), "each line of a lock is one exact version"
    versions = {normal(pin[1]): pin[2] for pin in pins}
    assert len(versions) == len(lines), "a package is locked once"
    return versions


def differing() -> dict[str, str]:
    """Packages whose version gpu.in sets itself, and why."""
    lines = [re.match(r"^([\w-]+)[=<>].*?  # (.+)$", line) for line in (ENVS / "gpu.in").read_text().splitlines()]
    return {normal(line[1]): line[2] for line in lines if line}


def test_locks_agree_but_where_gpu_in_says_why():
    cpu, gpu = locked("cpu.lock"), locked("gpu.lock")
    assert cpu.keys() <= gpu.keys()
    assert {name for name in cpu if cpu[name] != gpu[name]} == differing().keys()


def test_what_the_gpu_lock_adds_is_asked_for_or_cuda():
    asked = {normal(name) for name in re.findall(r"^([\w-]+)", (ENVS / "gpu.in").read_text(), re.M)}
    added = locked("gpu.lock").keys() - locked("cpu.lock").keys() - asked
    assert all(name.startswith(("nvidia-", "cuda-")) for name in added), added


def test_kernels_and_torch_are_those_of_the_lock():
    gpu = locked("gpu.lock")
    assert {name: gpu[name] for name in KERNELS} == KERNELS
    assert gpu["torch"] == TORCH
    assert set(NEEDS) <= gpu.keys()


def test_compilers_are_of_the_cuda_of_torch():
    cuda = ".".join(locked("gpu.lock")["cuda-toolkit"].split(".")[:2])
    assert f"cuda-version={cuda}" in yaml.safe_load((ENVS / "gpu.yaml").read_text())["dependencies"]
    assert f"nvidia/cuda:{cuda}." in (ENVS / "gpu.def").read_text()
    assert f"cu{cuda.replace('.', '')}`" in install_command("2.13.0", None)


def test_install_command():
    command = install_command("2.11.0+cu130", "13.0")
    assert "\n" not in command
    assert "--no-build-isolation --no-deps --no-cache-dir causal-conv1d==1.7.0 mamba-ssm==2.3.2.post1" in command
    assert command.endswith("# for torch 2.11.0+cu130; compiles with nvcc of CUDA 13")
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0


def test_install_command_without_cuda_asks_for_another_torch_first():
    message = install_command("2.13.0+cpu", None)
    assert "\n" not in message
    assert message.startswith("torch 2.13.0+cpu has no CUDA")
    assert f"torch=={TORCH} --index-url https://download.pytorch.org/whl/cu130" in message


def test_install_is_imported_without_torch():
    code = "import sys, matvlm.ops.install; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def sections(definition: str) -> dict[str, str]:
    parts = re.split(r"^%(\w+)$", definition, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_container_copies_what_exists_and_its_scripts_parse():
    parts = sections((ENVS / "gpu.def").read_text())
    for line in parts["files"].split("\n"):
        if line.strip():
            assert (ENVS.parent / line.split()[0]).exists(), line
    for name in ("post", "environment", "runscript", "test"):
        assert subprocess.run(["sh", "-n"], input=parts[name], text=True).returncode == 0, name


@pytest.mark.parametrize("release", [None, "12.8"])
def test_gpu_environment_refuses_a_missing_or_foreign_compiler_before_it_downloads(tmp_path, release):
    (tmp_path / "bin").mkdir()
    if release:
        nvcc = tmp_path / "bin/nvcc"
        nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.1\n")
        nvcc.chmod(0o755)
    run = subprocess.run(
        ["bash", "envs/gpu.post-deploy.sh"],
        cwd=ENVS.parent,
        env={"PATH": "/usr/bin:/bin", "CUDA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert f"{tmp_path}/bin/nvcc is {'of CUDA 12' if release else 'not there'}." in run.stderr
    assert run.stderr.count("\n") == 1
