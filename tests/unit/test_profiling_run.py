"""The profile command: whose turn it is, what rows hold, and what is refused."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import profiling_models
import pytest
from profiling_models import architecture, make_job, make_settings

from matvlm.data.processor import build_processor
from matvlm.data.tokenizer import build_tokenizer
from matvlm.models.folder import save_model
from matvlm.profiling import point, run
from matvlm.profiling.documents import ONCE, TIMES
from matvlm.profiling.points import PAPER, SAME
from matvlm.provenance import COLUMNS, COST_COLUMNS
from matvlm.report.collect import collect_profile

TOO_MANY = 2**40
"""Sequences that no memory suffices for."""
ON_A_GPU = {
    "context_prefill_s",
    "copy_bandwidth_bytes_per_s",
    "bandwidth_limit_tokens_per_s",
    "energy_j_per_token",
    "reserved_memory_bytes",
}
ATTENTION = ["eager", "sdpa", "flash_attention_2"]


class Profile(NamedTuple):
    """A command that has run: its folder, state file, and the jobs in the order that they were measured in."""

    out: Path
    state: Path
    jobs: list[point.Job]

    def rows(self, subject: str, protocol: str) -> list[dict]:
        rows = json.loads((self.out / f"{subject}.json").read_text(encoding="utf-8"))["rows"]
        return [row for row in rows if row["protocol"] == protocol]


def command(settings, out: Path, *more: str) -> int:
    words = ["--settings", settings.model_dump_json(), "--device", "cpu", "--out", str(out)]
    return run.main([*words, "--architecture", architecture().model_dump_json(), *more])


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Profile:
    """A point that fits, measured twice in both protocols, and one that does not."""
    root, jobs, in_own_process = tmp_path_factory.mktemp("measured"), [], run._in_own_process

    def watched(*arguments):
        jobs.append(point.Job(*arguments))
        return in_own_process(*arguments)

    settings = make_settings(
        layouts=["even-25"],
        batch_sizes=[1, TOO_MANY],
        repeats=2,
        protocols=[SAME, PAPER],
        attention=ATTENTION,
        generated_check=[16],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_in_own_process", watched)
        assert command(settings, root / "profile", "--state", str(root / "state.jsonl")) == 0
    return Profile(root / "profile", root / "state.jsonl", jobs)


def test_models_take_turns_and_repeats_are_rounds(measured):
    """What did not run the first time is not tried again, and batches are none of the paper's."""
    turns = [(job.first, job.point.batch, job.protocol, job.layout, job.runtime) for job in measured.jobs]
    plain = [f"generate-{name}" for name in ATTENTION]
    assert turns == [
        (True, 1, SAME, None, ""),
        (True, 1, SAME, "even-25", ""),
        *((True, 1, PAPER, None, name) for name in plain),
        (True, 1, PAPER, "even-25", "fused"),
        (True, TOO_MANY, SAME, None, ""),
        (True, TOO_MANY, SAME, "even-25", ""),
        (False, 1, SAME, None, ""),
        (False, 1, SAME, "even-25", ""),
        *((False, 1, PAPER, None, name) for name in plain[:2]),
    ]


def test_a_file_for_each_model(measured):
    assert sorted(path.name for path in measured.out.iterdir()) == ["even-25.json", "teacher.json"]
    for path in measured.out.iterdir():
        document = json.loads(path.read_text(encoding="utf-8"))
        assert document["step"] == "profile"
        assert set(document["provenance"]) == set(COLUMNS)
        assert document["provenance"]["kernel_path"] == "torch"
        assert set(document["cost"]) == set(COST_COLUMNS)
        assert document["cost"]["wall_s"] > 0
        assert document["cost"]["gpu_s"] == 0
    assert not measured.state.exists()


@pytest.mark.parametrize("subject", ["teacher", "even-25"])
def test_rows_of_what_all_models_share(measured, subject):
    fits, failed, again = measured.rows(subject, SAME)
    assert [(row["batch"], row["repeat"]) for row in (fits, failed, again)] == [(1, 0), (TOO_MANY, 0), (1, 1)]
    for row in (fits, again):
        named = ("teacher", "") if subject == "teacher" else ("student", "even-25")
        assert (row["model"], row["layout"], row["runtime"]) == (*named, "transformers")
        assert {name for name in (*TIMES, *ONCE) if row[name] is None} == ON_A_GPU | {
            "first_decode_tokens_per_s",
            "note",
        }
        assert row["weight_bytes"] + row["cache_bytes"] < row["peak_memory_bytes"] < row["device_memory_bytes"]
        assert row["predicted_memory_bytes"] > row["weight_bytes"] + row["cache_bytes"]
        assert min(row["prefill_s"], row["decode_tokens_per_s"], row["generated_decode_tokens_per_s"]) > 0
    assert fits["prefill_s"] != again["prefill_s"]
    assert fits["generated_decode_tokens_per_s"] == again["generated_decode_tokens_per_s"]
    known = ("predicted_memory_bytes", "beyond_positions")  # before anything is measured
    assert all(failed[name] is None for name in (*TIMES, *ONCE) if name not in known)


def test_rows_as_the_paper_measured(measured):
    rows = measured.rows("teacher", PAPER)
    assert [(row["runtime"], row["repeat"]) for row in rows] == [
        *((f"generate-{name}", 0) for name in ATTENTION),
        *((f"generate-{name}", 1) for name in ATTENTION[:2]),
    ]
    for row in rows:
        if row["runtime"] == "generate-flash_attention_2":
            assert row["note"] == "flash_attention_2: the package flash-attn is not installed"
            assert row["decode_tokens_per_s"] is None
            continue
        missing = {name for name in (*TIMES, *ONCE) if row[name] is None}
        assert missing == ON_A_GPU | {"generated_decode_tokens_per_s", "note"}
        assert min(row["first_decode_tokens_per_s"], row["decode_tokens_per_s"]) > 0
    (row,) = measured.rows("even-25", PAPER)
    assert (row["runtime"], row["note"], row["prefill_s"]) == ("fused", "fused: needs a GPU", None)


def test_rows_can_be_collected(measured):
    lines = collect_profile(sorted(measured.out.iterdir())).splitlines()
    assert len(lines) == 1 + 3 + 3 + 5 + 1
    assert {"cache_bytes", "protocol", "note", "predicted_memory_bytes"} <= set(lines[0].split(","))


def test_two_devices_measure_each_point_once(tmp_path):
    settings = make_settings(layouts=["even-50"], generated_tokens=[16, 24], repeats=2)
    assert command(settings, tmp_path / "profile", "--device", "cpu,cpu") == 0
    for path in (tmp_path / "profile").iterdir():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        assert Counter((row["generated_tokens"], row["repeat"]) for row in rows) == {
            (tokens, repeat): 1 for tokens in (16, 24) for repeat in (0, 1)
        }
        assert all(row["decode_tokens_per_s"] > 0 for row in rows)


def test_two_devices_work_at_the_same_time_each_at_points_of_its_own(monkeypatch, tmp_path):
    both, turns = threading.Barrier(2, timeout=30), []

    def measure(*arguments):
        both.wait()  # breaks if one comes alone
        job = point.Job(*arguments)
        turns.append((threading.get_ident(), job.point.generated_tokens, job.layout))
        return {"runtime": "transformers", "decode_tokens_per_s": 1.0}

    monkeypatch.setattr(run, "_in_own_process", measure)
    settings = make_settings(layouts=["even-50"], generated_tokens=[16, 24], repeats=1)
    assert command(settings, tmp_path / "profile", "--device", "cpu,cpu") == 0
    assert len({thread for thread, *_ in turns}) == 2
    for tokens in (16, 24):
        mine = [turn for turn in turns if turn[1] == tokens]
        assert [layout for *_, layout in mine] == [None, "even-50"]
        assert len({thread for thread, *_ in mine}) == 1


def in_own_process(job: point.Job) -> dict:
    return run._in_own_process(*(getattr(job, name) for name in job.__dataclass_fields__))


def test_every_measurement_has_a_process_of_its_own():
    with ThreadPoolExecutor(1) as pool:
        rows = [pool.submit(in_own_process, make_job()).result() for _ in range(2)]
    # The CPU's peak is right only in a process that measures once.
    assert rows[0]["peak_memory_bytes"] == rows[1]["peak_memory_bytes"]


def test_a_process_that_the_system_ends_has_run_out_of_memory(monkeypatch, capsys):
    monkeypatch.setattr(point, "run", profiling_models.killed)
    assert in_own_process(make_job(runtime="generate-sdpa")) == {"runtime": "generate-sdpa"}
    assert "killed from outside; taken for out of memory" in capsys.readouterr().err


def test_a_process_with_a_mistake_ends_the_command(monkeypatch):
    monkeypatch.setattr(point, "run", profiling_models.failing)
    with pytest.raises(RuntimeError, match="of even-25 failed with status 3"):
        in_own_process(make_job("even-25"))


def test_a_teachers_folder(tmp_path):
    """Hybrids are made of it, and its hash is noted."""
    teacher = profiling_models.build(None)
    processor = build_processor(build_tokenizer(), 64, 16)
    save_model(teacher, tmp_path / "teacher", {}, processor=processor)
    settings = make_settings(layouts=["even-25"], repeats=1).model_dump_json()
    words = ["--settings", settings, "--teacher", str(tmp_path / "teacher"), "--device", "cpu"]
    assert run.main([*words, "--out", str(tmp_path / "profile")]) == 0
    found = json.loads((tmp_path / "profile" / "even-25.json").read_text(encoding="utf-8"))
    assert found["provenance"]["teacher_hash"]
    assert found["rows"][0]["decode_tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"layouts": ["0,99"]}, (), "layer 99 is out of range; allowed: 0 to 3"),
        (
            {},
            ("--device", "cpu,nonesuch"),
            "--device nonesuch: unknown; allowed: auto, cpu, cuda, cuda:0, …",
        ),
        (
            {"prompt_tokens": [16]},
            (),
            "profile.prompt_tokens: 16 leaves no room for text; an image takes 16",
        ),
        ({}, ("--as-measured",), "--as-measured: needs --state, the file that holds what was measured"),
    ],
)
def test_bad_input_is_one_line(settings, more, message, tmp_path, capsys):
    assert command(make_settings(**settings), tmp_path / "profile", *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("profile")]
    assert [line for line in lines if line] == [f"error: {message}"]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_choice_of_kernels_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MATVLM_KERNELS", "cuda")
    assert command(make_settings(), tmp_path / "profile") == 2
    assert capsys.readouterr().err == "error: MATVLM_KERNELS=cuda: unknown; allowed: auto, torch, mamba_ssm\n"
