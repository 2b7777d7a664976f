"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from matvlm.errors import UserError


def read_object(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
        UserError: no such file, or something else in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: missing") from None
    except ValueError:
        raise UserError(f"{path}: not JSON") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold one JSON object")
    return found
