"""What a submitted job does, run in this process or in one of its own; and the record that it leaves."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snakemake_executor_plugin_submitit import ranks
from snakemake_executor_plugin_submitit import result as results
from snakemake_executor_plugin_submitit.call import RANK, RuleCall
from snakemake_executor_plugin_submitit.ranks import Place
from snakemake_executor_plugin_submitit.result import Output, Result

RUN = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))()"


def call(folder: Path, command: str, **more) -> RuleCall:
    (folder / "job").mkdir(exist_ok=True)
    return RuleCall("make", ("bash", "-c", command), str(folder / "job"), str(folder), **more)


def start(call: RuleCall, **variables: str) -> subprocess.Popen[str]:
    """Run a call as a task of a submitit job on this machine."""
    file = Path(call.workdir) / f"call{len(list(Path(call.workdir).glob('call*')))}.pkl"
    file.write_bytes(pickle.dumps(call))
    environment = os.environ | {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "1"} | variables
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(file)], env=environment, stderr=subprocess.PIPE, text=True
    )


def done(call: RuleCall) -> Result | None:
    return results.read(Path(call.folder))


def run(call: RuleCall, **variables: str) -> int:
    process = start(call, **variables)
    _, error = process.communicate(timeout=60)
    assert "Traceback" not in error, error
    return process.returncode


def test_a_command_that_succeeds(tmp_path):
    one = call(tmp_path, "echo hello > out; mkdir dir", outputs=("out", "dir", "none"))
    assert run(one) == 0
    found = done(one)
    assert found.succeeded
    assert found.outputs == (Output("out", "file", 6), Output("dir", "folder"), Output("none", "missing"))
    assert found.started <= found.ended
    assert found.intact(tmp_path)
    (tmp_path / "out").write_text("hel")
    assert not found.intact(tmp_path)


@pytest.mark.parametrize(
    ("command", "status", "words"), [("exit 3", 3, "exit code 3"), ("kill -9 $$", 137, "signal 9 (SIGKILL)")]
)
def test_a_command_that_fails(tmp_path, command, status, words):
    one = call(tmp_path, command)
    assert run(one) == status
    assert not done(one).succeeded
    assert done(one).words == words


def test_a_second_start_does_nothing(tmp_path):
    one = call(tmp_path, "echo x >> runs; exit 4")
    assert [run(one), run(one)] == [4, 4]
    assert (tmp_path / "runs").read_text() == "x\n"


def test_a_second_start_after_all_is_over_touches_nothing(tmp_path):
    """Slurm may requeue an element whose record Snakemake has read and removed."""
    one = call(tmp_path, "echo x >> out", clears=(("out", False),))
    assert run(one) == 0
    shutil.rmtree(one.folder)
    assert run(one) == 0
    assert (tmp_path / "out").read_text() == "x\n"
    assert not Path(one.folder).exists()


def test_a_warning_before_the_start_requeues(tmp_path):
    """submitit listens for it before it calls; then nothing has begun, and nothing is late."""
    one = call(tmp_path, "true", time_limit=1, no_checkpoint="fail")
    again = one.checkpoint()
    assert again.function == one
    assert done(one) is None


def test_outputs_are_cleared_and_their_folders_made(tmp_path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/old").touch()
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep/old").touch()
    (tmp_path / "link").symlink_to("keep")
    clears = (("dir", True), ("keep", False), ("link", False), ("new/deep/out", False))
    one = call(
        tmp_path, "test ! -e dir && test -e keep/old && test ! -e link && echo > new/deep/out", clears=clears
    )
    assert run(one) == 0


def test_inputs_are_waited_for(tmp_path):
    one = call(tmp_path, "cat late", inputs=("late",), latency=20)
    process = start(one)
    time.sleep(1)
    (tmp_path / "late").touch()
    assert process.wait(timeout=30) == 0


def test_an_input_that_does_not_come(tmp_path):
    one = call(tmp_path, "touch ran", inputs=("late",), latency=0.3)
    assert run(one) == 1
    assert "input 'late' is not there on" in done(one).reason
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_gone(tmp_path):
    one = call(tmp_path, "true")
    one.workdir, one.argv = str(tmp_path / "gone"), ("bash", "-c", "true")
    (tmp_path / "gone").mkdir()
    process_call = start(one)
    process_call.wait(timeout=30)
    one.argv = ("no-such-shell", "-c", "true")
    one.folder = str(tmp_path / "job2")
    (tmp_path / "job2").mkdir()
    assert run(one) == 1
    assert "could not start: " in done(one).reason


def test_a_very_long_command(tmp_path):
    assert run(call(tmp_path, "true " + "x" * 200_000 + "; touch out", outputs=("out",))) == 0
    assert (tmp_path / "out").exists()


def test_variables_and_threads(tmp_path):
    one = call(tmp_path, "echo $OMP_NUM_THREADS $WORD > out", variables={"WORD": "$x 'y'"}, threads=3)
    run(one)
    assert (tmp_path / "out").read_text() == "3 $x 'y'\n"


def test_a_job_that_is_cancelled_leaves_no_record(tmp_path):
    one = call(tmp_path, "touch begun; sleep 60")
    process = start(one)
    wait_for(tmp_path / "begun")
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert done(one) is None


def test_a_signal_that_reaches_the_command_first(tmp_path):
    """Without control groups Slurm signals all processes of a job, in any order."""
    one = call(tmp_path, "touch begun; kill -TERM $$")
    process = start(one)
    wait_for(tmp_path / "begun")
    process.terminate()
    process.wait(timeout=10)
    assert done(one) is None


def test_a_command_that_succeeds_all_the_same_is_recorded(tmp_path):
    one = call(tmp_path, "trap 'exit 0' TERM; touch begun; sleep 60 & wait")
    process = start(one)
    wait_for(tmp_path / "begun")
    process.terminate()
    assert process.wait(timeout=10) == 0
    assert done(one).succeeded


def test_a_job_that_slurm_started_again(tmp_path):
    one = call(tmp_path, "touch ran", no_checkpoint="fail")
    assert run(one, SLURM_RESTART_COUNT="1") == 1
    assert "without a checkpoint" in done(one).reason
    (tmp_path / "job/done.json").unlink()
    (tmp_path / "job/checkpointed").touch()
    assert run(one, SLURM_RESTART_COUNT="2") == 0


def test_it_is_pickled_without_its_state(tmp_path):
    one = call(tmp_path, "true")
    one._child = object()
    assert pickle.loads(pickle.dumps(one)) == call(tmp_path, "true")


def test_a_job_needs_little_to_be_imported():
    """Each job pays for what its module imports."""
    code = "import sys, snakemake_executor_plugin_submitit.call; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"snakemake", "psutil", "submitit", "snakemake_interface_executor_plugins"} & set(modules)


def test_tasks(tmp_path):
    peer = ("bash", "-c", f"echo $RANK of $WORLD_SIZE {RANK} > peer")
    one = call(tmp_path, "sleep 0.5; echo $RANK of $WORLD_SIZE > lead", peer_argv=peer)
    both = [start(one, SUBMITIT_LOCAL_NTASKS="2", SUBMITIT_LOCAL_GLOBALID=rank) for rank in "01"]
    assert [process.wait(timeout=30) for process in both] == [0, 0]
    assert (tmp_path / "lead").read_text() == "0 of 2\n"
    assert (tmp_path / "peer").read_text() == "1 of 2 1\n"
    assert done(one).succeeded


def test_a_task_that_fails(tmp_path):
    one = call(tmp_path, "sleep 60", peer_argv=("bash", "-c", "exit 5"))
    both = [start(one, SUBMITIT_LOCAL_NTASKS="2", SUBMITIT_LOCAL_GLOBALID=rank) for rank in "01"]
    assert [process.wait(timeout=30) for process in both] == [1, 5]
    assert done(one).reason == "task 1 of 2 failed with exit code 5"


def test_what_torch_distributed_is_told():
    place = Place(3, 4, 1, 2, "node7", "123_4")
    found = place.variables()
    port = found.pop("MASTER_PORT")
    assert found == {
        "MASTER_ADDR": "node7",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }
    assert 1024 < int(port) < 32768
    assert Place(job_id="1").variables() == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '{"exit_code": 0}',
        '{"exit_code": 0, "outputs": [], "x": 1}',
        '{"exit_code": "0", "outputs": []}',
    ],
)
def test_a_damaged_record_is_none(tmp_path, text):
    (tmp_path / "done.json").write_text(text)
    assert results.read(tmp_path) is None


def test_a_truncated_record_is_none(tmp_path):
    results.write(tmp_path, Result(0, outputs=(Output("a", "file", 1),)))
    text = (tmp_path / "done.json").read_text()
    assert json.loads(text)["exit_code"] == 0
    for length in range(len(text)):
        (tmp_path / "done.json").write_text(text[:length])
        assert results.read(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5:00", 300), ("1:00:01", 3601), ("2-03:00:00", 183600), ("UNLIMITED", math.inf), ("", math.inf)],
)
def test_slurms_durations(text, seconds):
    assert ranks.read_duration(text) == seconds


@pytest.mark.parametrize(("limit", "after", "late"), [(3600, 3500, True), (3600, 3450, True), (3600, 600, False)])
def test_a_warning_is_that_of_the_time_limit_or_not(tmp_path, limit, after, late):
    one = call(tmp_path, "true", time_limit=limit, signal_before=90)
    one._began = 1000.0
    assert one._at_time_limit(1000.0 + after) == late


def test_zero_with_a_reason_is_no_success():
    assert not Result(0, reason="task 1 failed").succeeded
    assert not Result(None).succeeded


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.1)
