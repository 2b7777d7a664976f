"""`python -m matvlm.distill.cache.run`: make the teacher's cache of a split, or a part of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matvlm import config
from matvlm.distill.cache.write import Writer
from matvlm.errors import UserError, one_line
from matvlm.files import write_json
from matvlm.training.device import pick_device


@one_line
def main(argv: list[str] | None = None) -> None:
    """Make the teacher's cache of a split from the shards in --state and those that are missing there; or, with
    --part, some of the shards. A command that is killed goes on where it was."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.Cache")
    parser.add_argument("--max-length", type=int, required=True)
    for name in ("--teacher", "--data", "--state"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the cache's folder, or the record of --part")
    parser.add_argument("--layers", type=int, nargs="*", help="whose states to keep; default: all")
    parser.add_argument("--part", metavar="I/N", help="make each N-th shard from I on, and no cache")
    parser.add_argument("--parts", type=Path, nargs="*", default=[], help="records of what was made by --part")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.Cache, args.settings)
    share = None if args.part is None else _share(args.part)
    checked = {name for path in args.parts for name in _record(path)}
    device = pick_device(args.device)
    writer = Writer(settings, args.teacher, args.data, args.max_length, args.state, device, args.layers)
    if share is not None:
        write_json(args.out, {"shards": writer.make(*share)})
        return
    writer.gather(args.out, checked)


def _share(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise UserError(f"--part: {text!r} is not I/N with I from 0 to N - 1, such as 0/4")
    return int(part), int(parts)


def _record(path: Path) -> list[str]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["shards"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a record of --part; make the part again") from None


if __name__ == "__main__":
    raise SystemExit(main())
