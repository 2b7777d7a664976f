"""The one error of this package."""

from matvlm.errors import UserError


class DataError(UserError):
    """Data that cannot be used; the message is one line naming file and field."""
