"""Folders and files appear whole or not at all, whatever interrupts their writing; commands say why in a line."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys

import pytest

from matvlm.errors import UserError, one_line
from matvlm.files import write_json, write_text, written_aside

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from matvlm.errors import one_line
from matvlm.files import write_text, written_aside

@one_line
def main():
    how, target = sys.argv[1], Path(sys.argv[2])
    if how == "text":
        write_text(target, "x" * 100_000)
        return
    with written_aside(target) as aside:
        (aside / "small").write_text("x")
        if how == "bytes":
            (aside / "large").write_bytes(b"x" * 100_000)
        else:
            save_file({"x": np.zeros(100_000)}, aside / "large.safetensors")

raise SystemExit(main())
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with written_aside(target) as aside:
        (aside / "weights").write_text("one")
        assert not target.exists()
        assert aside.parent == target.parent  # on the same disk, so that one rename is enough
    assert names(target) == ["weights"]
    assert names(target.parent) == ["model"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "model"
    for name in ("old", "new"):
        with written_aside(target) as aside:
            (aside / name).write_text(name)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("there", [False, True])
def test_what_is_half_written_is_removed(tmp_path, error, there):
    target = tmp_path / "model"
    if there:
        target.mkdir()
        (target / "old").write_text("old")
    with pytest.raises(type(error)), written_aside(target) as aside:  # noqa: PT012
        (aside / "new").write_text("new")
        raise error
    assert names(tmp_path) == (["model"] if there else [])
    assert not there or names(target) == ["old"]


def test_what_a_killed_process_left_does_not_end_up_in_the_folder(tmp_path):
    """It had the same process number, as happens in containers."""
    left = tmp_path / f".model.tmp-{os.getpid()}"
    left.mkdir()
    (left / "stale").write_text("stale")
    with written_aside(tmp_path / "model") as aside:
        (aside / "fresh").write_text("fresh")
    assert names(tmp_path / "model") == ["fresh"]


def test_text_is_replaced_in_one_rename(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"b": "ä", "a": [1]})
    assert path.read_bytes() == '{\n  "a": [\n    1\n  ],\n  "b": "ä"\n}\n'.encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text().startswith("{")
    assert names(path.parent) == ["a.json"]


@pytest.mark.parametrize("how", ["bytes", "text", "tensors"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, how):
    """A limit on the size of files stands in for the disk: writing fails in the same way and place."""
    target = tmp_path / "out" / "model"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, str(target)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {target}: ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert names(target.parent) == []


def test_a_full_device(tmp_path):
    """The kernel's own full device, for the error of a disk that is."""
    with pytest.raises(OSError, match="No space left") as caught, written_aside(tmp_path / "model") as aside:  # noqa: PT012
        (aside / "weights").symlink_to("/dev/full")
        (aside / "weights").write_bytes(b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "model"))
    assert names(tmp_path) == []


def test_other_errors_keep_their_own_words(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, written_aside(tmp_path / "model") as aside:  # noqa: PT012
        (aside / "there").mkdir()
        (tmp_path / "nowhere").read_text()
    assert caught.value.filename == str(tmp_path / "nowhere")


def test_a_file_where_a_folder_should_be(tmp_path, capsys):
    (tmp_path / "runs").write_text("x")

    @one_line
    def main():
        with written_aside(tmp_path / "runs" / "model"):
            pass

    assert main() == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'runs'}")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("steps: is not 3"), 2, "error: steps: is not 3\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.json"), 1, "a.json: No such file"),
        (OSError("odd"), 1, "error: odd\n"),
    ],
)
def test_a_commands_error_is_one_line(capsys, error, status, line):
    @one_line
    def main():
        raise error

    assert main() == status
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1


def test_other_errors_of_a_command_keep_their_traceback():
    @one_line
    def main():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        main()


def test_a_commands_status():
    assert one_line(lambda: None)() == 0
    assert one_line(lambda: 3)() == 3
