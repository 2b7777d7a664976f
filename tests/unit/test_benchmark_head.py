"""The benchmark of L_prob through the head: its kinds compute the same."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_all_kinds_compute_the_same(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = importlib.import_module("head")
    out = tmp_path / "head.csv"
    assert not bench.main(["--device", "cpu", "--repeats", "2", "--chunk", "77", "--out", str(out)])
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["kind"], row["repeat"]) for row in rows] == [
        (kind, repeat) for repeat in "01" for kind in ("ours", "whole")
    ]
    for row in rows:
        assert float(row["kl"]) == pytest.approx(float(rows[0]["kl"]), rel=1e-4)
        assert float(row["gradient_norm"]) == pytest.approx(float(rows[0]["gradient_norm"]), rel=1e-4)
        assert float(row["ms"]) > 0
    assert float(rows[0]["kl"]) > 1e-3
    assert bench.main(["--repeats", "0"]) == 2
    assert "--repeats: must be at least 1" in capsys.readouterr().err
