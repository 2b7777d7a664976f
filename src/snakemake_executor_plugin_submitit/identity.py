"""Which job is which: across two starts of Snakemake, and although a job's resources grow with its attempts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any

from .ledger import Mark


def mark(job: Any) -> Mark:
    """The ledger's mark of a job or a group of jobs."""
    jobs = sorted(job.jobs, key=_name) if job.is_group() else [job]
    return Mark(
        _digest(sorted(_key(one) for one in jobs)),
        _digest([[_work(one) for one in jobs], _states(job.input)]),
        job.groupid if job.is_group() else job.rule.name,
        tuple(_digest(path) for path in sorted({path for one in jobs for path in _files(one)})),
    )


def _key(job: Any) -> list[str]:
    """What it makes; two jobs with one key would write the same files. A job without outputs is its own name."""
    outputs = sorted(os.path.abspath(str(path)) for path in job.output)
    return outputs or ["", _name(job)]


def _files(job: Any) -> list[str]:
    """The same, one by one."""
    return [part for part in _key(job) if part]


def _name(job: Any) -> str:
    return json.dumps([job.rule.name, sorted(job.wildcards_dict.items())])


def _work(job: Any) -> list[str]:
    """What it does, apart from its resources."""
    rule = job.rule
    code = [rule.shellcmd, rule.run_func_src, rule.script, rule.notebook, rule.wrapper, rule.cwl]
    return [
        _name(job),
        *map(str, code),
        *map(str, job.input),
        *map(str, job.log),
        str(job.benchmark),
        *sorted(map(str, job.non_derived_params)),
        _command(job) if rule.shellcmd is not None else "",
    ]


def _command(job: Any) -> str:
    """The shell command, as it is at the first attempt: it may mention resources, which grow."""
    if job.attempt == 1:
        return job.shellcmd
    resources = job.rule.expand_resources(job.wildcards_dict, job.input, 1, skip_evaluation={"tmpdir"})
    return job.format_wildcards(job.rule.shellcmd, resources=resources, threads=resources["_cores"])


def _states(paths: Iterable[Any]) -> list[list[Any]]:
    """The inputs as they are now: a job that read others is not the one that is wanted."""
    states = []
    for path in map(str, paths):
        try:
            status = os.stat(path)
        except OSError:
            states.append([path])
        else:
            states.append([path, status.st_size, status.st_mtime_ns])
    return states


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:32]
