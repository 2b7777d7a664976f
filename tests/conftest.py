"""For all tests."""

from __future__ import annotations

import signal

# Where tests run in the background, as CI may start them, Ctrl-C is ignored, and every process that they start
# inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
