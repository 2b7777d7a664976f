"""The files of a profile, from what was measured."""

from __future__ import annotations

from collections.abc import Iterable

from matvlm import config
from matvlm.profiling.points import runtimes_of
from matvlm.profiling.state import Key, Measured, Row

TEACHER = "teacher"
TIMES = (
    "prefill_s",
    "context_prefill_s",
    "decode_tokens_per_s",
    "first_decode_tokens_per_s",
    "copy_bandwidth_bytes_per_s",
    "bandwidth_limit_tokens_per_s",
)
ONCE = (
    "generated_decode_tokens_per_s",
    "energy_j_per_token",
    "peak_memory_bytes",
    "reserved_memory_bytes",
    "device_memory_bytes",
    "predicted_memory_bytes",
    "weight_bytes",
    "cache_bytes",
    "beyond_positions",
    "note",
)
"""Columns that are the same in every repeat, or too dear for more: the first one's stand in the others."""


def subjects_of(settings: config.Profile) -> tuple[str, ...]:
    """`teacher` and the layouts, in the order of their turns."""
    return (TEACHER, *settings.layouts)


def turns(settings: config.Profile, found: Measured, key: Key) -> list[Key]:
    """All models' turns in the round that ``key`` belongs to, without those that did not run the first time: they
    will not the second time either."""
    keys = [
        key._replace(subject=subject, runtime=runtime)
        for subject in subjects_of(settings)
        for runtime in runtimes_of(settings, key.protocol, subject == TEACHER)
    ]
    return [one for one in keys if key.repeat == 0 or ran(found.get(one.first))]


def ran(row: Row | None) -> bool:
    """Whether a measurement has figures, or is still to be made."""
    return row is None or "decode_tokens_per_s" in row


def documents(settings: config.Profile, found: Measured) -> dict[str, dict[str, object]]:
    """By `teacher` or layout: `step`, `rows`, `provenance` and `cost`. A model's turns in a round in which the
    teacher did not have all of its own are left out, lest figures of different moments are compared."""
    whole = [
        key
        for key in found
        if all(turn in found for turn in turns(settings, found, key) if turn.subject in (TEACHER, key.subject))
    ]
    return {
        subject: _document(found, [key for key in whole if key.subject == subject])
        for subject in subjects_of(settings)
    }


def _document(found: Measured, keys: Iterable[Key]) -> dict[str, object]:
    keys = sorted(keys, key=lambda key: key.repeat)
    rows = [_row(found, key) for key in keys]
    known = [found[key].get("seconds") for key in keys]
    seconds = None if None in known else sum(known)
    return {"step": "profile", "rows": rows, "provenance": found.of, "cost": _cost(seconds, rows, found.of)}


def _shared_runtime(found: Measured) -> str:
    """The one that all models share, which a measurement that ended too early could not name."""
    names = (row["runtime"] for key, row in found.items() if not key.runtime and row["runtime"])
    return str(next(names, ""))


def _row(found: Measured, key: Key) -> Row:
    first, measured, point, subject = found[key.first], found[key], key.point, key.subject
    return {
        "model": TEACHER if subject == TEACHER else "student",
        "layout": "" if subject == TEACHER else subject,
        "protocol": key.protocol,
        "runtime": measured["runtime"] or _shared_runtime(found),
        "batch": point.batch,
        "prompt_tokens": point.prompt_tokens,
        "generated_tokens": point.generated_tokens,
        "repeat": key.repeat,
        **{name: measured.get(name) for name in TIMES},
        **{name: first.get(name) for name in ONCE},
    }


def _cost(seconds: float | None, rows: list[Row], origin: Row) -> Row:
    """Of the measuring processes, not of the one that starts them, which holds no model; ``seconds`` if known."""
    on_gpu = not str(origin["device"]).startswith("cpu")
    column = "peak_memory_bytes" if on_gpu else "device_memory_bytes"
    peak = max((row[column] or 0 for row in rows), default=0)
    wall = None if seconds is None else round(seconds, 3)
    return {"wall_s": wall, "gpu_s": wall if on_gpu else 0.0, "peak_memory_bytes": peak}
