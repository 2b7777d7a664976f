"""Reading conversation files of the LLaVA format: the embedded data's and the paper's 665k mix alike."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matvlm.data.errors import DataError, NoSoundRow
from matvlm.data.images import open_image, path_problem
from matvlm.files import write_json

IMAGE = "<image>"
Row = dict[str, Any]
"""`id`, `conversations` and, unless the row is text alone, `image`: a path relative to the image folder."""
Rejected = dict[str, Any]
"""`row` (its index in the file, from 0), `id` (None where it has none that can be written), `field`, `reason`."""


class _Problem(Exception):
    """What is wrong with a row: field, reason."""


def load_conversations(
    json_path: Path, image_root: Path, check_images: bool, threads: int = 8
) -> tuple[list[Row], list[Rejected]]:
    """Rows of a conversation file that are sound, and the others with the reason.

    Args:
        check_images: also decode every image once; else their paths are judged, not opened.
        threads: of that check.

    Raises:
        DataError: the file is missing, not UTF-8, not JSON or not a list.
        NoSoundRow: it has not one sound row.
    """
    data = _read_json(json_path)
    if not isinstance(data, list):
        raise DataError(f"{json_path}: must hold a list of conversations, not {type(data).__name__}")
    rows, rejected = [], []
    broken = _broken_images(data, image_root, threads) if check_images else {}
    for index, row in enumerate(data):
        try:
            good = check_row(row)
            if good.get("image") in broken:
                raise _Problem("image", broken[good["image"]])
            rows.append(good)
        except _Problem as problem:
            field, reason = problem.args
            name = row.get("id") if isinstance(row, dict) else None
            name = name if isinstance(name, str | int) and _is_text(str(name)) else None
            rejected.append({"row": index, "id": name, "field": field, "reason": reason})
    if not rows:
        first = f"; the first: {rejected[0]['field']}: {rejected[0]['reason']}" if rejected else ""
        raise NoSoundRow(f"{json_path}: none of its {len(data)} rows can be used{first}", rejected)
    return rows, rejected


def write_report(path: Path, rejected: list[Rejected], total: int) -> None:
    """Write what was rejected and why, as JSON; ``total`` counts all rows, good ones included."""
    counts = Counter(f"{item['field']}: {_kind(item['reason'])}" for item in rejected)
    write_json(
        path,
        {
            "total": total,
            "good": total - len(rejected),
            "rejected": len(rejected),
            "reasons": dict(counts.most_common()),
            "rows": rejected,
        },
    )


def turns_of(row: Row) -> list[tuple[str, str]]:
    """(question, answer) pairs of a sound row; the question with the image starts with `<image>` still."""
    values = [message["value"] for message in row["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def check_row(row: Any) -> Row:
    """The row itself with its id as a string; raises `_Problem` where it is not sound."""
    if not isinstance(row, dict):
        raise _Problem("row", "is not an object")
    name = row.get("id")
    if not isinstance(name, str | int) or isinstance(name, bool) or not _is_text(str(name)):
        raise _Problem("id", "is missing" if "id" not in row else "is not a string or an integer")
    if "image" in row:
        if not isinstance(row["image"], str) or not _is_text(row["image"]):
            raise _Problem("image", "is not a string")
        if problem := path_problem(row["image"]):
            raise _Problem("image", f"{row['image']!r}: {problem}")
    _check_messages(row.get("conversations"), images=int("image" in row))
    return {**row, "id": str(name)}


def _check_messages(messages: Any, images: int) -> None:
    if not isinstance(messages, list):
        raise _Problem("conversations", "is not a list")
    if len(messages) < 2:
        raise _Problem("conversations", "has no answer")
    found = 0
    for i, message in enumerate(messages):
        field, role = f"conversations[{i}]", ("human", "gpt")[i % 2]
        if not isinstance(message, dict):
            raise _Problem(field, "is not an object")
        if message.get("from") != role:
            raise _Problem(f"{field}.from", f"must be {role}: turns alternate and start with human")
        value = message.get("value")
        if not isinstance(value, str) or not _is_text(value):
            raise _Problem(f"{field}.value", "is not a string of valid Unicode")
        if role == "gpt" and not value.strip():
            raise _Problem(f"{field}.value", "is an empty answer")
        if role == "gpt" and IMAGE in value:
            raise _Problem(f"{field}.value", f"is an answer with {IMAGE}")
        found += value.count(IMAGE)
    if len(messages) % 2:
        raise _Problem("conversations", "ends with a question without an answer")
    if found != images:
        raise _Problem("conversations", f"names {IMAGE} {found} times; the row has {images} image(s)")


def _is_text(value: str) -> bool:
    """False for lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number with too many digits
        raise DataError(f"{path}: not usable JSON: {error}") from None


def _broken_images(data: list[Any], root: Path, threads: int) -> dict[str, str]:
    """Reasons by path of the images that cannot be decoded; several rows may share an image."""
    paths = {row.get("image") for row in data if isinstance(row, dict) and isinstance(row.get("image"), str)}
    good = sorted(path for path in paths if _is_text(path) and not path_problem(path))
    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes without holding the interpreter lock
        reasons = pool.map(lambda path: _reason(path, root), good)
        return {path: reason for path, reason in zip(good, reasons, strict=True) if reason}


def _reason(path: str, root: Path) -> str | None:
    try:
        open_image(path, root)
    except DataError as error:
        return str(error).removeprefix("image ")
    return None


def _kind(reason: str) -> str:
    """A reason without the path that it starts with, to count alike ones together."""
    return reason.rsplit("': ", 1)[-1] if reason.startswith("'") else reason
