"""The choices that Triton's tuning made for mamba-ssm's kernels, kept on disk between processes.

Triton keeps them itself where asked (`TRITON_CACHE_AUTOTUNING`), but not those of kernels with hooks, as the
scan's backward pass has: tuning these took a minute and a half of every process. Kept choices also let runs of one
cell launch the same kernels, where tuning anew may decide otherwise by a hair.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from triton.runtime.autotuner import Autotuner, Config

from matvlm.files import write_json

PACKAGE = "mamba_ssm."

Choices = dict[str, list[list]]
"""By kernel: pairs of a tuning key (sizes and types) and the configuration chosen, as Triton prints it."""


@cache
def keep_choices() -> None:
    """Once a process: take up what was chosen on such a device before, and add what is chosen when it ends."""
    path = choices_file()
    restore(_read(path))
    atexit.register(_save, path)


def choices_file() -> Path:
    """In Triton's cache, one for each kind of device and version of Triton and mamba-ssm."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    versions = (f"{name}-{metadata.version(name)}" for name in ("triton", "mamba_ssm"))
    name = "_".join((torch.cuda.get_device_name().replace(" ", "-"), *versions))
    return folder / f"choices_{name}.json"


def restore(choices: Choices) -> None:
    """Give kernels the choices that are still among their configurations."""
    for name, kernel in _kernels().items():
        known = {str(config): config for config in kernel.configs}
        for key, chosen in choices.get(name, ()):
            if chosen in known:
                kernel.cache.setdefault(tuple(key), known[chosen])


def chosen() -> Choices:
    """What the kernels use now."""
    return {
        name: [[list(key), str(config)] for key, config in kernel.cache.items() if isinstance(config, Config)]
        for name, kernel in _kernels().items()
        if kernel.cache
    }


def _save(path: Path) -> None:
    """Together with what other processes have added meanwhile."""
    kept = _read(path)
    restore(kept)
    if (found := chosen()) != kept:
        try:
            write_json(path, found)
        except OSError as error:
            print(
                f"warning: {path}: not written ({error.strerror}); tuning starts anew next time", file=sys.stderr
            )


def _read(path: Path) -> Choices:
    """What the file holds; nothing where there is none, or none that reads as written."""
    try:
        found = json.loads(path.read_text())
        return {name: [[list(key), str(chosen)] for key, chosen in pairs] for name, pairs in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _kernels() -> dict[str, Autotuner]:
    """All kernels that are tuned of modules that are imported, by the place where they are defined."""
    found = {}
    for module in [m for name, m in sys.modules.items() if name.startswith(PACKAGE)]:
        for value in vars(module).values():
            while value is not None and not isinstance(value, Autotuner):
                value = getattr(value, "fn", None) if type(value).__module__.startswith("triton.") else None
            if value is not None:
                function = value.base_fn
                found[f"{function.__module__}.{function.__name__}"] = value
    return found
