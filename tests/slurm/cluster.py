"""A real Slurm of one or more nodes on this machine for tests: munge, slurmctld, slurmd and, for accounting,
MariaDB and slurmdbd, all in one folder and on loopback, without systemd. Must run as root.

On Debian: ``apt-get install slurm-wlm munge`` and, for accounting, ``slurmdbd mariadb-server``. Then
``pytest tests/slurm``; with ``CI=true`` the fixtures install what is missing themselves. By hand:

    python tests/slurm/cluster.py /tmp/slurm        # starts it, prints SLURM_CONF, stops it on Ctrl-C

All daemons are children in the foreground that die with this process. What they leave (a slurmd killed
-9 leaves its jobs) is found by its environment and ended too.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from slurm_files import DATABASE, GRES, SLURM, SLURMDBD

GPUS = 8
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Cluster:
    """Slurm in a folder. Partitions: `main`, the default, and `high`, whose jobs preempt those of `main`.

    Args:
        folder: on a local file system; of at most 70 characters, since sockets lie in it.
        accounting: start MariaDB and slurmdbd too.
        nodes: how many nodes, each with its slurmd and 8 GPUs.
        cpus: of each node, as Slurm sees it.
        options: further settings of slurm.conf, or other values than ours.

    Attributes:
        kept: ids of jobs that `reset` leaves alone.
    """

    def __init__(
        self,
        folder: Path,
        accounting: bool = False,
        nodes: int = 1,
        cpus: int = 16,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder
        self.accounting = accounting
        self.options = dict(options or {})
        self.cpus = cpus
        self.nodes = [f"node{index}" for index in range(1, nodes + 1)]
        self.ports = free_ports(3 + nodes)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.kept: set[str] = set()

    def start(self) -> Cluster:
        """Bring everything up; returns when jobs can run."""
        atexit.register(self.stop)
        for name in ("etc", "log", "state", "spool", "munge", "gpu"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._start_munge()
        self._configure()
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        self.start_slurmd()
        return self

    def stop(self) -> None:
        """End all daemons and jobs."""
        atexit.unregister(self.stop)
        for name in reversed(list(self.daemons)):
            self._end(name)
        for _ in range(50):
            strays = self.strays()
            if not strays:
                break
            for process in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """Variables that point Slurm's commands at this cluster."""
        return {"SLURM_CONF": str(self.folder / "etc/slurm.conf")}

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command against the cluster and return its output without surrounding white space.

        Raises:
            AssertionError: it failed and ``check`` is set.
        """
        done = subprocess.run(command, env=self._variables(), capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def submit(self, script: str, *options: str) -> str:
        """Submit a shell script; returns the job's id."""
        silent = () if any(one.startswith("--output") for one in options) else ("--output=/dev/null",)
        return self.run("sbatch", "--parsable", *silent, *options, f"--wrap={script}").partition(";")[0]

    def jobs_left(self) -> list[str]:
        """Ids of jobs that have not ended, all but those of `kept`."""
        return [job for job in self.run("squeue", "-h", "-r", "-o", "%i").split() if job not in self.kept]

    def wait_for_state(self, job_id: str, *states: str, seconds: float = 40) -> str:
        """Wait until a job is in one of these states."""
        seen = ""

        def reached() -> bool:
            nonlocal seen
            seen = self.run("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%T", check=False)
            return bool(set(seen.split()) & set(states))

        wait_until(reached, f"job {job_id} to be {' or '.join(states)}", seconds, lambda: f"it is {seen}")
        return seen

    def start_controller(self) -> None:
        """Start slurmctld, if it does not run."""
        self._start("slurmctld", "slurmctld", "-D")
        self._wait(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld")

    def stop_controller(self) -> None:
        """End slurmctld in order; it saves its state."""
        self._end("slurmctld")

    def freeze_controller(self) -> None:
        """Stop slurmctld in its tracks: it takes connections and does not answer."""
        self.daemons["slurmctld"].send_signal(signal.SIGSTOP)

    def thaw_controller(self) -> None:
        """Let a frozen slurmctld go on."""
        self.daemons["slurmctld"].send_signal(signal.SIGCONT)

    def start_slurmd(self) -> None:
        """Start those slurmd that do not run, and wait until their nodes take jobs."""
        for node in self.nodes:
            self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self._wait(self._ready, "the nodes")

    def kill_slurmd(self) -> None:
        """Kill all slurmd -9. Their jobs run on."""
        for node in self.nodes:
            self._end(f"slurmd-{node}", signal.SIGKILL)

    def node_down(self) -> None:
        """Set the first node down, as an administrator does; its jobs are requeued or fail."""
        self.run("scontrol", "update", f"nodename={self.nodes[0]}", "state=down", "reason=test")

    def node_up(self) -> None:
        """Take back `node_down`."""
        self.run("scontrol", "update", f"nodename={self.nodes[0]}", "state=resume", check=False)
        self._wait(self._ready, "the nodes")

    def reset(self) -> None:
        """Between tests: no jobs but those of `kept`, all daemons and nodes up."""
        if "slurmctld" in self.daemons:
            self.thaw_controller()
        self.start_controller()
        self.start_slurmd()
        self.run("scancel", "--quiet", *self.jobs_left(), check=False)
        wait_until(lambda: not self.jobs_left(), "the queue to be empty", why=self._logs)

    def strays(self) -> list[int]:
        """Jobs, and what slurmd has left of itself: by this cluster's SLURM_CONF in their environment."""
        mark = f"SLURM_CONF={self.folder / 'etc/slurm.conf'}".encode()
        ours = {process.pid for process in self.daemons.values()} | {os.getpid()}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in ours:
                with contextlib.suppress(OSError):
                    variables = (entry / "environ").read_bytes().split(b"\0")
                    job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)
                    # A person's own commands carry SLURM_CONF, too.
                    if mark in variables and (job or (entry / "comm").read_text().startswith("slurm")):
                        found.append(int(entry.name))
        return found

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that daemons bring about; not to the end when one of them has died."""

        def reached() -> bool:
            dead = [name for name, process in self.daemons.items() if process.poll() is not None]
            if dead:
                raise RuntimeError(f"{', '.join(dead)} ended while {what} was awaited:\n{self._logs()}")
            return bool(condition())

        wait_until(reached, what, why=self._logs)

    def _variables(self) -> dict[str, str]:
        return {**os.environ, **self.environment()}

    def _ready(self) -> bool:
        if "down" in self.run("sinfo", "-h", "-N", "-o", "%T", check=False):
            self.run("scontrol", "update", f"nodename={','.join(self.nodes)}", "state=resume", check=False)
        seen = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
        return len(seen) == len(self.nodes) and all(re.fullmatch("idle|mixed|allocated", one) for one in seen)

    def _start(self, name: str, *command: str) -> None:
        running = self.daemons.get(name)
        if running is not None and running.poll() is None:
            return
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._variables(),
                preexec_fn=die_with_parent,
                start_new_session=True,
            )

    def _end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.daemons.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start_munge(self) -> None:
        home = self.folder / "munge"
        home.chmod(0o711)  # munged wants others to be able to search the socket's folder
        key = home / "key"
        if not key.exists():
            key.write_bytes(secrets.token_bytes(1024))
            key.chmod(0o400)
        places = [f"--key-file={key}", f"--socket={home}/socket", f"--pid-file={home}/pid"]
        logs = [f"--log-file={home}/log", f"--seed-file={home}/seed"]
        self._start("munged", "munged", "--foreground", "--force", *places, *logs)
        self._wait((home / "socket").exists, "munged")

    def _configure(self) -> None:
        etc = self.folder / "etc"
        for index in range(GPUS):
            gpu = self.folder / "gpu" / f"nvidia{index}"
            if not gpu.is_symlink():
                gpu.symlink_to("/dev/null")  # Slurm wants a device, whose name ends in the GPU's index
        controller, daemon, _, *nodes = self.ports
        values = {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "controller_port": controller,
            "dbd_port": daemon,
            "database_port": self.ports[2],
            "nodes": ",".join(self.nodes),
        }
        settings = SLURM.format(**values)
        if self.accounting:
            settings += DATABASE.format(**values)
            (etc / "slurmdbd.conf").write_text(SLURMDBD.format(**values))
            (etc / "slurmdbd.conf").chmod(0o600)
        for node, port in zip(self.nodes, nodes, strict=True):
            place = f"NodeHostname={values['host']} NodeAddr=127.0.0.1 Port={port}"
            settings += (
                f"NodeName={node} {place} CPUs={self.cpus} RealMemory=32000 Gres=gpu:{GPUS} State=UNKNOWN\n"
            )
        for key, value in self.options.items():
            settings, count = re.subn(rf"(?m)^{key}=.*$", f"{key}={value}", settings)
            settings += "" if count else f"{key}={value}\n"
        (etc / "slurm.conf").write_text(settings)
        (etc / "gres.conf").write_text(GRES.format(**values, last=GPUS - 1))

    def _start_accounting(self) -> None:
        data, log, place = self.folder / "mysql", self.folder / "log", self.folder / "mysql.sock"
        if not data.exists():
            make = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
            with (log / "install.out").open("wb") as out:
                how = "--auth-root-authentication-method=normal"
                subprocess.run([*make, how], stdout=out, stderr=out, check=True)
        small = ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"]
        where = [f"--datadir={data}", f"--socket={place}", "--bind-address=127.0.0.1", f"--port={self.ports[2]}"]
        patience = "--innodb-lock-wait-timeout=900"
        self._start("mariadbd", "mariadbd", "--no-defaults", "--user=root", *where, *small, patience)
        root = ["mariadb", "--no-defaults", "-uroot", "-S", str(place), "-e"]
        self._wait(lambda: self.run(*root, "select 1", check=False), "MariaDB")
        who = "'slurm'@'localhost'"
        self.run(*root, f"create or replace user {who} identified by 'test'; grant all on accounting.* to {who}")
        self._start("slurmdbd", "slurmdbd", "-D")
        listed = ["sacctmgr", "-n", "list", "cluster"]
        self._wait(lambda: probe(listed, self._variables()), "slurmdbd")
        if "test" not in self.run(*listed, "format=cluster"):
            self.run("sacctmgr", "-i", "add", "cluster", "test")

    def _logs(self) -> str:
        files = [*(self.folder / "log").glob("*.out"), *(self.folder / "munge").glob("log")]
        tails = (f"{path.name}: {' / '.join(path.read_text().splitlines()[-5:])}" for path in sorted(files))
        return "\n".join(tails)


def wait_until(
    condition: Callable[[], object],
    what: str,
    seconds: float = 40,
    why: Callable[[], str] = lambda: "",
    pause: float = 0.1,
) -> None:
    """Wait for a condition.

    Args:
        why: what to say besides when it does not come.

    Raises:
        TimeoutError: it did not come in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}: {why()}")
        time.sleep(pause)


def probe(command: list[str], variables: Mapping[str, str]) -> bool:
    """Whether a command succeeds."""
    return subprocess.run(command, env=variables, capture_output=True, timeout=60).returncode == 0


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def die_with_parent() -> None:
    """In a child before its program starts: have the kernel end it when its parent dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start a Slurm, print SLURM_CONF, stop it on Ctrl-C.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--accounting", action="store_true")
    parser.add_argument("--cpus", type=int, default=16)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Cluster(given.folder.absolute(), accounting=given.accounting, cpus=given.cpus) as started:
        print("".join(f"export {key}={value}\n" for key, value in started.environment().items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
