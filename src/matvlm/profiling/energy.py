"""Energy that a GPU has taken, as its driver counts it."""

from __future__ import annotations

import ctypes

import torch


def energy_j(device: torch.device) -> float | None:
    """Joules since the driver was loaded; none where the device does not tell. It is counted every few tens of
    milliseconds, so only differences over a second or more mean something."""
    if device.type != "cuda":
        return None
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, count = ctypes.c_void_p(), ctypes.c_ulonglong()
    name = ("GPU-" + str(torch.cuda.get_device_properties(device).uuid)).encode()
    calls = (
        lambda: library.nvmlInit_v2(),
        lambda: library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)),
        lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(count)),
    )
    return None if any(call() for call in calls) else count.value / 1e3
