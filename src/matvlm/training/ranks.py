"""Processes that share a run: they begin together, and where one fails all end soon, with one clear line each.

How many there are is said by the variables of torch.distributed (RANK, WORLD_SIZE, MASTER_ADDR, …), which torchrun
sets, and a Slurm job of several tasks.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch import distributed

from matvlm.errors import Abandoned, Interrupted, UserError
from matvlm.training.links import JOIN, Links, patience

TIMEOUT = timedelta(minutes=30)
"""How long a process waits in a collective, while the first one validates or writes the model. That another has
ended it learns at once, by other means."""
VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
"""Of torch.distributed, beside RANK and WORLD_SIZE. Without the last, accelerate takes each process for the only
one."""
PATIENCE_S = 3.0
"""Seconds that a collective's error may come before the news of the process that caused it."""
_links: Links | None = None
_store: distributed.Store | None = None


def together(main: Callable[..., int | None]) -> Callable[..., int | None]:
    """Wrap a command's `main`, inside `matvlm.errors.one_line`: all processes of a run are there when it begins,
    and where one ends badly, be it killed, the others raise `Abandoned` or are ended within seconds."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> int | None:
        if count() < 2:
            return main(*args, **kwargs)
        links = _join()
        try:
            result = main(*args, **kwargs)
        except Interrupted:  # which all are
            links.leave()
            raise
        except BaseException as error:
            # A collective fails in all processes once one has gone; the error that counts is that one's.
            if isinstance(error, RuntimeError) and (line := links.lost(PATIENCE_S) or _timed_out(error)):
                links.leave(line)
                raise Abandoned(line) from None
            _record(error)
            links.leave(f"failed: {_words(error)}")
            raise
        links.leave()
        return result

    return wrapped


def open_group(on_cpu: bool) -> None:
    """Set up collectives between the processes that `together` has joined; where there are none, nothing is done.

    Args:
        on_cpu: whether the model is on the CPU.
    """
    if _links is None or distributed.is_initialized():
        return
    backend = "gloo" if on_cpu or not torch.cuda.is_available() else "nccl"
    distributed.init_process_group(
        backend, store=_store, rank=_links.rank, world_size=_links.size, timeout=TIMEOUT
    )


def resumes_from(state: Path, settle: Callable[[], None]) -> None:
    """What to say, should another process fail: the folder of checkpoints; and what to wait for before this
    process is ended for it: the write under way."""
    if _links is not None:
        _links.state, _links.settle = state, settle


def leave() -> None:
    """Wait until all processes of a run have done their work, the first one's writing included, and part."""
    processes = PartialState()
    processes.wait_for_everyone()
    if processes.num_processes > 1:
        processes.destroy_process_group()


def count() -> int:
    """Processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def _join() -> Links:
    """Connect the processes.

    Raises:
        UserError: a variable of torch.distributed is missing.
        Abandoned, Interrupted: not all have come; see `Links`.
    """
    global _links, _store
    if missing := [name for name in VARIABLES if not os.environ.get(name)]:
        raise UserError(f"{missing[0]}: not set, but WORLD_SIZE says that {count()} processes share this run")
    met = Future()
    # It waits for all processes, and hears no signal meanwhile.
    threading.Thread(target=_meet, args=(met,), daemon=True).start()
    for _ in patience(f"all {count()} processes"):
        if wait([met], timeout=0.2).done:
            break
    try:
        _store, rank, size = met.result()
    except RuntimeError as error:
        place = ":".join(os.environ[name] for name in VARIABLES[:2])
        raise Abandoned(f"{place}: the processes of this run do not find each other: {_words(error)}") from None
    _links = Links(_store, rank, size)
    return _links


def _meet(met: Future) -> None:
    try:
        met.set_result(next(distributed.rendezvous("env://", timeout=JOIN)))
    except Exception as error:  # of any kind, as a port that is no number: the process waits for it
        met.set_exception(error)


def _words(error: BaseException) -> str:
    """One line about an error."""
    if isinstance(error, (UserError, Abandoned)):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _timed_out(error: RuntimeError) -> str | None:
    """What to say of a collective that another process has not come to in time."""
    if "timed out" not in str(error).lower():
        return None
    return f"waited {TIMEOUT.total_seconds():g} s for another process, which has not come"


def _record(error: BaseException) -> None:
    """Tell torchrun, which names the first error in its own report."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ and isinstance(error, Exception):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
