"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, quota or file that can grow no further."""


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A fresh folder beside ``target`` that replaces it when the block ends well, and is removed if not.

    Raises:
        OSError: naming ``target``, also where safetensors reports a full disk with an error of its own.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        with _named(target):
            yield aside
        _replace_folder(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def file_aside(target: Path) -> Iterator[Path]:
    """A path beside ``target`` for a file that replaces it when the block ends well, and is removed if not.

    Raises:
        OSError: as `written_aside`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with _named(target):
            yield aside
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text to ``target`` in one rename."""
    write_bytes(target, text.encode())


def write_bytes(target: Path, data: bytes) -> None:
    """Write ``data`` to ``target`` in one rename."""
    with file_aside(target) as aside:
        aside.write_bytes(data)


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A CSV file with a header, lines ending as on Unix."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, tuple(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write_json(target: Path, data: object) -> None:
    """Write ``data`` as indented JSON with sorted keys, in one rename."""
    write_text(target, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    """Put a name to the errors of a full disk, which Python's have not and safetensors' are not."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(target)) from None
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from None
        raise


def _replace_folder(aside: Path, target: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    aside.rename(target)
    shutil.rmtree(old)
