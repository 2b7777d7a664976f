"""What has been measured so far, on disk after every measurement, so that a run that ends early goes on there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

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
        path: of the file, one JSON a line; none keeps nothing. What it holds counts if its first line is
            ``of``, whatever decides what is measured; else it begins anew.
    """

    def __init__(self, path: Path | None, of: object) -> None:
        super().__init__()
        self.path = path
        if path is None:
            return
        head = json.dumps(of, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines[:1] != [head]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head + "\n", encoding="utf-8")
            return
        for line in lines[1:]:
            try:
                key, row = json.loads(line)
            except ValueError:  # the line that was being written when the run ended
                continue
            repeat, point, *names = key
            super().__setitem__(Key(repeat, Point(**point), *names), row)

    def __setitem__(self, key: Key, row: Row) -> None:
        super().__setitem__(key, row)
        if self.path is not None:
            line = json.dumps([[key.repeat, asdict(key.point), key.protocol, key.subject, key.runtime], row])
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write("\n" + line)  # after a line that may have been cut short
