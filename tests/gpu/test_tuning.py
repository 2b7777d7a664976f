"""Choices of tuning outlive the process that made them, the backward pass's too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matvlm.ops.mamba_path", exc_type=ImportError)
SCRIPT = """
import torch
from matvlm.models.mixer import Mamba2Mixer
mixer = Mamba2Mixer(64, 2, 2, 32, layer_idx=0).to("cuda", torch.bfloat16)
mixer(torch.randn(1, 70, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)).sum().backward()
"""


def tuned(cache: Path) -> int:
    """Kernels that a process which trains a mixer for a step tunes."""
    environ = {**os.environ, "TRITON_CACHE_DIR": str(cache), "TRITON_PRINT_AUTOTUNING": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return (done.stdout + done.stderr).count("autotuning for function")


def test_choices_outlive_the_process_and_a_broken_file_is_passed_over(tmp_path: Path) -> None:
    assert tuned(tmp_path) > 5
    assert tuned(tmp_path) == 0
    (kept,) = tmp_path.glob("choices_*.json")
    whole = kept.read_text()
    kept.write_text(whole[: len(whole) // 2])
    assert tuned(tmp_path) > 5
    assert kept.read_text().count("BLOCK") == whole.count("BLOCK")
