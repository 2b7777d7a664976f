"""Jobs of several nodes, each with a slurmd of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from workflows import Workflow

from conftest import PROGRAMS, require, started

SUM = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank = torch.tensor([2.0 ** dist.get_rank()])
dist.all_reduce(rank)
with open(f"rank-{dist.get_rank()}", "w") as file:
    print(os.environ["SLURMD_NODENAME"], os.environ["LOCAL_RANK"], int(rank), file=file)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    require(PROGRAMS)
    yield from started(nodes=2)


@pytest.mark.parametrize(
    ("resources", "ranks"),
    [
        ("nodes=2", ["node1 0 3", "node2 0 3"]),
        ("nodes=2, gpus=4", ["node1 0 15", "node1 1 15", "node2 0 15", "node2 1 15"]),
    ],
)
def test_ranks_of_two_nodes(resources: str, ranks: list[str], two_nodes: Cluster, tmp_path: Path):
    """All find each other: each reads the sum over 2 to the power of every rank."""
    (tmp_path / "sum.py").write_text(SUM)
    rules = (
        f"rule ranks:\n    output: 'ranks.out'\n    resources: {resources}, mem_mb=4000\n"
        f"    shell: '{sys.executable} sum.py && touch {{output}}'\n"
    )
    workflow = Workflow(tmp_path, two_nodes, rules, ["ranks.out"])
    assert workflow.run() == 0, workflow.output()
    assert sorted(path.read_text().strip() for path in tmp_path.glob("rank-*")) == ranks
    workflow.check_nothing_left()
