"""What the profile's server imports before it is forked leaves the GPU alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("matvlm.ops.mamba_path", exc_type=ImportError)
SCRIPT = """
import importlib
import torch
from matvlm.profiling import point, run
for name in (point.__name__, *run.PRELOADED):
    importlib.import_module(name)
assert not torch.cuda.is_initialized()
"""


def test_a_server_that_has_imported_the_kernels_can_be_forked() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert not done.returncode, done.stderr
