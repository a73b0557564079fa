"""The errors that a user can mend: one line that says what is wrong, where, and how to mend it."""

from pathlib import Path


class Error(Exception):
    """Something that the user can mend.

    Command lines print it as one line on stderr, with the hint on a line of its own, and exit 2.

    Args:
        message: What is wrong and where, in one line.
        hint: How to mend it, if the message does not say so already.
    """

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint


class TableError(Error):
    """A table that does not hold what it should.

    Args:
        message: What is wrong and how to mend it; the constructor does not add the place to it.
        path: The file, or None for a frame in memory.
        column: The column at fault.
        row: The row at fault: the 1-based line for text formats, the 0-based row otherwise.
        hint: How to mend it, if the message does not say so already.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        column: str | None = None,
        row: int | None = None,
        hint: str | None = None,
    ):
        super().__init__(message, hint)
        self.path = path
        self.column = column
        self.row = row


class MissingExtra(Error, ImportError):  # noqa: N818
    """A part of a package that needs an extra which is not installed."""
