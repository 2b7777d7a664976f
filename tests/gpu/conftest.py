"""Everything here needs a GPU with the kernels, and is skipped elsewhere."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tune", action="store_true", help="let Triton tune mamba-ssm's kernels: minutes for each shape"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    if ours and torch.cuda.is_available() and not config.getoption("--tune", default=False):
        _pin_configurations()


def _pin_configurations() -> None:
    """One way to launch each of mamba-ssm's kernels, rather than the fastest of many."""
    from triton.runtime.autotuner import Autotuner

    import matvlm.ops.mamba_path  # noqa: F401  they exist once it is imported

    for tuner in [one for one in gc.get_objects() if isinstance(one, Autotuner)]:
        tuner.configs = tuner.configs[-1:]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")
