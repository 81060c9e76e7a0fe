"""A file of records: SQLite, synced, one short transaction for each call.

Methods block for as long as a local transaction takes, and may be called from any thread.

Beside the file lies another one that only takes room: to remove a record takes some, and what is
removed may be what fills the disk. It goes when it is needed, and comes back when there is room.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from lazyimg.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

RESERVE: Final = 256 << 10
"""Bytes of the disk that are kept for the removal of records."""


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
        self._reserve = path.with_suffix(".reserve")
        self._reserved = False
        self._db = self._even_when_full(self._open)

    def _open(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA foreign_keys = ON")
                self._create(db)
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as error:
            raise StorageError(str(self._path), f"cannot be opened: {error}") from error
        return db

    def _create(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        known = len(self.steps)
        if not 0 <= version <= known:
            raise StorageError(
                str(self._path),
                f"has records of version {version}, this lazyimg knows {known}",
                "use the lazyimg that wrote them, or another root",
            )
        if version < known:
            steps = "".join(self.steps[version:])
            db.executescript(f"BEGIN; {steps} PRAGMA user_version = {known}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _even_when_full(self, call: Callable[[], T]) -> T:
        """Call; once more, with the room that is kept for it, if the disk refuses."""
        try:
            return call()
        except StorageError:
            if not self._give_reserve():
                raise
            return call()
        finally:
            self._keep_reserve()

    def _give_reserve(self) -> bool:
        self._reserved = False
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def _keep_reserve(self) -> None:
        if self._reserved:
            return
        try:
            fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE)
            finally:
                os.close(fd)
        except OSError:  # there is no room; it is tried again when something was removed
            self._give_reserve()
        else:
            self._reserved = True

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
