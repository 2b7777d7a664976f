"""The most memory that some stretches of work take.

On a GPU `peak_memory_bytes` is what the caching allocator had given out at most, `reserved_memory_bytes` what
it held itself, and `device_memory_bytes` what the driver says is taken on the whole device.

On a CPU `peak_memory_bytes` is the same quantity, counted from the allocator's own record of every tensor, and
the weights: it is exact and the same in every run. The resident set of the process would be hundreds of
megabytes of libraries, and grows by what the C library does not give back; it is `device_memory_bytes`: the
process's peak since it started, the building of the model included (Linux only). Nothing is reserved on a CPU.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

WINDOW = "matvlm.profiling.window"
Figures = dict[str, int | None]


def measure_peak(device: torch.device, held: int) -> CudaPeak | CpuPeak:
    """A context manager for the whole piece of work, in which each ``with peak.window()`` is looked at; its
    `figures` are there afterwards.

    Args:
        held: bytes of the weights, which were there before.
    """
    return CudaPeak(device) if device.type == "cuda" else CpuPeak(held)


class CudaPeak:
    """Peak of the caching allocator, which knows the weights itself."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._allocated = self._reserved = self._driver = 0

    def __enter__(self) -> CudaPeak:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """Work whose memory counts."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what earlier work left reserved is not this one's
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        torch.cuda.synchronize(self.device)
        free, total = torch.cuda.mem_get_info(self.device)
        self._allocated = max(self._allocated, torch.cuda.max_memory_allocated(self.device))
        self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self.device))
        self._driver = max(self._driver, total - free)

    def figures(self) -> Figures:
        """Bytes by column."""
        return _figures(self._allocated, self._reserved, self._driver)


class CpuPeak:
    """Peak of PyTorch's CPU allocator, as its profiler records it. Right in a process that uses it once, for
    the record of later ones goes on from where the first stopped."""

    def __init__(self, held: int) -> None:
        self._held = held
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._allocated = 0

    def __enter__(self) -> CpuPeak:
        self._profile.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._profile.__exit__(*exc_info)
        if exc_info[0] is None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace.json"
                self._profile.export_chrome_trace(str(path))
                self._allocated = _peak_in_windows(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])

    def window(self) -> contextlib.AbstractContextManager:
        """Work whose memory counts."""
        return record_function(WINDOW)

    def figures(self) -> Figures:
        """Bytes by column."""
        return _figures(self._held + self._allocated, None, _peak_resident())


def _peak_in_windows(events: list[dict]) -> int:
    """The most bytes that were allocated within any window, from a trace in Chrome's format."""
    windows = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == WINDOW and "dur" in e]
    levels = sorted((e["ts"], e["args"]["Total Allocated"]) for e in events if e.get("name") == "[memory]")
    peak, before = 0, 0
    for time, level in levels:
        if any(start <= time <= end for start, end in windows):
            peak = max(peak, before, level)
        before = level
    return peak


def _peak_resident() -> int | None:
    """Bytes. Not from `resource`, whose peak can be that of the process that started this one."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _figures(allocated: int | None, reserved: int | None, device: int | None) -> Figures:
    return {"peak_memory_bytes": allocated, "reserved_memory_bytes": reserved, "device_memory_bytes": device}
