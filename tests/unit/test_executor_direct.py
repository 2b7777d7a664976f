"""Which jobs run by themselves, what runs then, and how arguments reach a Snakemake of a job's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake import api
from snakemake.settings import types as settings

from snakemake_executor_plugin_submitit import direct, identity
from snakemake_executor_plugin_submitit.call import RANK

HEAD = "rule all:\n    input: 'out.txt'\n"


def job(folder: Path, rule: str, **more):
    """The job of rule `make`, and its workflow, from a Snakefile with this text as the rule's body."""
    text = HEAD + "rule make:\n    output: 'out.txt'\n" + textwrap.indent(textwrap.dedent(rule), "    ")
    (folder / "Snakefile").write_text(text, encoding="utf-8")
    with api.SnakemakeApi(settings.OutputSettings(quiet={settings.Quietness.ALL})) as snakemake:
        workflow = snakemake.workflow(
            resource_settings=settings.ResourceSettings(cores=1, nodes=3),
            snakefile=folder / "Snakefile",
            workdir=folder,
            **more,
        )
        workflow.dag()
        inner = workflow._workflow
        inner.execution_settings = settings.ExecutionSettings()
        inner.remote_execution_settings = settings.RemoteExecutionSettings()
        inner.dag_settings = settings.DAGSettings()
        inner.scheduling_settings = settings.SchedulingSettings()
        inner._executor_plugin = SimpleNamespace(
            common_settings=SimpleNamespace(local_exec=False, dryrun_exec=False, touch_exec=False)
        )
        inner._prepare_dag(forceall=False, ignore_incomplete=True, lock_warn_only=False, nolock=True)
        inner._build_dag()
        (found,) = [one for one in inner.dag.jobs if one.rule.name == "make"]
        return found, inner


@pytest.mark.parametrize(
    ("rule", "obstacle"),
    [
        ("shell: 'touch {output}'", None),
        ("log: 'l'\nbenchmark: 'b.tsv'\nthreads: 2\nshell: 'touch {output}'", None),
        ("conda: 'env.yaml'\nshell: 'touch {output}'", None),
        ("run: pass", "it is not a shell rule"),
        ("script: 'x.py'", "it is not a shell rule"),
        ("shadow: 'minimal'\nshell: 'touch {output}'", "it has a shadow directory"),
        ("benchmark: repeat('b.tsv', 3)\nshell: 'touch {output}'", "its benchmark is of a special kind"),
        ("benchmark: 'b.jsonl'\nshell: 'touch {output}'", "its benchmark is of a special kind"),
        ("resources: tmpdir='/scratch'\nshell: 'touch {output}'", "its tmpdir depends on the node"),
        ("shell: 'echo {resources.tmpdir}'", "its command depends on the node"),
        ("handover: True\nshell: 'touch {output}'", "it hands over to another system"),
    ],
)
def test_what_stands_in_the_way(tmp_path, rule, obstacle):
    assert direct.obstacle(*job(tmp_path, rule)) == obstacle


def test_the_command_is_run_as_snakemake_would(tmp_path):
    one, workflow = job(tmp_path, "log: 'a b.log'\nshell: 'echo {output} 2> {log:q}'")
    call = direct.direct_call(one, workflow, 2, name="make", folder="/f", workdir="/w")
    program, flag, text = call.argv
    assert (Path(program).name, flag) == ("bash", "-c")
    assert text == "set -euo pipefail;  echo out.txt 2> 'a b.log'"
    assert call.peer_argv[2] == f"set -euo pipefail;  echo out.txt 2> '/f/rank-{RANK}/0-a b.log'"
    assert call.clears == (("out.txt", False), ("a b.log", False))


def test_a_mark_knows_a_job_again_and_its_work(tmp_path):
    first = identity.mark(job(tmp_path, "shell: 'touch {output}'")[0])
    assert identity.mark(job(tmp_path, "shell: 'touch {output}'")[0]) == first
    other = identity.mark(job(tmp_path, "params: 5\nshell: 'touch {output}'")[0])
    assert other.key == first.key
    assert other.fingerprint != first.fingerprint


def test_a_mark_does_not_depend_on_the_attempt(tmp_path):
    rule = "resources: mem_mb=lambda w, attempt: 100 * attempt\nshell: 'echo {resources.mem_mb}'"
    one, _ = job(tmp_path, rule)
    first = identity.mark(one)
    one.attempt = 3
    assert one.shellcmd == "echo 300"
    assert identity.mark(one) == first


def test_a_mark_depends_on_the_inputs_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("a")
    one, _ = job(tmp_path, "input: 'in'\nshell: 'cp {input} {output}'")
    first = identity.mark(one)
    os.utime(tmp_path / "in", (1, 1))
    assert identity.mark(one).key == first.key
    assert identity.mark(one).fingerprint != first.fingerprint


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"))))
def test_pythons_quotes_become_a_shells(words):
    assert shlex.split(direct.for_a_shell(" ".join(map(repr, words)))) == words


@given(st.text(st.characters(exclude_characters="\0\\", codec="utf-8"), min_size=1))
def test_a_shells_quotes_stay(word):
    assert shlex.split(direct.for_a_shell(shlex.quote(word))) == [word]


def test_they_are_a_shells_indeed():
    words = ["it's", 'a "b"', "$(touch pwned)", "a\nb", "`x`", "é"]
    text = direct.for_a_shell(" ".join(map(repr, words)))
    found = subprocess.run(["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True).stdout
    assert found.decode().split("\0")[:-1] == words
