"""A file of records: SQLite, synced, one short transaction for each call.

Methods block for as long as a local transaction takes, and may be called from any thread. What only
reads has a connection of its own, so it does not wait until the disk has what others write.

Beside the file lies another one that only takes room: to remove a record takes some, and what is
removed may be what fills the disk. It goes when it is needed, and comes back when there is room.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import ExitStack, contextmanager
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
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._reserve = path.with_suffix(".reserve")
        self._reserved = False
        self._db, self._reader = self._even_when_full(self._open)

    def _open(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Give a connection to write, and one to read."""
        with ExitStack() as undo:
            try:
                db = _connect(self._path, undo)
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA foreign_keys = ON")
                self._create(db)
                reader = _connect(self._path, undo)
                reader.execute("PRAGMA query_only = ON")
            except sqlite3.Error as error:
                raise StorageError(str(self._path), f"cannot be opened: {error}") from error
            undo.pop_all()
        return db, reader

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
        with self._reading:
            self._reader.close()
        with self._lock:  # the last one tidies up
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
        db, lock = (self._db, self._lock) if write else (self._reader, self._reading)
        with lock:
            try:
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:  # a full disk may have ended it already
                        db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StorageError(str(self._path), f"records: {error}") from error


def _connect(path: Path, stack: ExitStack) -> sqlite3.Connection:
    """Open the file; `stack` closes it."""
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    stack.callback(db.close)
    return db
