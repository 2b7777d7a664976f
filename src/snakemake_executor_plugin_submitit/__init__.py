"""Run Snakemake's jobs on Slurm through submitit: ``snakemake --executor submitit``.

Snakemake finds `Executor`, `ExecutorSettings` and `common_settings` here. They are imported when asked for:
a submitted job imports this package too, for its `call` alone, and need not load Snakemake's interfaces.
"""

from typing import Any

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


def __getattr__(name: str) -> Any:
    if name == "Executor":
        from .executor import Executor

        return Executor
    if name in {"ExecutorSettings", "common_settings"}:
        from . import settings

        return getattr(settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
