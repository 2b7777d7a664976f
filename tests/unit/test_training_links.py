"""How processes of a run hear of each other's end; here they are threads."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from matvlm.errors import Abandoned, Interrupted, one_line
from matvlm.training import interrupt, links, ranks
from matvlm.training.links import KEY, Links

SIZE = 3


@pytest.fixture(autouse=True)
def address(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")


@pytest.fixture
def joined():
    """Links of three processes; those that a test does not end are ended."""
    store = HashStore()
    with ThreadPoolExecutor(SIZE) as pool:
        found = list(pool.map(lambda rank: Links(store, rank, SIZE), range(SIZE)))
    yield found
    for link in found:
        link.leave()


@pytest.mark.parametrize("failing", range(SIZE))
def test_all_hear_who_failed_and_why(joined, tmp_path, failing):
    (tmp_path / "step-00000001").mkdir()
    joined[failing].leave("failed: no such file")
    for rank, link in enumerate(joined):
        if rank != failing:
            link.state = tmp_path
            expected = f"process {failing} of 3 failed: no such file; process {rank} ends too"
            assert link.lost(10) == f"{expected}; the state to resume from is in {tmp_path}"


@pytest.mark.parametrize("killed", range(SIZE))
def test_all_hear_of_one_that_is_killed(joined, killed):
    joined[killed]._left.set()  # it hands nothing on any more
    for link in joined[killed]._links.values():
        link.shutdown(socket.SHUT_RDWR)  # as the system does
    for rank, link in enumerate(joined):
        if rank != killed:
            assert link.lost(10).startswith(f"process {killed} of 3 was killed, or its machine is gone;")


def test_one_that_ends_well_is_no_news(joined):
    joined[1].leave()
    joined[1].leave("too late to say anything else")
    assert joined[0].lost(0.3) is None
    joined[2].leave("failed: something")
    assert joined[0].lost(10).startswith("process 2 of 3 failed: something")


def test_a_state_that_is_named_already_or_empty_is_not_named(joined, tmp_path):
    joined[1].leave(f"failed: the state to resume from is in {tmp_path}")
    joined[0].state = tmp_path
    (tmp_path / "step-00000001").mkdir()
    assert joined[0].lost(10).count(str(tmp_path)) == 1
    joined[2].state = tmp_path / "empty"
    assert "empty" not in joined[2].lost(10)


def test_strangers_are_turned_away():
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(Links, store, 0, 2)
        store.wait([KEY])
        place = json.loads(store.get(KEY))
        for word in (b"GET / HTTP/1.1\n", b'{"token": "guess", "rank": 1}\n', b"3\n"):
            with socket.create_connection(("127.0.0.1", place["port"])) as stranger:
                stranger.sendall(word)
                assert stranger.recv(1) == b""
        other = Links(store, 1, 2)
        assert first.result().lost() is None
    other.leave()
    first.result().leave()


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_never_comes(monkeypatch, rank):
    monkeypatch.setattr(links, "JOIN", timedelta(seconds=0.5))
    start = time.monotonic()
    with pytest.raises(Abandoned, match=r"^waited 0.5 s for .* in vain$"):
        Links(HashStore(), rank, 2)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("rank", [0, 1])
def test_told_to_stop_before_all_are_there(monkeypatch, rank):
    monkeypatch.setattr(interrupt, "asked", lambda: True)
    with pytest.raises(Interrupted, match="interrupted while waiting for"):
        Links(HashStore(), rank, 2)


def test_processes_that_do_not_find_each_other(monkeypatch, capsys):
    """One line for each, and nothing of the command is done."""
    command = one_line(ranks.together(lambda: pytest.fail("begun")))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_PORT")
    assert command() == 2
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        assert command() == 1
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert first == "error: MASTER_PORT: not set, but WORLD_SIZE says that 2 processes share this run"
    assert second.startswith(f"error: 127.0.0.1:{port}: the processes of this run do not find each other: Dist")


def test_a_port_that_is_no_number_is_not_waited_for(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "none"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="none"):
        ranks._join()


def test_one_that_waits_for_the_others_can_be_stopped(monkeypatch):
    """By a signal, which sets this; where they meet, it waits for longer than a cluster would."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    asked = iter([False] * 4)
    monkeypatch.setattr(interrupt, "asked", lambda: next(asked, True))
    with pytest.raises(Interrupted, match="interrupted while waiting for all 2 processes"):
        ranks._join()


def test_one_process_runs_as_it_is(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR")
    assert ranks.together(lambda: 7)() == 7


@pytest.mark.parametrize("news", [True, False])
def test_an_error_of_a_collective_is_the_fault_of_who_has_gone(monkeypatch, joined, capsys, news):
    """And else it is one's own, which the others are told."""
    monkeypatch.setattr(ranks, "_join", lambda: joined[0])
    monkeypatch.setattr(ranks, "PATIENCE_S", 10 if news else 0.1)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")

    def fails():
        if news:
            joined[2].leave("failed: no such file")
        raise RuntimeError("Connection closed by peer\nmore of it")

    if news:
        assert one_line(ranks.together(fails))() == 1
        assert capsys.readouterr().err == "error: process 2 of 3 failed: no such file; process 0 ends too\n"
    else:
        with pytest.raises(RuntimeError, match="Connection closed"):
            ranks.together(fails)()
        expected = "process 0 of 3 failed: RuntimeError: Connection closed by peer; process 1 ends too"
        assert joined[1].lost(10) == expected


def test_a_collective_that_nobody_comes_to(monkeypatch, joined, capsys):
    monkeypatch.setattr(ranks, "_join", lambda: joined[0])
    monkeypatch.setattr(ranks, "PATIENCE_S", 0.1)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")

    def waits():
        raise RuntimeError("[..] Timed out waiting 1800000ms for recv operation to complete")

    assert one_line(ranks.together(waits))() == 1
    assert capsys.readouterr().err == "error: waited 1800 s for another process, which has not come\n"
