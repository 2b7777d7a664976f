"""The submitit executor without Slurm: jobs as processes of this machine, and in Snakemake itself."""

from __future__ import annotations

import re

import pytest
import snakemake.common.tests
from local_workflow import VARIABLES, Workflow

from snakemake_executor_plugin_submitit import ExecutorSettings


class SnakemakesOwn(snakemake.common.tests.TestWorkflowsLocalStorageBase):
    """Snakemake's tests for executors."""

    __test__ = False
    cluster = "local"

    def get_executor(self) -> str:
        return "submitit"

    def get_executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings(cluster=self.cluster, poll_interval=0.5)


class TestLocal(SnakemakesOwn):
    __test__ = True


class TestDebug(SnakemakesOwn):
    __test__ = True
    cluster = "debug"


MANY = """
    rule all:
        input: expand("out/{i}.txt", i=range(30))
    rule make:
        output: "out/{i}.txt"
        resources: mem_mb=10
        shell: "echo {wildcards.i} >> runs.txt; echo {wildcards.i} > {output}"
"""


def test_thirty_jobs_of_equal_resources_are_one_submission(workflow):
    workflow.write(MANY)
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert re.findall(r"Submitted (\d+) job", done.stdout) == ["30"]
    assert sorted(workflow.lines(), key=int) == [str(i) for i in range(30)]
    assert workflow.jobs() == [], "files of jobs that succeeded are left"


def test_arrays_are_split_at_the_size_that_was_set(workflow):
    workflow.write(MANY)
    done = workflow.run("--submitit-array-size", "12")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"Submitted (\d+) job", done.stdout) == ["12", "12", "6"]


def test_a_failure_says_what_and_where(workflow):
    workflow.write("""
        rule broken:
            output: "out.txt"
            log: "logs/broken.log"
            shell: "echo partial > {output}; echo 'the disk is on fire' > {log}; exit 3"
    """)
    done = workflow.run("out.txt")
    assert done.returncode != 0
    assert "of rule broken: failed with exit code 3 on " in done.stdout
    assert "the disk is on fire" in done.stdout
    assert "logs/broken.log" in done.stdout
    assert not (workflow.folder / "out.txt").exists()
    assert (workflow.folder / "logs/broken.log").exists()


def test_standard_error_is_shown_where_a_rule_has_no_log(workflow):
    workflow.write("""
        rule broken:
            output: "out.txt"
            shell: "echo 'it ends here' >&2; kill -9 $$"
    """)
    done = workflow.run("out.txt")
    assert "of rule broken: failed with signal 9 (SIGKILL)" in done.stdout
    assert "it ends here" in done.stdout


def test_a_pipe_that_fails_fails_the_job(workflow):
    workflow.write("""
        rule broken:
            output: "out.txt"
            shell: "false | cat > {output}"
    """)
    assert workflow.run("out.txt").returncode != 0


def test_retries_get_the_resources_of_their_attempt(workflow):
    workflow.write("""
        rule grows:
            output: "out.txt"
            retries: 2
            resources: mem_mb=lambda w, attempt: 100 * attempt
            shell: "echo {resources.mem_mb} >> runs.txt; test {resources.mem_mb} = 300; touch {output}"
    """)
    done = workflow.run("out.txt")
    assert done.returncode == 0, done.stdout
    assert workflow.lines() == ["100", "200", "300"]


def test_rules_that_are_no_shell_commands_run_in_a_snakemake_of_their_own(workflow):
    workflow.write("""
        rule all:
            input: "run.txt", "script.txt", "shadow.txt", "two.txt"
        rule run:
            output: "run.txt"
            run:
                open(output[0], "w").write("run")
        rule script:
            output: "script.txt"
            params: word="it's $(date)"
            script: "script.py"
        rule shadow:
            output: "shadow.txt"
            shadow: "minimal"
            shell: "pwd > {output}; touch not-declared"
        rule one:
            output: temp("one.txt")
            group: "pair"
            shell: "echo 1 > {output}"
        rule two:
            input: "one.txt"
            output: "two.txt"
            group: "pair"
            shell: "cat {input} {input} > {output}"
    """)
    (workflow.folder / "script.py").write_text("open(snakemake.output[0], 'w').write(snakemake.params.word)\n")
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert workflow.lines("run.txt") == ["run"]
    assert workflow.lines("script.txt") == ["it's $(date)"]
    assert "/shadow/" in workflow.lines("shadow.txt")[0]
    assert workflow.lines("two.txt") == ["1", "1"]
    assert not (workflow.folder / "not-declared").exists()


def test_everything_can_be_wrapped(workflow):
    workflow.write("""
        rule all:
            input: "a.txt"
        rule make:
            output: "a.txt"
            benchmark: "b.tsv"
            shell: "env > {output}"
    """)
    done = workflow.run("--submitit-wrapped")
    assert done.returncode == 0, done.stdout
    assert (workflow.folder / "b.tsv").exists()


def test_log_benchmark_threads_and_environment_of_a_command_that_runs_by_itself(workflow, monkeypatch):
    workflow.write("""
        envvars: "SECRET"
        rule make:
            output: "out/a.txt", directory("out/d")
            log: "logs/deep/a.log"
            benchmark: "bench/deep/a.tsv"
            threads: 2
            shell: "(echo $OMP_NUM_THREADS $SECRET; mkdir {output[1]}; sleep 1) > {output[0]} 2> {log}"
    """)
    (workflow.folder / "out/d").mkdir(parents=True)
    (workflow.folder / "out/d/old").touch()
    monkeypatch.setitem(VARIABLES, "SECRET", "it's $HOME")
    done = workflow.run("out/a.txt")
    assert done.returncode == 0, done.stdout
    assert workflow.lines("out/a.txt") == ["2 it's $HOME"]
    header, row = workflow.lines("bench/deep/a.tsv")
    assert header.split("\t")[:3] == ["s", "h:m:s", "max_rss"]
    assert 1 <= float(row.split("\t")[0]) < 5
    assert (workflow.folder / "logs/deep/a.log").exists()
    assert not (workflow.folder / "out/d/old").exists()


NAMES = ["with space", "quo'te", 'dou"ble', "$(touch pwned)", "semi;touch pwned", "Zürich"]


@pytest.mark.parametrize("form", ["direct", "wrapped"])
def test_odd_names_reach_no_shell(workflow, form):
    workflow.write(f"""
        NAMES = {NAMES!r}
        rule all:
            input: expand("out dir/{{name}}.txt", name=NAMES)
        rule größe_make:
            output: "out dir/{{name}}.txt"
            params: text="a\\nb 'c' $(touch pwned)"
            shell: "printf %s {{params.text:q}} > {{output:q}}"
    """)
    done = workflow.run(*(["--submitit-wrapped"] if form == "wrapped" else []))
    assert done.returncode == 0, done.stdout
    for name in NAMES:
        assert (workflow.folder / "out dir" / f"{name}.txt").read_text() == "a\nb 'c' $(touch pwned)"
    assert not list(workflow.folder.rglob("pwned"))


def test_a_working_directory_with_an_odd_name(tmp_path):
    folder = tmp_path / "it's a $(touch pwned) Größe"
    folder.mkdir()
    workflow = Workflow(folder)
    workflow.write(MANY.replace("range(30)", "range(2)"))
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert not list(tmp_path.rglob("pwned"))


def test_checkpoint_rules(workflow):
    workflow.write("""
        def parts(wildcards):
            folder = checkpoints.split.get().output[0]
            return expand("done/{n}", n=glob_wildcards(folder + "/{n}.part").n)
        rule all:
            input: parts
        checkpoint split:
            output: directory("parts")
            shell: "mkdir {output}; touch {output}/a.part {output}/b.part"
        rule each:
            input: "parts/{n}.part"
            output: touch("done/{n}")
            shell: "echo {wildcards.n} >> runs.txt"
    """)
    done = workflow.run()
    assert done.returncode == 0, done.stdout
    assert sorted(workflow.lines()) == ["a", "b"]


@pytest.mark.parametrize(
    ("resource", "says"),
    [
        ("gpus=-1", "gpus=-1: a whole number is needed"),
        ("gpus=0.5", "gpus=0.5: a number of whole GPUs is needed"),
        ("gpus=lambda wildcards: 0.5", "gpus=0.5: a number of whole GPUs is needed"),
        ("gpu=lambda wildcards, attempt: 1.5 * attempt", "gpu=1.5: a number of whole GPUs is needed"),
        ("disk_mb=5000", "disk_mb=5000: no disk space is asked of Slurm by it; use slurm_extra"),
        ("disk='2GB'", "disk_mb=2000: no disk space is asked of Slurm by it"),
        ("disk_mib=lambda wildcards: 1000", "disk_mb=1048: no disk space is asked of Slurm by it"),
        ("memory=5", "unknown resource 'memory'; known are threads, mem_mb"),
        ("slurm_extra='--array=0-9'", "--array is set by the executor itself"),
        ("slurm_partition='a\\nb'", "control characters and newlines are not allowed"),
    ],
)
def test_impossible_resources_are_found_before_anything_runs(workflow, resource, says):
    workflow.write(f"""
        rule all:
            input: "b.txt"
        rule first:
            output: "a.txt"
            shell: "touch {{output}}"
        rule second:
            input: "a.txt"
            output: "b.txt"
            resources: {resource}
            shell: "touch {{output}}"
    """)
    done = workflow.run()
    assert done.returncode != 0
    assert f"rule second: {says}" in " ".join(done.stdout.split()) or says in done.stdout, done.stdout
    assert not (workflow.folder / "a.txt").exists()


ONE = """
    rule b:
        output: "b.txt"
        resources: {resource}
        shell: "touch {{output}}"
"""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set-resources", "b:gpus=1.5"], "rule b: gpus=1.5: a number of whole GPUs is needed"),
        (["--default-resources", "gpu=0.5"], "rule b: gpu=0.5: a number of whole GPUs is needed"),
        (["--set-resources", "b:disk_mb=7"], "rule b: disk_mb=7: no disk space is asked of Slurm by it"),
        (["--default-resources", "disk_mb=7*attempt"], "rule b: disk_mb=7: no disk space is asked of Slurm by it"),
    ],
)
def test_impossible_resources_of_the_command_line(workflow, options, says):
    workflow.write(ONE.format(resource="mem_mb=5"))
    done = workflow.run("b.txt", *options)
    assert done.returncode != 0
    assert says in " ".join(done.stdout.split()), done.stdout
    assert not (workflow.folder / "b.txt").exists()


def test_a_fraction_for_some_jobs_of_a_rule(workflow):
    workflow.write("""
        rule each:
            output: "{n}.txt"
            resources: gpus=lambda wildcards: int(wildcards.n) / 2
            shell: "touch {output}"
    """)
    done = workflow.run("0.txt", "1.txt", "2.txt", "--keep-going")
    assert done.returncode != 0
    assert "gpus=0.5: a number of whole GPUs is needed" in done.stdout
    assert not (workflow.folder / "1.txt").exists()


@pytest.mark.parametrize(
    ("resource", "options"),
    [
        ("gpus=0.5", ["--set-resources", "b:gpus=0"]),
        ("gpus=lambda wildcards: 0.0", ["--default-resources", "mem_mb=10"]),
        ("disk_mb=5000", ["--resources", "disk_mb=9000"]),
    ],
)
def test_resources_that_hide_nothing(workflow, resource, options):
    workflow.write(ONE.format(resource=resource))
    done = workflow.run("b.txt", *options)
    assert done.returncode == 0, done.stdout


def test_no_sbatch_is_one_line(workflow, monkeypatch):
    workflow.write(MANY)
    programs = workflow.folder / "bin"
    programs.mkdir()
    (programs / "bash").symlink_to("/bin/bash")
    monkeypatch.setitem(VARIABLES, "PATH", str(programs))
    done = workflow.run("--submitit-cluster", "slurm")
    assert done.returncode != 0
    assert "no sbatch on PATH: is this a machine from which jobs can be submitted to Slurm?" in done.stdout
    assert "Traceback" not in done.stdout
