"""What a command says when its input is wrong or it is told to stop: one line, a non-zero exit, no traceback."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something a user handed in cannot be used; the message is one line naming it and what is allowed."""


class Interrupted(Exception):
    """A training was told to stop and has; the same command goes on from there. The message is one line."""


class Abandoned(Exception):
    """Another process of the same run has failed, so that this one cannot go on. The message is one line."""


def one_line(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's `main`: a `UserError` becomes one line on stderr and exit status 2; a full disk, a
    missing file or a refused permission one line and status 1; a training told to stop one line and status 75
    (EX_TEMPFAIL: try again); another process's failure one line and status 1. What the library logs goes
    to stderr, a line each."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> int:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("matvlm").setLevel(logging.INFO)
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            return os.EX_TEMPFAIL
        except Abandoned as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
            return 1

    return wrapped
