"""A run that is told to stop writes a checkpoint and ends with status 75; the next one is bit for bit the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import distill, finish, until
from test_distill_run import arguments, log_of

from matvlm.distill import run
from matvlm.training import interrupt

pytestmark = pytest.mark.processes
STEPS = 60
SETTINGS = {"steps": STEPS, "save_every": 5, "validate_every": 20}
LOGGED = Path(__file__).parents[2] / "workflow/scripts/logged"


@pytest.fixture(scope="module")
def whole(small, cache, tmp_path_factory) -> Path:
    """The model of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run.main(arguments(small, out, settings=SETTINGS)) == 0
    return out


def same(one: Path, other: Path) -> bool:
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    return weights[0] == weights[1] and log_of(one) == log_of(other)


def interrupted_at(error: str, state: Path) -> int:
    """The step that a run says it was interrupted at, in one line that names its state."""
    assert "Traceback" not in error
    pattern = rf"^distill .*: interrupted at step (\d+) of {STEPS}; the state to resume from is in {state}/\w+$"
    (step,) = re.findall(pattern, error, re.MULTILINE)
    return int(step)


def test_a_run_interrupted_twice_is_the_uninterrupted_one(small, cache, whole, tmp_path):
    out, state = tmp_path / "out", tmp_path / "state"
    steps = []
    for number in interrupt.SIGNALS:
        process = distill(small, out, settings=SETTINGS)
        known = set(state.glob("*/step-*"))
        until(lambda known=known: set(state.glob("*/step-*")) - known, process)
        insist(process, number)
        status, error = finish(process)
        assert status == 75
        steps.append(interrupted_at(error, state))
        assert sorted(state.glob("*/step-*"))[-1].name == f"step-{steps[-1]:08d}"
        assert not out.exists()
    assert 0 < steps[0] < steps[1] < STEPS
    status, error = finish(distill(small, out, settings=SETTINGS))
    assert status == 0
    assert f"resumed at step {steps[1]} of {STEPS}" in error
    assert same(out, whole)


def insist(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal until the process has ended, as who cannot know whether it was heard."""
    while process.poll() is None:
        process.send_signal(number)
        time.sleep(0.01)


def block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupt.SIGNALS)


def test_a_signal_before_the_first_line_of_code(small, cache, tmp_path):
    """Where the parent blocks the signal it waits until there is somebody to hear it."""
    process = distill(small, tmp_path / "out", settings=SETTINGS, before=block)
    process.send_signal(signal.SIGUSR2)
    status, error = finish(process)
    assert status == 75
    assert interrupted_at(error, tmp_path / "state") == 1


def catches(process: subprocess.Popen, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_while_libraries_are_imported(small, cache, tmp_path):
    process = distill(small, tmp_path / "out", settings=SETTINGS)
    until(lambda: catches(process, signal.SIGTERM), process)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(signal.SIGTERM)
    status, error = finish(process)
    assert status == 75
    assert interrupted_at(error, tmp_path / "state") == 1


def test_ctrl_c_ends_a_run_as_ever(small, cache, tmp_path):
    process = distill(small, tmp_path / "out", settings=SETTINGS)
    until(lambda: list(tmp_path.glob("state/*/step-*")), process)
    process.send_signal(signal.SIGINT)
    status, error = finish(process)
    assert status in (-signal.SIGINT, 130, 1)
    assert "KeyboardInterrupt" in error


def test_listening_ends_with_the_block():
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    with interrupt.listening():
        signal.raise_signal(signal.SIGUSR2)
        assert interrupt.asked()
    assert not interrupt.asked()
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


def test_a_nested_block_keeps_what_was_heard():
    with interrupt.listening():
        with interrupt.listening():
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked()


SLOW = """
import signal, sys, time
def stop(number, frame):
    time.sleep(0.3)
    print("last words")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_the_wrapper_of_rules_waits_for_the_last_words(tmp_path):
    """Signals come to the whole process group, so to the shell around a command too."""
    log = tmp_path / "log"
    command = ["bash", str(LOGGED), str(log), sys.executable, "-c", SLOW]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: log.is_file() and "ready" in log.read_text(), process)
    os.killpg(process.pid, signal.SIGTERM)
    status, error = finish(process)
    assert status == 75
    assert error == log.read_text() == "ready\nlast words\n"
