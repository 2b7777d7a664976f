"""What survives when Snakemake is killed or interrupted, tasks that belong together, and warned jobs."""

from __future__ import annotations

import json
import signal
import textwrap
import time

import pytest
from local_workflow import Workflow

SLOW = """
    rule all:
        input: "final.txt"
    rule slow:
        output: "out/{i}.txt"
        shell: "echo {wildcards.i} >> runs.txt; sleep 6; echo {wildcards.i} > {output}"
    rule last:
        input: expand("out/{i}.txt", i=range(3))
        output: "final.txt"
        shell: "cat {input} > {output}; echo last >> runs.txt"
"""


@pytest.mark.parametrize("pause", [0, 10], ids=["while-jobs-run", "after-they-ended"])
def test_a_killed_snakemake_takes_its_jobs_over(workflow, pause):
    workflow.write(SLOW)
    first = workflow.start()
    workflow.wait_for_lines(3)
    first.kill()
    first.wait()
    time.sleep(pause)
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert "Took over 3 job(s)" in done.stdout
    assert sorted(workflow.lines()) == ["0", "1", "2", "last"]
    assert workflow.lines("final.txt") == ["0", "1", "2"]
    assert workflow.jobs() == []


def test_a_job_whose_rule_has_changed_is_stopped_and_run_anew(workflow):
    workflow.write(SLOW)
    first = workflow.start()
    workflow.wait_for_lines(3)
    first.kill()
    first.wait()
    workflow.write(SLOW.replace("sleep 6; echo", "sleep 0; echo new"))
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert "Took over" not in done.stdout
    assert workflow.lines("final.txt") == ["new 0", "new 1", "new 2"]
    assert len(workflow.lines()) == 7


def test_a_group_that_is_half_done_does_not_run_twice(workflow):
    """After the restart the group holds its second half only, and so is another job."""
    workflow.write("""
        rule all:
            input: "b.txt"
        rule a:
            output: "a.txt"
            group: "both"
            shell: "echo a >> runs.txt; touch {output}"
        rule b:
            input: "a.txt"
            output: "b.txt"
            group: "both"
            shell: "echo begin >> runs.txt; sleep 12; echo end >> runs.txt; touch {output}"
    """)
    first = workflow.start()
    workflow.wait_for_lines(2)
    first.kill()
    first.wait()
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert "Took over" not in done.stdout
    assert workflow.lines()[:2] == ["a", "begin"]
    assert workflow.lines()[-2:] == ["begin", "end"]
    assert workflow.lines().count("end") == 1
    assert workflow.processes("submitit.local._local") == []


RECORD = """
    import json, os, pathlib, sys, time
    import psutil
    (folder,) = pathlib.Path(".snakemake/submitit").glob("snakemake-*/0")
    record = {"exit_code": int(sys.argv[1]), "outputs": []}
"""


def test_a_job_that_counts_as_failed_is_stopped(workflow):
    """It has a bad result, but does not end."""
    script = (
        RECORD
        + """
    (folder / "done.json").write_text(json.dumps(record))
    time.sleep(60)
    """
    )
    (workflow.folder / "work.py").write_text(textwrap.dedent(script))
    workflow.write("""
        rule work:
            output: "out.txt"
            shell: "python work.py 3"
    """)
    done = workflow.run("out.txt", "--submitit-grace", "1")
    assert done.returncode != 0
    assert "failed with exit code 3" in done.stdout
    assert workflow.processes("submitit.local._local") == []
    assert workflow.processes("submitit.core._submit") == []


def test_a_late_result_is_waited_for_as_long_as_a_late_file(workflow):
    """The job is gone at once; its result shows up some seconds later."""
    script = (
        RECORD
        + """
    if os.fork() == 0:
        os.setsid()
        time.sleep(8)
        pathlib.Path("out.txt").touch()
        (folder / "done.json").write_text(json.dumps(record))
        os._exit(0)
    for process in psutil.Process().parents():
        if any("submitit.local._local" in word or "submitit.core._submit" in word for word in process.cmdline()):
            process.kill()
    """
    )
    (workflow.folder / "work.py").write_text(textwrap.dedent(script))
    workflow.write("""
        rule work:
            output: "out.txt"
            shell: "python work.py 0"
    """)
    done = workflow.run("out.txt", "--submitit-grace", "1", "--latency-wait", "30")
    assert done.returncode == 0, done.stdout


def test_a_kill_between_intent_and_confirmation_is_settled(workflow):
    workflow.write(SLOW)
    first = workflow.start()
    workflow.wait_for_lines(3)
    first.kill()
    first.wait()
    # As if Snakemake had died before it learnt the jobs' ids.
    ledger = workflow.folder / ".snakemake/submitit/ledger.jsonl"
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    ledger.write_text("".join(json.dumps(one) + "\n" for one in records if one["event"] == "intent"))
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert sorted(workflow.lines()) == ["0", "1", "2", "last"]


def test_an_output_that_is_damaged_meanwhile_is_made_anew(workflow):
    workflow.write(SLOW)
    first = workflow.start()
    workflow.wait_for_lines(3)
    first.kill()
    first.wait()
    time.sleep(9)
    (workflow.folder / "out/1.txt").write_text("")
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert sorted(workflow.lines()) == ["0", "1", "1", "2", "last"]
    assert workflow.lines("final.txt") == ["0", "1", "2"]


def test_ctrl_c_cancels(workflow):
    workflow.write(SLOW)
    first = workflow.start()
    workflow.wait_for_lines(3)
    first.send_signal(signal.SIGINT)
    first.wait(timeout=60)
    assert "Cancelled 3 job(s)." in "\n".join(workflow.lines("controller.log"))
    assert workflow.processes("submitit.local._local") == []
    time.sleep(6)
    assert not list(workflow.folder.glob("out/*"))
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert len(workflow.lines()) == 7


def test_ctrl_c_leaves_jobs_running_if_asked_to(workflow):
    workflow.write(SLOW)
    first = workflow.start("--submitit-keep-jobs")
    workflow.wait_for_lines(3)
    first.send_signal(signal.SIGINT)
    first.wait(timeout=60)
    assert "Left 3 job(s) running" in "\n".join(workflow.lines("controller.log"))
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert sorted(workflow.lines()) == ["0", "1", "2", "last"]


def test_only_one_snakemake_uses_a_folder(workflow):
    workflow.write(SLOW)
    first = workflow.start()
    try:
        workflow.wait_for_lines(3)
        second = workflow.run()
        assert second.returncode != 0
        assert f"is in use by process {first.pid}" in second.stdout
    finally:
        first.send_signal(signal.SIGINT)
        first.wait(timeout=60)


def test_tasks_of_a_job_find_each_other(workflow):
    workflow.write("""
        rule ranks:
            output: "out.txt"
            log: "ranks.log"
            resources: tasks=2, runtime=2
            shell:
                "echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT >> runs.txt;"
                " echo rank $RANK > {log}; if [ $RANK = 0 ]; then sleep 1; touch {output}; fi"
    """)
    done = workflow.run("out.txt")
    assert done.returncode == 0, done.stdout
    ranks = sorted(line.split() for line in workflow.lines())
    assert [rank[:4] for rank in ranks] == [["0", "0", "2", "127.0.0.1"], ["1", "1", "2", "127.0.0.1"]]
    assert ranks[0][4] == ranks[1][4]
    assert workflow.lines("ranks.log") == ["rank 0"]


def test_a_failing_task_fails_the_job(workflow):
    workflow.write("""
        rule ranks:
            output: "out.txt"
            resources: tasks=2, runtime=2
            shell: "if [ $RANK = 1 ]; then exit 4; fi; touch {output}; sleep 60"
    """)
    started = time.monotonic()
    done = workflow.run("out.txt")
    assert done.returncode != 0
    assert "task 1 of 2 failed with exit code 4" in done.stdout
    assert time.monotonic() - started < 45


CHECKPOINTS = """
    import pathlib, signal, sys, time
    state, out = map(pathlib.Path, sys.argv[1:])
    asked = []
    signal.signal(signal.SIGUSR2, lambda *_: asked.append(1))
    begin = int(state.read_text()) if state.exists() else 0
    with open("runs.txt", "a") as log:
        print("from", begin, file=log)
    for step in range(begin, 40):
        time.sleep(0.1)
        if asked:
            state.write_text(str(step))
            sys.exit(75)
    out.write_text("done")
"""


def warn(workflow: Workflow) -> None:
    """Send the warning to the job's tasks, as Slurm would before its time limit."""
    tasks = workflow.processes("submitit.core._submit")
    assert tasks
    for task in tasks:
        task.send_signal(signal.SIGUSR2)


def test_a_warned_job_writes_a_checkpoint_and_goes_on(workflow):
    (workflow.folder / "work.py").write_text(textwrap.dedent(CHECKPOINTS))
    workflow.write("""
        rule work:
            output: "out.txt"
            shell: "python work.py state {output}"
    """)
    running = workflow.start("out.txt")
    workflow.wait_for_lines(1)
    time.sleep(1)
    warn(workflow)
    assert running.wait(timeout=90) == 0, workflow.lines("controller.log")
    begins = [int(line.split()[1]) for line in workflow.lines()]
    assert len(begins) == 2
    assert begins[0] == 0
    assert begins[1] > 0


@pytest.mark.parametrize("setting", ["requeue", "fail"])
def test_a_warned_job_without_a_checkpoint(workflow, setting):
    workflow.write("""
        rule work:
            output: "out.txt"
            shell: "echo begin >> runs.txt; sleep 12; touch {output}"
    """)
    running = workflow.start("out.txt", "--submitit-signal-before", "2", "--submitit-no-checkpoint", setting)
    workflow.wait_for_lines(1)
    time.sleep(1)
    warn(workflow)
    code = running.wait(timeout=120)
    text = "\n".join(workflow.lines("controller.log"))
    if setting == "requeue":
        assert code == 0, text
        assert workflow.lines() == ["begin", "begin"]
    else:
        assert code != 0
        assert "preempted, and the command wrote no checkpoint" in text
        assert workflow.lines() == ["begin"]
