"""A rule's resources as parameters of submitit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_submitit.resources import (
    ResourceError,
    check_folder,
    clean_name,
    slurm_parameters,
    warning_time,
)


def parameters(threads: int = 1, **resources):
    return slurm_parameters(resources, threads)


def test_all_of_them():
    found = parameters(
        threads=4,
        mem_mb=8000,
        runtime=120,
        gpus=8,
        nodes=2,
        slurm_partition="gpu",
        slurm_account="me",
        slurm_qos="long",
        slurm_constraint="a100|h100",
        slurm_extra="--exclusive --mail-user='a b@c' --nice=5",
    )
    assert found == {
        "nodes": 2,
        "ntasks_per_node": 4,
        "cpus_per_task": 4,
        "time": 120,
        "mem": "8000M",
        "gpus_per_node": 4,
        "gres": None,
        "partition": "gpu",
        "account": "me",
        "qos": "long",
        "constraint": "a100|h100",
        "signal_delay_s": 90,
        "srun_args": ["--cpus-per-task=4", "--kill-on-bad-exit=1"],
        "additional_parameters": {"exclusive": True, "mail_user": "a b@c", "nice": "5"},
        "wckey": None,
    }


def test_what_is_not_given_is_left_to_slurm():
    found = parameters()
    assert {name for name, value in found.items() if value is None} >= {
        "time",
        "mem",
        "partition",
        "gpus_per_node",
    }
    assert (found["nodes"], found["ntasks_per_node"], found["cpus_per_task"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("resources", "nodes", "tasks_per_node", "gpus_per_node"),
    [
        ({"gpus": 1}, 1, 1, 1),
        ({"gpu": 4}, 1, 4, 4),
        ({"gpus": 4, "tasks": 1}, 1, 1, 4),
        ({"nodes": 2}, 2, 1, None),
        ({"nodes": 2, "gpus": 4}, 2, 2, 2),
        ({"nodes": 2, "tasks": 8}, 2, 4, None),
        ({"gpus": 0}, 1, 1, None),
        ({"gpus": "2"}, 1, 2, 2),
    ],
)
def test_one_task_a_gpu_or_a_node(resources, nodes, tasks_per_node, gpus_per_node):
    found = slurm_parameters(resources, 1)
    assert (found["nodes"], found["ntasks_per_node"], found["gpus_per_node"]) == (
        nodes,
        tasks_per_node,
        gpus_per_node,
    )


def test_snakemakes_own_are_ignored_and_so_are_limits():
    own = {
        "mem": "1 GB",
        "mem_mib": 954,
        "disk_mb": 5,
        "tmpdir": "<TBD>",
        "_cores": 1,
        "_nodes": 1,
        "mem_mb": 1000,
    }
    assert slurm_parameters(own | {"downloads": 1}, 1, limits=["downloads"])["mem"] == "1000M"
    assert slurm_parameters({"mem_mb": "<TBD>"}, 1)["mem"] is None


def test_empty_words_are_not_given():
    assert parameters(slurm_partition="", slurm_account=" ")["partition"] is None


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ({"memory": 5}, "unknown resource 'memory'; known are threads, mem_mb"),
        ({"gpus": -1}, "gpus=-1: a whole number is needed, at least 0"),
        ({"gpus": 0.5}, "gpus=0.5: a whole number is needed"),
        ({"gpus": True}, "gpus=True: a whole number is needed"),
        ({"gpus": 1, "gpu": 1}, "give either gpus or gpu"),
        ({"gpus": 1, "gres": "gpu:1"}, "give either gpus or a gres of type gpu"),
        ({"gpus": 3, "nodes": 2}, "gpus=3 cannot be shared equally by nodes=2"),
        ({"tasks": 3, "nodes": 2}, "tasks=3 cannot be shared equally by nodes=2"),
        ({"tasks": 0}, "tasks=0: a whole number is needed, at least 1"),
        ({"mem_mb": "5GB"}, "mem_mb='5GB': a whole number of megabytes, without a unit is needed"),
        ({"runtime": 0}, "runtime=0: a whole number of minutes is needed"),
        ({"gres": "gpu:2 --wrap=x"}, "this is not gres, such as gpu:2"),
        ({"slurm_partition": "a\nb"}, "control characters and newlines are not allowed"),
        ({"slurm_extra": "-p x"}, "'-p' is not of the form --name=value or --name"),
        ({"slurm_extra": "--exclude='a"}, "No closing quotation"),
        ({"slurm_extra": "--array=0-5"}, "--array is set by the executor itself"),
        ({"slurm_extra": "--open-mode=append"}, "--open-mode is set by the executor itself"),
        ({"slurm_extra": "--arra=0-5"}, "--arra is read as --array, which is set by the executor itself"),
        ({"slurm_extra": "--nice=5 --clusters=far"}, "--clusters is set by the executor itself"),
        ({"slurm_extra": "--cluster=far"}, "--cluster is read as --clusters, which is set by"),
        ({"slurm_extra": "--wait"}, "--wait is set by the executor itself"),
        ({"slurm_extra": "--test-only"}, "--test-only is set by the executor itself"),
        ({"slurm_extra": "--signal=USR1@5"}, "--signal is set by the executor itself"),
        ({"slurm_extra": "--time=5"}, "--time has a resource of its own, runtime"),
        ({"slurm_extra": "--tim=5"}, "--tim is read as --time, which has a resource of its own, runtime"),
        ({"slurm_extra": "--ntasks=2"}, "--ntasks has a resource of its own, tasks"),
        ({"slurm_extra": "--nodes=2"}, "--nodes has a resource of its own, nodes"),
        ({"slurm_extra": "--mem=5G"}, "--mem has a resource of its own, mem_mb"),
        (
            {"slurm_extra": "--part=gpu"},
            "--part is read as --partition, which has a resource of its own, slurm",
        ),
    ],
)
def test_bad_ones_are_one_clear_line(resources, says):
    with pytest.raises(ResourceError) as error:
        slurm_parameters(resources, 1)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


OTHERS = (
    "exclusive exclude=n1 nice=5 nodelist=n1 export=ALL hold begin=now+1hour dependency=singleton reservation=r "
    "mem-bind=local gpu-bind=closest time-min=5 tmp=5 licenses=a mail-type=END requeue contiguous "
    "hint=nomultithread cores-per-socket=2 wckey=w verbose"
)


@pytest.mark.parametrize("option", OTHERS.split())
def test_other_options_of_sbatch_pass(option):
    name, _, value = option.partition("=")
    found = parameters(slurm_extra=f"--{option}")["additional_parameters"]
    assert found == {name.replace("-", "_"): value or True}


def test_no_threads():
    with pytest.raises(ResourceError, match="threads=0"):
        parameters(threads=0)


@pytest.mark.parametrize(("runtime", "seconds"), [(None, 90), (60, 90), (2, 40), (1, 20)])
def test_a_short_job_is_warned_later(runtime, seconds):
    assert warning_time(runtime, 90) == seconds


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("train", "train"),
        ("größe machen", "groe-machen"),
        ("a;rm -rf $(x)\n'\"", "a-rm--rf-x"),
        ("日本", "job"),
        ("", "job"),
        ("x" * 100, "x" * 64),
    ],
)
def test_job_names(name, clean):
    assert clean_name(name) == clean


@given(st.text())
def test_job_names_are_harmless_whatever_they_were(name):
    assert clean_name(name)
    assert set(clean_name(name)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert clean_name(name)[0] not in "-."


@pytest.mark.parametrize("name", ["a%j", "a\nb", "a\\b"])
def test_folders_that_sbatch_would_read_otherwise(name):
    with pytest.raises(ResourceError, match="which sbatch interprets"):
        check_folder(Path("/home") / name)


def test_folders_with_spaces_and_quotes_are_fine():
    check_folder(Path("/home/it's a folder/Größe"))
