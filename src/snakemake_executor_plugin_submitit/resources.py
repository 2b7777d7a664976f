"""A rule's resources as parameters of submitit; pure functions.

Whatever is not known here is an error: a misspelt resource that is ignored costs a night in the queue.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

GIVEN = ("mem_mb", "runtime", "gpus", "gpu", "gres", "nodes", "tasks")
SLURM = ("slurm_partition", "slurm_account", "slurm_qos", "slurm_constraint", "slurm_extra")
IGNORED = frozenset(
    # Snakemake's own: it derives the sizes from mem_mb and disk_mb, and uses the others itself.
    {"mem", "mem_mib", "disk", "disk_mb", "disk_mib", "tmpdir", "shell_exec", "_cores", "_nodes", "_job_count"}
)
# These would break the bookkeeping: one array per submission, known logs, an answer that can be read, a comment
# to find jobs by, in the cluster and of the user that are asked for it.
OURS = (
    *("array", "output", "error", "open-mode", "comment", "wrap", "job-name", "signal", "chdir", "workdir"),
    *("parsable", "quiet", "test-only", "wait", "help", "usage", "version", "clusters", "uid"),
)
# Options that rules ask for by a resource: given twice, what holds is not what the executor goes by.
INSTEAD = {
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "mem_mb"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), "gpus"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "tasks-per-node", "ntasks-per-gpu"), "tasks"),
    **{"time": "runtime", "cpus-per-task": "threads", "nodes": "nodes", "gres": "gres"},
    **{name: f"slurm_{name}" for name in ("partition", "account", "qos", "constraint")},
}
GRES = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+){0,2}(,[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+){0,2})*")
EXTRA = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?", re.DOTALL)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ResourceError(ValueError):
    """A resource that cannot be asked of Slurm; the message is one line."""


def slurm_parameters(
    resources: Mapping[str, Any], threads: int, limits: Collection[str] = (), signal_before: int = 90
) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor for a job; equal parameters mean one array.

    Args:
        resources: as Snakemake evaluated them. threads: CPUs of each task.
        limits: names that the user limits with ``--resources``: they concern Snakemake's scheduler.
        signal_before: seconds before the time limit at which the job is warned.

    Raises:
        ResourceError: on an unknown name or an impossible value.
    """
    unknown = set(resources) - set(GIVEN) - set(SLURM) - IGNORED - set(limits)
    if unknown:
        known = ", ".join(GIVEN + SLURM)
        raise ResourceError(f"unknown resource {min(unknown)!r}; known are threads, {known}")
    nodes = _number(resources, "nodes", least=1) or 1
    gpus = _gpus(resources)
    if gpus % nodes:
        raise ResourceError(f"gpus={gpus} cannot be shared equally by nodes={nodes}")
    tasks = _number(resources, "tasks", least=1) or max(nodes, gpus)
    if tasks % nodes:
        raise ResourceError(f"tasks={tasks} cannot be shared equally by nodes={nodes}")
    runtime = _number(resources, "runtime", least=1)
    memory = _number(resources, "mem_mb", least=1)
    cpus = _whole("threads", threads, least=1)
    parameters: dict[str, Any] = {
        "nodes": nodes,
        "ntasks_per_node": tasks // nodes,
        "cpus_per_task": cpus,
        # submitit asks for a limit of 5 minutes by itself; without a runtime the partition's default holds.
        "time": runtime,
        "mem": f"{memory}M" if memory else None,
        "gpus_per_node": gpus // nodes or None,
        "gres": _matching(resources, "gres", GRES, "such as gpu:2"),
        "partition": _text(resources, "slurm_partition"),
        "account": _text(resources, "slurm_account"),
        "qos": _text(resources, "slurm_qos"),
        "constraint": _text(resources, "slurm_constraint"),
        "signal_delay_s": warning_time(runtime, signal_before),
        # From Slurm 22.05 on srun does not take over the CPUs of its allocation by itself.
        "srun_args": [f"--cpus-per-task={cpus}", *(["--kill-on-bad-exit=1"] if tasks > 1 else [])],
        "additional_parameters": _extra(_text(resources, "slurm_extra")),
        # submitit's default would be refused where such keys are enforced.
        "wckey": None,
    }
    if parameters["gres"] and gpus and re.search(r"(^|,)gpu(:|,|$)", parameters["gres"]):
        raise ResourceError("give either gpus or a gres of type gpu, not both")
    return parameters


def warning_time(runtime: int | None, signal_before: int) -> int:
    """Seconds of warning: at most a third of a short time limit, or a job of two minutes would barely begin."""
    return signal_before if runtime is None else max(1, min(signal_before, runtime * 20))


def clean_name(text: str) -> str:
    """A job name of ASCII letters, digits, `_`, `.` and `-` only: others reach file names and shells."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")[:64] or "job"


def check_folder(folder: Path) -> None:
    """Raise a ResourceError for a folder whose name sbatch would not take literally."""
    if CONTROL.search(str(folder)) or "%" in str(folder) or "\\" in str(folder):
        raise ResourceError(
            f"the folder {str(folder)!r} contains a control character, '%' or a backslash, which sbatch interprets"
        )


def _gpus(resources: Mapping[str, Any]) -> int:
    if resources.get("gpus") is not None and resources.get("gpu") is not None:
        raise ResourceError("give either gpus or gpu, not both")
    return _number(resources, "gpus", least=0) or _number(resources, "gpu", least=0) or 0


def _number(resources: Mapping[str, Any], name: str, least: int) -> int | None:
    value = resources.get(name)
    # Snakemake's word for what depends on files that are not there yet.
    return None if value is None or value == "<TBD>" else _whole(name, value, least)


def _whole(name: str, value: Any, least: int) -> int:
    unit = {"mem_mb": " of megabytes, without a unit", "runtime": " of minutes"}.get(name, "")
    problem = f"{name}={value!r}: a whole number{unit} is needed, at least {least}"
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ResourceError(problem)
    return value


def _text(resources: Mapping[str, Any], name: str) -> str | None:
    """A word for Slurm; empty means not given, so that a profile can name all of them."""
    value = resources.get(name)
    if value is None or not str(value).strip():
        return None
    if CONTROL.search(str(value)):
        raise ResourceError(f"{name}={value!r}: control characters and newlines are not allowed")
    return str(value).strip()


def _matching(resources: Mapping[str, Any], name: str, pattern: re.Pattern[str], example: str) -> str | None:
    text = _text(resources, name)
    if text is not None and not pattern.fullmatch(text):
        raise ResourceError(f"{name}={text!r}: this is not {name}, {example}")
    return text


def _extra(text: str | None) -> dict[str, str | bool] | None:
    """Options of sbatch, ``--name=value`` or ``--name``, by submitit's names."""
    if text is None:
        return None
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ResourceError(f"slurm_extra={text!r}: {error}") from error
    options: dict[str, str | bool] = {}
    for word in words:
        match = EXTRA.fullmatch(word)
        if match is None:
            raise ResourceError(f"slurm_extra={text!r}: {word!r} is not of the form --name=value or --name")
        if complaint := _not_extra(match[1]):
            raise ResourceError(f"slurm_extra={text!r}: {complaint}")
        # With submitit's spelling an option replaces submitit's own instead of standing beside it.
        options[match[1].replace("-", "_")] = True if match[2] is None else match[2]
    return options


def _not_extra(name: str) -> str | None:
    """What speaks against an option of sbatch, which takes any beginning of a name for it."""
    meant = [full for full in (*OURS, *INSTEAD) if full.startswith(name)]
    if not meant:
        return None
    full = name if name in meant else meant[0]
    option = f"--{name}" if name == full else f"--{name} is read as --{full}, which"
    if full in INSTEAD:
        return f"{option} has a resource of its own, {INSTEAD[full]}"
    return f"{option} is set by the executor itself"
