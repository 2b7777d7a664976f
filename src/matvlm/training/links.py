"""Connections by which the processes of a run learn at once that one of them has ended.

Every process holds a TCP connection to the first one. Whoever ends says so, and why; of a process that is killed
the system closes the connection, and of a machine that is gone it gives up on it. The first process hands the news
on.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from torch.distributed import Store

from matvlm.errors import Abandoned, Interrupted
from matvlm.training import interrupt

JOIN = timedelta(minutes=10)
"""How long processes wait for each other when they start."""
GRACE_S = 5.0
"""Seconds that a process has to end by itself after another one has failed. One that waits for it on a GPU never
would."""
GREETING_S, GREETING_BYTES = 2.0, 200
"""What a new connection has to say who it is."""
KEY = "matvlm/links"
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds and counts after which the system gives up on a machine that does not answer."""


class Links:
    """One process's connections to the others, once all are there.

    Args:
        store: by which processes find each other. rank: of this process, among ``size``.

    Raises:
        Abandoned: another process ended before all were there, or has not come within `JOIN`.
        Interrupted: told to stop before.

    Attributes:
        failed: the process that failed first, and what it said; none as long as all is well.
        state: folder that a run resumes from, once there is one. settle: waits for what is being written to it.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.failed: tuple[int, str] | None = None
        self.state: Path | None = None
        self.settle: Callable[[], None] = lambda: None
        self._lock, self._heard, self._left = threading.Lock(), threading.Event(), threading.Event()
        self._links = _gather(store, size) if rank == 0 else {0: _reach(store, rank)}
        for peer, link in self._links.items():
            threading.Thread(target=self._listen, args=(peer, link), daemon=True).start()

    def leave(self, error: str | None = None) -> None:
        """Say that this process ends, and what went wrong if something did. Only the first call counts."""
        with self._lock:
            if self._left.is_set():
                return
            self._left.set()
            self._send({"from": self.rank, "error": error})

    def lost(self, within_s: float = 0.0) -> str | None:
        """One line about the process that failed, which is waited for so many seconds; none if all is well."""
        self._heard.wait(within_s)
        if self.failed is None:
            return None
        other, error = self.failed
        line = f"process {other} of {self.size} {error}"
        if other != self.rank:
            line += f"; process {self.rank} ends too"
        if self.state is not None and str(self.state) not in error and any(self.state.glob("step-*")):
            line += f"; the state to resume from is in {self.state}"
        return line

    def _listen(self, peer: int, link: socket.socket) -> None:
        """Until a process ends: it sends one line, or none if it is killed."""
        try:
            with link.makefile("r", encoding="utf-8") as lines:
                word = json.loads(lines.readline())
        except (OSError, ValueError):
            word = {"from": peer, "error": "was killed, or its machine is gone"}
        if word["error"] is not None:
            self._end(word["from"], word["error"])

    def _end(self, other: int, error: str) -> None:
        """Hand on that ``other`` failed, and end this process if it does not by itself."""
        with self._lock:
            if self.failed is not None:
                return
            self.failed = (other, error)
            if self.rank == 0 and not self._left.is_set():
                self._send({"from": other, "error": error})
        self._heard.set()
        if not self._left.wait(GRACE_S):
            try:
                self.settle()
                print(f"error: {self.lost()}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)

    def _send(self, word: dict) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):  # of one that has ended
                link.sendall((json.dumps(word) + "\n").encode())


def _gather(store: Store, size: int) -> dict[int, socket.socket]:
    """The first process's connections, by rank."""
    token, links = secrets.token_hex(16), {}
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, backlog=size, dualstack_ipv6=dual) as server:
        store.set(KEY, json.dumps({"port": server.getsockname()[1], "host": _own_address(), "token": token}))
        server.settimeout(0.2)
        try:
            for _ in patience(f"{size - 1} other processes"):
                with contextlib.suppress(TimeoutError):
                    link, _ = server.accept()
                    if (rank := _greeting(link, token)) is not None:
                        links[rank] = link
                if len(links) == size - 1:
                    break
            for link in links.values():
                _settle(link)
                link.sendall(b"!")
        except BaseException:
            for link in links.values():
                link.close()
            raise
    return links


def _greeting(link: socket.socket, token: str) -> int | None:
    """The rank that a new connection names; none if it is somebody else's."""
    end, line = time.monotonic() + GREETING_S, b""
    try:
        while not line.endswith(b"\n") and len(line) < GREETING_BYTES:
            link.settimeout(max(end - time.monotonic(), 1e-3))
            if not (more := link.recv(GREETING_BYTES - len(line))):
                break
            line += more
        word = json.loads(line)
        if word["token"] == token:
            return int(word["rank"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    link.close()
    return None


def _reach(store: Store, rank: int) -> socket.socket:
    """Another process's connection to the first one."""
    try:
        return _connect(store, rank)
    except (OSError, RuntimeError) as error:  # of the store too
        first = str(error).partition("\n")[0]
        raise Abandoned(f"process 0 of this run is not to be reached any more: {first}") from None


def _connect(store: Store, rank: int) -> socket.socket:
    for _ in patience("process 0"):
        if store.check([KEY]):
            break
        time.sleep(0.1)
    place = json.loads(store.get(KEY))
    for _ in patience("process 0"):
        for host in (os.environ["MASTER_ADDR"], place["host"]):
            try:
                link = socket.create_connection((host, place["port"]), timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        else:
            continue
        break
    link.sendall((json.dumps({"rank": rank, "token": place["token"]}) + "\n").encode())
    link.settimeout(0.2)
    for _ in patience("all processes"):
        with contextlib.suppress(TimeoutError):
            if link.recv(1) != b"!":
                raise Abandoned("another process ended before all were there; its log says why")
            break
    _settle(link)
    return link


def patience(what: str) -> Iterator[None]:
    """Turns of a loop that waits for something: as many as `JOIN` allows, and until told to stop."""
    end = time.monotonic() + JOIN.total_seconds()
    while time.monotonic() < end:
        if interrupt.asked():
            raise Interrupted(f"interrupted while waiting for {what}")
        yield
    raise Abandoned(f"waited {JOIN.total_seconds():g} s for {what} in vain")


def _settle(link: socket.socket) -> None:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _own_address() -> str:
    """This machine's address as the others see it, if MASTER_ADDR is not this machine."""
    with contextlib.suppress(OSError):
        place = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        family, kind, _, _, address = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            return probe.getsockname()[0]
    return socket.gethostname()
