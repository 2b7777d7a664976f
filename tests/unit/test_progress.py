"""Progress is shown in logs too, which rules pipe stderr into, and seldom there."""

from __future__ import annotations

import io
import sys

import pytest

from matvlm.progress import progress


class Stream(io.StringIO):
    terminal = False

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_and_in_a_log(monkeypatch, terminal):
    stream = Stream()
    stream.terminal = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress(range(3), "images", unit="image")
    assert list(bar) == [0, 1, 2]
    assert "images: 100%" in stream.getvalue()
    assert "3/3" in stream.getvalue()
    assert bar.mininterval == (0.5 if terminal else 5)
