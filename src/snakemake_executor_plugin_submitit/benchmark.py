"""Snakemake's benchmark file, measured in the job itself: the same columns, sampled in the same rhythm."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

COLUMNS = ("s", "h:m:s", "max_rss", "max_vms", "max_uss", "max_pss", "io_in", "io_out", "mean_load", "cpu_time")
MIB = 1024 * 1024
SHORT, LONG, SHORT_SAMPLES = 0.5, 30.0, 30


class Benchmark:
    """Measures a process and its descendants.

    Memory is the largest sum over all processes in MiB, I/O in MiB, the load in percent of a CPU.
    """

    def __init__(self, pid: int) -> None:
        import psutil

        self._psutil = psutil
        self._started = time.time()
        self._next = 0.0
        self._samples = 0
        self._processes: dict[int, Any] = {}
        self._cpu_seconds: dict[int, float] = {}
        self._peak = {"rss": 0.0, "vms": 0.0, "uss": 0.0, "pss": 0.0}
        self._io: tuple[float, float] | None = None
        self._measured = False
        self._pid = pid

    def sample(self) -> None:
        """Measure, if it is time to."""
        if time.monotonic() < self._next:
            return
        self._samples += 1
        self._next = time.monotonic() + (SHORT if self._samples <= SHORT_SAMPLES else LONG)
        try:
            main = self._psutil.Process(self._pid)
            processes = [main, *main.children(recursive=True)]
        except (self._psutil.Error, OSError):
            return
        total = dict.fromkeys(self._peak, 0.0)
        read = written = 0.0
        seen = False
        for process in processes:
            try:
                with process.oneshot():
                    memory = process.memory_full_info()
                    cpu = process.cpu_times()
                    io = process.io_counters()
            except (self._psutil.Error, OSError):
                continue
            seen = True
            for name in total:
                total[name] += getattr(memory, name, 0) / MIB
            read += io.read_bytes / MIB
            written += io.write_bytes / MIB
            self._cpu_seconds[process.pid] = cpu.user + cpu.system
        if seen:
            self._measured = True
            self._io = (read, written)
            self._peak = {name: max(self._peak[name], value) for name, value in total.items()}

    def write(self, path: Path) -> None:
        """Write the file, with NA for what a short command gave no time to measure."""
        seconds = time.time() - self._started
        clock = str(datetime.timedelta(seconds=int(seconds)))
        row: list[object] = [f"{seconds:.4f}", clock]
        if self._measured and self._io is not None:
            cpu = sum(self._cpu_seconds.values())
            values = (*self._peak.values(), *self._io, 100 * cpu / seconds, cpu)
            row += [f"{value:.2f}" for value in values]
        else:
            row += ["NA"] * (len(COLUMNS) - 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\t".join(COLUMNS) + "\n" + "\t".join(map(str, row)) + "\n", encoding="utf-8")
