"""The process that runs a rule's command: in a process group of its own, watched without being reaped.

A signal handler may look at the process while the main program waits for it. `subprocess.Popen` holds a lock
while it waits, so both use waitid(2) here, which leaves the exit status where it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

TICK = 0.05


class Child:
    """A running command.

    Attributes:
        pid: of its first process, and the id of its process group.
    """

    def __init__(self, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> None:
        """Start ``argv``, without a shell, with SIGUSR2 ignored and nothing to read."""
        self._process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_ignore_warning
        )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._status(os.WNOHANG)

    def wait(self, tick: Callable[[], None] | None = None, interval: float = 0.5) -> int:
        """Wait for the end, calling ``tick`` about every ``interval`` seconds, and return the exit status."""
        if tick is None:
            status = self._status(0)
            assert status is not None
            return status
        while True:
            tick()
            until = time.monotonic() + interval
            while time.monotonic() < until:
                status = self.poll()
                if status is not None:
                    return status
                time.sleep(TICK)

    def wait_until(self, deadline: float) -> int | None:
        """Wait for the end until ``time.monotonic()`` says ``deadline``; None if it still runs then."""
        while True:
            status = self.poll()
            if status is not None or time.monotonic() >= deadline:
                return status
            time.sleep(TICK)

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def stop(self, patience: float = 5) -> int:
        """End the group: politely, then by force."""
        self.signal(signal.SIGTERM)
        status = self.wait_until(time.monotonic() + patience)
        if status is None:
            self.signal(signal.SIGKILL)
            status = self.wait()
        return status

    def _status(self, flags: int) -> int | None:
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | flags)
        except ChildProcessError:
            # Somebody reaped it, as a debugger may.
            return self._process.poll()
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def _ignore_warning() -> None:
    # A command without a handler must not die of the warning, and one with a handler not before it is there.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
