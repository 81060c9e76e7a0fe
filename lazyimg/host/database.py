"""A file of records: SQLite, synced, one short transaction for each call.

Methods block for as long as a local transaction takes, and may be called from any thread.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from lazyimg.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Database:
    """The records in one file. A subclass says what they are.

    Args:
        path: the database's file; made when missing.

    Attributes:
        steps: what makes each version of the records from the one before; the first from nothing.

    Raises:
        StorageError: from every method, when the file cannot be used.
    """

    steps: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
                self._create()
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise StorageError(str(path), f"cannot be opened: {error}") from error

    def _create(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        known = len(self.steps)
        if not 0 <= version <= known:
            raise StorageError(
                str(self._path),
                f"has records of version {version}, this lazyimg knows {known}",
                "use the lazyimg that wrote them, or another root",
            )
        if version < known:
            steps = "".join(self.steps[version:])
            self._db.executescript(f"BEGIN; {steps} PRAGMA user_version = {known}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # a full disk may have ended it already
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StorageError(str(self._path), f"records: {error}") from error
