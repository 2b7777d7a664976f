"""What has been measured so far, on disk after every measurement, so that a run that ends early goes on there."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from matvlm.errors import UserError
from matvlm.profiling.points import Point

Row = dict[str, object]


class Key(NamedTuple):
    """Names a measurement. ``subject``: `teacher` or a layout. ``runtime``: as asked for; empty: shared."""

    repeat: int
    point: Point
    protocol: str
    subject: str
    runtime: str

    @property
    def first(self) -> Key:
        """The same in the first repeat."""
        return self._replace(repeat=0)


class Measured(dict[Key, Row]):
    """Rows by key, in the order measured.

    Args:
        path: of the file, one JSON a line; none keeps nothing. What it holds counts if its first line is like
            ``of``, the provenance of all rows, but for the commit; else it begins anew. A path that names the
            code's hash keeps rows of one version together.
    """

    def __init__(self, path: Path | None, of: Row) -> None:
        super().__init__()
        self.path, self.of = path, of
        if path is None:
            return
        head, *lines = _lines(path)
        if isinstance(head, dict) and _decisive(head) == _decisive(of):
            self._take(lines)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(of, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Measured:
        """What a file holds, whatever it is of.

        Raises:
            UserError: it is no such file.
        """
        head, *lines = _lines(path)
        if not isinstance(head, dict) or "config_hash" not in head:
            raise UserError(f"{path}: missing, or not what profiling keeps while it measures")
        found = cls(None, head)
        found._take(lines)
        return found

    def _take(self, lines: list) -> None:
        for key, row in lines:
            repeat, point, *names = key
            super().__setitem__(Key(repeat, Point(**point), *names), row)

    def __setitem__(self, key: Key, row: Row) -> None:
        super().__setitem__(key, row)
        if self.path is not None:
            line = json.dumps([[key.repeat, asdict(key.point), key.protocol, key.subject, key.runtime], row])
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write("\n" + line)  # after a line that may have been cut short


def _decisive(origin: Row) -> Row:
    return {name: value for name, value in origin.items() if name not in ("commit", "dirty")}


def _lines(path: Path) -> list:
    """The JSON of each line, without one that was being written when the run ended; at least one, or None."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found or [None]
