"""For all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from checkouts import commit_working_tree

# Where tests run in the background, as CI may start them, Ctrl-C is ignored, and every process that they start
# inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def origin(tmp_path_factory) -> Path:
    """A repository whose one commit holds the working tree as it is, without results."""
    return commit_working_tree(tmp_path_factory.mktemp("origin"))
