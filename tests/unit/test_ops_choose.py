"""Which implementation Mamba-2 layers run on: forced or found, said once, and noted with results."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from matvlm import ops, provenance
from matvlm.errors import UserError
from matvlm.ops import choose, torch_path
from matvlm.ops.choose import kernel_path, path_for
from matvlm.training.device import pick_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
KERNELS = "matvlm.ops.mamba_path"


@pytest.fixture(autouse=True)
def undecided(monkeypatch, caplog):
    """Nothing asked for, nothing decided yet, and all that is logged can be read."""
    monkeypatch.delenv(choose.VARIABLE, raising=False)
    caplog.set_level(logging.DEBUG, logger=choose.log.name)
    choose._choose.cache_clear()
    yield
    choose._choose.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that the kernels could run on; its capability can be changed."""
    found = {"capability": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return found


@pytest.fixture
def missing(monkeypatch):
    """Kernels that cannot be imported."""
    monkeypatch.delattr(ops, "mamba_path", raising=False)
    monkeypatch.setitem(sys.modules, KERNELS, None)


@pytest.fixture
def installed(monkeypatch):
    """Something that stands for the kernels."""
    module = type(sys)(KERNELS)
    module.kept = []
    module.keep_choices = lambda: module.kept.append(True)
    monkeypatch.setattr(ops, "mamba_path", module, raising=False)
    monkeypatch.setitem(sys.modules, KERNELS, module)
    monkeypatch.setattr(choose.metadata, "version", {"mamba-ssm": "2.3.2", "causal-conv1d": "1.7.0"}.get)
    return module


def refusal(device) -> str:
    with pytest.raises(UserError) as caught:
        kernel_path(device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logged(caplog) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_an_unknown_choice_is_named_and_all_that_are_allowed(device, monkeypatch):
    monkeypatch.setenv(choose.VARIABLE, "cuda")
    assert refusal(device) == "MATVLM_KERNELS=cuda: unknown; allowed: auto, torch, mamba_ssm"


@pytest.mark.parametrize("wanted", [None, "auto", "torch"])
def test_a_cpu_has_the_reference(wanted, monkeypatch, caplog):
    if wanted is not None:
        monkeypatch.setenv(choose.VARIABLE, wanted)
    assert kernel_path(CPU) == kernel_path("cpu") == "torch"
    assert path_for(CPU, torch.float32) is torch_path
    assert logged(caplog) == [("DEBUG", "Mamba-2 layers on cpu run on the torch reference")]


def test_kernels_cannot_be_forced_on_a_cpu(monkeypatch):
    monkeypatch.setenv(choose.VARIABLE, "mamba_ssm")
    assert refusal(CPU) == "MATVLM_KERNELS=mamba_ssm: the kernels need a GPU, not cpu"
    with pytest.raises(UserError):
        path_for(CPU, torch.bfloat16)


def test_a_gpu_without_the_packages_has_the_reference_and_the_command_that_helps(gpu, missing, caplog):
    assert kernel_path(GPU) == "torch"
    assert path_for(GPU, torch.bfloat16) is torch_path
    ((level, message),) = logged(caplog)
    assert level == "WARNING"
    assert message.startswith("Mamba-2 layers on cuda:0 run on the slower torch reference: import of ")
    assert "; install with: python -m pip install einops ninja" in message
    assert "--no-build-isolation --no-deps --no-cache-dir causal-conv1d==" in message
    assert message.endswith(f"  # for torch {torch.__version__}; compiles with nvcc of CUDA 13")


def test_a_torch_without_cuda_is_said_first(gpu, missing, monkeypatch, caplog):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert kernel_path(GPU) == "torch"
    assert "has no CUDA, and the kernels need it: install a build that has first" in logged(caplog)[0][1]


def test_kernels_that_are_forced_and_missing_are_an_error(gpu, missing, monkeypatch):
    monkeypatch.setenv(choose.VARIABLE, "mamba_ssm")
    line = refusal(GPU)
    assert line.startswith("MATVLM_KERNELS=mamba_ssm: import of ")
    assert "; install with: python -m pip install" in line


def test_a_package_compiled_for_another_torch_is_as_one_that_is_missing(gpu, monkeypatch, caplog):
    """It fails at import, and in a way of its own; one line of that is enough."""

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == KERNELS:
                raise OSError("undefined symbol: _ZN3c104cuda\nin line 2")

    monkeypatch.delattr(ops, "mamba_path", raising=False)
    monkeypatch.delitem(sys.modules, KERNELS, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert kernel_path(GPU) == "torch"
    ((_, message),) = logged(caplog)
    assert "reference: undefined symbol: _ZN3c104cuda; install with: " in message
    assert "\n" not in message


@pytest.mark.parametrize("wanted", ["auto", "mamba_ssm"])
def test_a_gpu_that_is_too_old_is_named(wanted, gpu, installed, monkeypatch, caplog):
    monkeypatch.setenv(choose.VARIABLE, wanted)
    gpu["capability"] = (7, 5)
    problem = "the kernels need a GPU of compute capability 8.0 or later; NVIDIA Test has 7.5"
    if wanted == "auto":
        assert kernel_path(GPU) == "torch"
        message = f"Mamba-2 layers on cuda:0 run on the slower torch reference: {problem}"
        assert logged(caplog) == [("WARNING", message)]
    else:
        assert refusal(GPU) == f"MATVLM_KERNELS=mamba_ssm: {problem}"


def test_a_gpu_with_the_packages_has_the_kernels_unless_told_otherwise(gpu, installed, monkeypatch, caplog):
    gpu["capability"] = choose.CAPABILITY
    assert kernel_path(GPU) == "mamba_ssm"
    assert installed.kept == [True]
    assert path_for(GPU, torch.bfloat16) is installed
    assert path_for(GPU, torch.float64) is torch_path  # they have none
    message = "Mamba-2 layers on cuda:0 run on the kernels of mamba-ssm 2.3.2, causal-conv1d 1.7.0"
    assert logged(caplog) == [("INFO", message)]
    monkeypatch.setenv(choose.VARIABLE, "torch")
    assert kernel_path(GPU) == "torch"
    assert path_for(GPU, torch.bfloat16) is torch_path


def test_it_is_decided_and_said_once_for_a_device(gpu, missing, monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(choose, "_problem", lambda device: asked.append(device) or "no")
    for device in (GPU, CPU, "cuda:0", GPU, torch.device("cuda", 1), CPU):
        kernel_path(device)
    assert asked == [GPU, torch.device("cuda", 1)]
    assert len(logged(caplog)) == 3


def test_provenance_notes_what_a_gpu_runs_on(gpu, installed, monkeypatch):
    def noted(**given) -> str:
        return provenance.describe({}, **given)["kernel_path"]

    assert noted(device="cuda:0") == "mamba_ssm"
    assert noted(device="cuda:0", kernel_path="torch") == "torch"
    assert noted(device="cpu") == "torch"
    monkeypatch.setenv(choose.VARIABLE, "torch")
    assert noted(device="cuda:0") == "torch"


def test_what_is_forced_is_checked_when_a_device_is_picked(monkeypatch):
    """Before anything is loaded; what is not forced is looked for when it is needed."""
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(choose, "kernel_path", lambda device: pytest.fail("looked for"))
    for wanted in (None, "auto"):
        if wanted is not None:
            monkeypatch.setenv(choose.VARIABLE, wanted)
        choose.check_choice(GPU)
    monkeypatch.undo()
    for wanted, message in (("mamba_ssm", "the kernels need a GPU, not cpu"), ("cuda", "unknown")):
        monkeypatch.setenv(choose.VARIABLE, wanted)
        with pytest.raises(UserError, match=message):
            pick_device("cpu")


def test_provenance_on_a_cpu_needs_no_torch():
    program = "import sys; from matvlm.provenance import describe; describe({}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
