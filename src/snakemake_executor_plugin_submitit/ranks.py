"""The tasks of one job: who this process is among them, and what torch.distributed wants to be told."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import zlib
from dataclasses import dataclass
from typing import Any

# Below the ports that Linux hands out by itself.
FIRST_PORT, PORTS = 20_000, 12_000


@dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        rank: among all tasks, 0 leads. size: number of tasks.
        local_rank: among those of this node. local_size: number of tasks of a node.
        leader: host name of the node of rank 0.
        job_id: as submitit names it, `123_4`. restart: how often Slurm has restarted the job.
        cluster: `slurm`, `local` or `debug`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    leader: str = "127.0.0.1"
    job_id: str = ""
    restart: int = 0
    cluster: str = "slurm"

    @classmethod
    def here(cls) -> Place:
        """Read it from submitit's environment."""
        from submitit import JobEnvironment

        job: Any = JobEnvironment()
        size, nodes = job.num_tasks, job.num_nodes
        leader = "127.0.0.1" if nodes == 1 else _reachable(job.hostnames[0])
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return cls(job.global_rank, size, job.local_rank, size // nodes, leader, job.job_id, restart, job.cluster)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def variables(self) -> dict[str, str]:
        """What ``torch.distributed`` reads with ``init_method="env://"``; nothing for a single task."""
        if self.size == 1:
            return {}
        return {
            "MASTER_ADDR": self.leader,
            "MASTER_PORT": str(FIRST_PORT + zlib.crc32(self.job_id.encode()) % PORTS),
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
        }


def seconds_left(place: Place) -> float:
    """Seconds to the time limit of this job, where it has none of its own but its partition's."""
    if place.cluster != "slurm":
        return math.inf
    command = ["squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%L"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return math.inf
    return read_duration(said)


def read_duration(text: str) -> float:
    """Slurm's `days-hours:minutes:seconds` in seconds; infinite if it is none, as `UNLIMITED`."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _reachable(host: str) -> str:
    """The name, or the address that srun knows where the name means nothing to this node."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", host)
    return host
