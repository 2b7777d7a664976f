"""`--profile slurm`: where jobs go comes from one place, and reaches every rule. Nothing is submitted here."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from checkouts import ROOT
from conftest import run, snakemake

SETTINGS = "slurm={partition: gpu, account: lab, extra: --exclude=node7}"


def resources(checkout: Path, *arguments: str, settings: str = "") -> dict[str, list[dict[str, str]]]:
    """The resources of all jobs of a dry run, by rule."""
    done = snakemake(checkout, "--profile", "slurm", "--dry-run", "all", *arguments, settings=settings)
    assert done.returncode == 0, done.stdout
    found: dict[str, list[dict[str, str]]] = {}
    for block in re.split(r"\n(?= *(?:rule|localrule) )", done.stdout):
        name = re.match(r" *rule (\w+):", block)  # of a group they are indented
        line = re.search(r"^ +resources: (.*)$", block, re.MULTILINE)
        if name and line:
            pairs = (pair.partition("=") for pair in line[1].split(", "))
            found.setdefault(name[1], []).append({key: value for key, _, value in pairs})
    return found


def test_the_section_reaches_every_rule(checkout):
    jobs = resources(checkout, settings=SETTINGS)
    assert {"prepare_data", "train_teacher", "distill", "evaluate_base", "profile", "render_page"} <= jobs.keys()
    del jobs["all"]  # it has no job
    for name, each in jobs.items():
        for job in each:
            assert (job["slurm_partition"], job["slurm_account"]) == ("gpu", "lab"), name
            assert "slurm_qos" not in job
            own = "--exclusive " if name == "profile" else ""
            assert job["slurm_extra"] == f"{own}--exclude=node7", name
            assert {"mem_mb", "runtime"} <= job.keys(), name


def test_nothing_is_asked_for_that_was_not_set(checkout):
    for name, each in resources(checkout).items():
        asked = {key for job in each for key in job if key.startswith("slurm_")}
        assert asked == ({"slurm_extra"} if name == "profile" else set()), name


def test_the_command_line_comes_first(checkout):
    options = ["--default-resources", "slurm_partition=other", "--set-resources", "distill:slurm_account=mine"]
    jobs = resources(checkout, *options, settings=SETTINGS)
    assert {job["slurm_partition"] for each in jobs.values() for job in each} == {"other"}
    assert {job["slurm_account"] for job in jobs["distill"]} == {"mine"}
    assert {job["slurm_account"] for job in jobs["prepare_data"]} == {"lab"}


def test_gpus_of_a_preset(checkout):
    jobs = resources(checkout, settings="presets={debug: {gpus: {distill: 2, profile: 1}}}")
    for name, number in {"distill": "2", "profile": "1", "evaluate_base": "0", "train_teacher": "0"}.items():
        assert {job["gpus"] for job in jobs[name]} == {number}


def test_a_partition_with_a_space_is_one_line(checkout):
    done = snakemake(checkout, "--profile", "slurm", "--dry-run", "all", settings="slurm={partition: a b}")
    assert done.returncode != 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error:")]
    assert "slurm.partition" in line
    assert "'a b'" in line


def test_grouped_rules_exist():
    groups = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())["groups"]
    rules = set(
        re.findall(r"^rule (\w+):", "".join(p.read_text() for p in ROOT.glob("workflow/rules/*.smk")), re.M)
    )
    assert set(groups) <= rules


def test_the_profile_is_found_from_the_top(checkout):
    done = run(checkout, "snakemake", "--profile", "slurm", "--dry-run", "table_main", "--config", "preset=debug")
    assert done.returncode == 0, done.stdout
    assert "Using profiles slurm and" in done.stdout
