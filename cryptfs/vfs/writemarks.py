"""Counts the writes to a backing file, to know what a sync covered."""

from __future__ import annotations


class WriteMarks:
    """What was written to a file, and what of it was synced. Changed with the FileState's lock held.

    What happened before the file was opened may be on disk or not, so the count begins with one.
    """

    def __init__(self) -> None:
        self._marks = 1
        self._data_mark = 1
        self._header_mark = 0
        self._synced_mark = 0
        self._told_mark = 1

    def mark_data(self) -> None:
        """The content of the backing file, or its length, is about to change."""
        self._marks += 1
        self._data_mark = self._marks

    def mark_header(self) -> None:
        """The header is about to be written."""
        self._marks += 1
        self._header_mark = self._marks

    @property
    def header_is_durable(self) -> bool:
        """Whether the header is on disk as the redo log needs it."""
        return self._header_mark <= self._synced_mark

    def mark_told(self) -> None:
        """The header on disk says what the file is now."""
        self._told_mark = self._marks

    @property
    def was_changed(self) -> bool:
        """Whether the backing file was written to here."""
        return self._marks > 1

    @property
    def changes(self) -> bool:
        """Whether it was written to here and the header on disk does not say so yet."""
        return self._marks != self._told_mark
