"""What jobs ask a cluster for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Strict, StringConstraints

from matvlm.validation import Model, NonNegativeInt

SlurmName = Annotated[str, Strict(), StringConstraints(pattern=r"^[^\s-]\S*$")]
SlurmOptions = Annotated[str, Strict(), StringConstraints(pattern=r"^--[a-z][^\x00-\x1f]*$")]


class Gpus(Model):
    """GPUs that a job of each step asks a cluster for; 0: none. Without a cluster a step takes one if there is."""

    teacher: NonNegativeInt = 0
    """Training of the teacher; more than one share each batch."""
    cache: Literal[0, 1] = 0
    """The teacher's outputs."""
    distill: NonNegativeInt = 0
    """Training of each student; more than one share each batch."""
    evaluate: Literal[0, 1] = 0
    """Scoring."""
    profile: Literal[0, 1] = 0
    """Measuring."""


class Slurm(Model):
    """Where `--profile slurm` sends jobs. null leaves it to the cluster; `--default-resources` comes first."""

    partition: SlurmName | None = None
    """Partition, or several separated by commas."""
    account: SlurmName | None = None
    """Account that pays."""
    qos: SlurmName | None = None
    """Quality of service."""
    constraint: SlurmName | None = None
    """Features that a node must have, as `a100&ib`."""
    extra: SlurmOptions | None = None
    """Further options of sbatch, as `--reservation=week --exclude=node7`."""

    def resources(self) -> dict[str, str]:
        """What is set, by the name of the resource that carries it."""
        return {f"slurm_{name}": value for name, value in self if value is not None}
