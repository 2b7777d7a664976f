"""How a job runs: its shell command by itself, or a Snakemake of its own around it."""

from __future__ import annotations

import ast
import re
import shlex
from itertools import chain
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.settings import DeploymentMethod, SharedFSUsage
from snakemake_interface_executor_plugins.utils import encode_target_jobs_cli_args

from .call import RANK, RuleCall

UNDECIDED = "<TBD>"
"""What Snakemake writes for a resource that only the node can know."""
WORD = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""", re.DOTALL)


def obstacle(job: Any, workflow: Any) -> str | None:
    """Why a job needs a Snakemake of its own, or None if its shell command may run by itself."""
    if job.is_group():
        return "it is a group"
    rule, methods = job.rule, workflow.deployment_settings.deployment_method
    files = list(chain(job.input, job.output, job.log))
    flags = set(chain.from_iterable(getattr(path, "flags", {}) or {} for path in chain(job.input, job.output)))
    reasons = {
        "it is not a shell rule": rule.shellcmd is None or not rule.is_shell or rule.is_template_engine,
        "it hands over to another system": rule.is_handover,
        "it has a shadow directory": job.is_shadow,
        "it uses a conda environment": DeploymentMethod.CONDA in methods and bool(job.conda_env),
        "it runs in a container": DeploymentMethod.APPTAINER in methods and bool(job.container_img_url),
        "it loads environment modules": DeploymentMethod.ENV_MODULES in methods and bool(job.env_modules),
        "its files are in a storage": any(getattr(path, "is_storage", False) for path in files),
        "it has pipes, services or updated files": bool(flags & {"pipe", "service", "update", "from_queue"}),
        "its result may be cached": workflow.workflow_settings.cache is not None and bool(rule.cache),
        "its benchmark is of a special kind": _special_benchmark(job, workflow),
        "there is a precommand": bool(workflow.remote_execution_settings.precommand),
        "files are not shared": SharedFSUsage.INPUT_OUTPUT not in workflow.storage_settings.shared_fs_usage,
        "its tmpdir depends on the node": _special_tmpdir(rule),
    }
    for reason, holds in reasons.items():
        if holds:
            return reason
    return "its command depends on the node" if UNDECIDED in job.shellcmd else None


def direct_call(job: Any, workflow: Any, tasks: int, **common: Any) -> RuleCall:
    """The call for a job whose command runs by itself.

    Args:
        common: the fields of the call that do not depend on how it runs.
    """
    from snakemake.io import is_flagged

    folders = {str(path) for path in job.output if is_flagged(path, "directory")}
    logs = [str(path) for path in job.log]
    clears = [(path, path in folders) for path in [*map(str, job.output), *logs]]
    benchmark = None if job.benchmark is None else str(job.benchmark)
    return RuleCall(
        argv=_shell(job, job.shellcmd),
        peer_argv=_shell(job, _peer_command(job, Path(common["folder"]))) if tasks > 1 else (),
        threads=job.threads,
        clears=tuple(clears + ([(benchmark, False)] if benchmark else [])),
        benchmark=benchmark,
        **common,
    )


def wrapped_call(job: Any, executor: Any, **common: Any) -> RuleCall:
    """The call for a job that needs a Snakemake of its own.

    `RealExecutor.format_job_exec` makes one text for a shell of it, quoted as Python would: a wildcard with a
    quote in it would reach the shell. So this makes a list of arguments, and no shell sees it.
    """
    workflow = executor.workflow
    factory, methods = workflow.spawned_job_args_factory, executor.common_settings
    argv = [executor.get_python_executable(), "-m", "snakemake", "--snakefile", str(executor.get_snakefile())]
    argv += _job_arguments(job, workflow)
    argv += shlex.split(for_a_shell(factory.general_args(executor_common_settings=methods)))
    argv += ["--executor", "local", "--mode", executor.get_exec_mode().item_to_choice()]
    before = factory.precommand(executor_common_settings=methods)
    if before:
        argv = ["bash", "-c", f"{before} && exec {shlex.join(argv)}"]
    return RuleCall(argv=tuple(argv), **common)


def for_a_shell(text: str) -> str:
    """Quote a text for a shell that was quoted with Python's repr(), piece by piece."""

    def requote(match: re.Match[str]) -> str:
        try:
            value = ast.literal_eval(match[0])
        except (ValueError, SyntaxError):
            return match[0]
        # What is no repr() was quoted by shlex.
        return shlex.quote(value) if repr(value) == match[0] else match[0]

    return WORD.sub(requote, text)


def _job_arguments(job: Any, workflow: Any) -> list[str]:
    """What `RealExecutor.get_job_args` says, as a list. The files to wait for are the call's own business."""
    unneeded = [str(path) for path in workflow.dag.get_unneeded_temp_files(job)]
    arguments = ["--target-jobs", *encode_target_jobs_cli_args(job.get_target_spec())]
    arguments += ["--allowed-rules", *map(str, job.rules)]
    arguments += ["--local-groupid", str(job.jobid)] if job.is_group() else ["--force-use-threads"]
    arguments += ["--cores", str(max(1, job.threads)), "--attempt", str(job.attempt)]
    return arguments + (["--unneeded-temp-files", *unneeded] if unneeded else [])


def _shell(job: Any, command: str) -> tuple[str, ...]:
    """The arguments that run a command as Snakemake's ``shell`` would."""
    from snakemake.shell import shell

    program = job.resources.get("shell_exec") or shell.get_executable() or "/bin/sh"
    text = f"{shell._get_process_prefix(program)} {command} {shell._process_suffix}".strip()
    return (str(program), "-c", text)


def _peer_command(job: Any, folder: Path) -> str:
    """The command for tasks other than the first: the same, with logs in the job's own folder."""
    logs = job.log._plainstrings()
    here = folder / f"rank-{RANK}"
    names = {path: str(here / f"{number}-{Path(path).name}") for number, path in enumerate(logs)}
    from snakemake.iocontainers import Log

    own = Log(toclone=job.log, custom_map=lambda path: names[str(path)])
    return job.format_wildcards(job.rule.shellcmd, log=own)


def _special_benchmark(job: Any, workflow: Any) -> bool:
    if job.benchmark is None:
        return False
    extended = workflow.output_settings.benchmark_extended
    return job.benchmark_repeats > 1 or extended or str(job.benchmark).endswith(".jsonl")


def _special_tmpdir(rule: Any) -> bool:
    """Whether the temporary folder was set to something else than what programs use by themselves."""
    resource = rule.resources.get("tmpdir")
    return resource is not None and resource.raw != "system_tmpdir"


def variables(workflow: Any) -> dict[str, str]:
    """Environment variables that the workflow declares, which a site may keep from jobs otherwise."""
    return {name: str(value) for name, value in workflow.spawned_job_args_factory.envvars().items()}


def files_to_wait_for(job: Any, workflow: Any) -> tuple[str, ...]:
    """Files that must be visible on the node before the job begins."""
    if SharedFSUsage.INPUT_OUTPUT not in workflow.storage_settings.shared_fs_usage:
        return ()
    return tuple(dict.fromkeys(map(str, job.get_wait_for_files())))
