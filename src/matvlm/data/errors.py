"""The errors of this package."""

from typing import Any

from matvlm.errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message is one line naming file and field."""


class NoSoundRow(DataError):
    """A file of conversations without one that can be used; ``rejected`` says of each why not."""

    def __init__(self, message: str, rejected: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.rejected = rejected
