"""`python -m matvlm.teacher.fetch`: take over a teacher that is given, as the paper starts from one."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from matvlm import config
from matvlm.errors import one_line
from matvlm.files import written_aside
from matvlm.teacher.build import load_given


def fetch(settings: config.EmbeddedTeacher, out: Path) -> None:
    """Copy the shipped teacher to ``out`` after checking that it is whole and of the size configured.

    Raises:
        UserError: it is missing, altered, or of another architecture than ``settings`` says.
    """
    load_given(settings, settings.path)
    with written_aside(out) as aside:
        shutil.copytree(settings.path, aside, dirs_exist_ok=True)


@one_line
def main(argv: list[str] | None = None) -> None:
    """Take over the shipped teacher."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.EmbeddedTeacher")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    fetch(config.parse_settings(config.EmbeddedTeacher, args.settings), args.out)


if __name__ == "__main__":
    raise SystemExit(main())
