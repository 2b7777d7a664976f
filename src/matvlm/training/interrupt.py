"""Asking a training to stop: by SIGUSR2 or SIGTERM, which a cluster sends before it takes a node away.

The signal only sets a flag. The loop looks at it after each step, writes a checkpoint and raises
`matvlm.errors.Interrupted`, so that no step is done twice and none is lost.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_asked = False


def listen() -> None:
    """From now on note the signals, also one that was sent before, where the parent had blocked it.

    A command calls this before it imports what takes seconds: until then a signal ends it. At its end they are
    ignored: Python would take its handlers away first, and one that comes again would spoil the exit status.
    """
    _install()
    atexit.register(_ignore)


@contextmanager
def listening() -> Iterator[None]:
    """Note the signals within the block, and do with them afterwards what was done before."""
    global _asked
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if _note not in before.values():
            _asked = False


def asked() -> bool:
    """Whether a signal has come."""
    return _asked


def _note(number: int, frame: object) -> None:
    global _asked
    _asked = True


def _install() -> None:
    for number in SIGNALS:
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
