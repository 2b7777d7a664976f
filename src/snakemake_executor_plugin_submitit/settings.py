"""What a user can set, as ``--submitit-NAME`` or in a profile.

Snakemake compares the types of the fields as objects, so this file does not postpone their evaluation; and a
flag must default to False, or Snakemake's parser refuses the plugin.
"""

from dataclasses import dataclass, field
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    # Snakemake would quote them with repr(), which a shell reads differently: the call carries them instead.
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
    pass_group_args=True,
)


FOLDER = Path(".snakemake/submitit")


def _option(default, text: str, **more):
    return field(default=default, metadata={"help": text, **more})


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Settings of the executor; the texts below are its documentation on the command line."""

    cluster: str = _option(
        "slurm",
        "Where jobs run: on Slurm, as processes of this machine, or one after another in Snakemake itself.",
        choices=["slurm", "local", "debug"],
    )
    folder: Path = _option(  # noqa: RUF009
        FOLDER,
        "Folder for submitted jobs, their logs and the ledger; all nodes must see it. It is made private (0700).",
    )
    poll_interval: float = _option(
        10.0,
        "Seconds between two questions to Slurm about all running jobs. Results are looked for every second.",
    )
    array_size: int = _option(1000, "Most jobs in one array; Slurm's MaxArraySize is respected as well.")
    wrapped: bool = _option(
        False,
        "Start a Snakemake in each job, also where the rule's shell command could run by itself.",
    )
    keep_jobs: bool = _option(
        False,
        "On Ctrl-C leave submitted jobs running; the same command takes them over later.",
    )
    no_checkpoint: str = _option(
        "requeue",
        "What becomes of a preempted job that wrote no checkpoint: it starts again, or fails.",
        choices=["requeue", "fail"],
    )
    signal_before: int = _option(
        90,
        "Seconds before its time limit at which a job gets SIGUSR2, to write a checkpoint and be requeued.",
    )
    requeues: int = _option(10, "How often a job may be requeued at its time limit, with a checkpoint each time.")
    away: float = _option(10.0, "Minutes for which Slurm may be out of reach before Snakemake gives up.")
    grace: float = _option(
        30.0,
        "Seconds to wait for the result of a job that has ended: a shared file system may show it late.",
    )
    keep_logs: bool = _option(False, "Keep the files of jobs that succeeded, too.")

    def check(self) -> None:
        """Raise a WorkflowError, one line, for a value that makes no sense."""
        for name, least in {"array_size": 1, "signal_before": 1, "requeues": 0, "grace": 0, "away": 0}.items():
            if getattr(self, name) < least:
                raise WorkflowError(f"--submitit-{name.replace('_', '-')} must be at least {least}.")
        if self.poll_interval <= 0:
            raise WorkflowError("--submitit-poll-interval must be more than 0.")
