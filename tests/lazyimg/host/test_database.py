"""A file of records: its versions, transactions that fail, files that are none."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING, ClassVar

import pytest

from lazyimg.errors import StorageError
from lazyimg.host.database import RESERVE, Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class First(Database):
    steps: ClassVar[tuple[str, ...]] = ("CREATE TABLE one (value INTEGER UNIQUE) STRICT;",)

    def add(self, value: int) -> None:
        with self._transaction(write=True) as db:
            db.execute("INSERT INTO one VALUES (?)", (value,))

    def add_and_fail(self, value: int) -> None:
        with self._transaction(write=True) as db:
            db.execute("INSERT INTO one VALUES (?)", (value,))
            raise KeyError(value)

    def remove(self, answers: Iterator[int | StorageError]) -> int:
        def call() -> int:
            answer = next(answers)
            if isinstance(answer, StorageError):
                raise answer
            return answer

        return self._even_when_full(call)

    def values(self) -> list[int]:
        with self._transaction(write=False) as db:
            return [value for (value,) in db.execute("SELECT value FROM one ORDER BY value")]


class Second(First):
    steps = (*First.steps, "UPDATE one SET value = value + 100;")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


def test_records_stay(path: Path) -> None:
    first = First(path)
    first.add(1)
    first.close()
    again = First(path)
    assert again.values() == [1]
    again.close()


def test_each_step_is_taken_once(path: Path) -> None:
    first = First(path)
    first.add(1)
    first.close()
    for _ in range(2):
        second = Second(path)
        assert second.values() == [101]
        second.close()


def test_newer_records_are_refused(path: Path) -> None:
    Second(path).close()
    with pytest.raises(
        StorageError,
        match="has records of version 2, this lazyimg knows 1; use the lazyimg that wrote them",
    ):
        First(path)


def test_what_fails_half_way_changes_nothing(path: Path) -> None:
    first = First(path)
    with pytest.raises(KeyError):
        first.add_and_fail(1)
    assert first.values() == []
    first.add(2)
    with pytest.raises(StorageError, match="records: UNIQUE constraint failed"):
        first.add(2)
    assert first.values() == [2]
    first.close()


def test_records_are_synced_and_readers_do_not_wait(path: Path) -> None:
    first = First(path)
    assert first._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert first._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert first.values() == []
    other.close()
    first.close()


def test_who_reads_does_not_wait_for_who_writes(path: Path) -> None:
    first = First(path)
    with first._transaction(write=True) as db:
        db.execute("INSERT INTO one VALUES (1)")
        assert first.values() == []
    assert first.values() == [1]
    first.close()


def test_who_reads_cannot_write(path: Path) -> None:
    first = First(path)
    with pytest.raises(StorageError, match="attempt to write a readonly database"):  # noqa: SIM117
        with first._transaction(write=False) as db:
            db.execute("INSERT INTO one VALUES (1)")
    assert first.values() == []
    first.close()


def test_no_database(path: Path) -> None:
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="cannot be opened: file is not a database"):
        First(path)


FULL = StorageError("disk", "is full")


def reserve(path: Path) -> int:
    """Give how much of the disk is kept, in bytes."""
    file = path.with_suffix(".reserve")
    return file.stat().st_blocks * 512 if file.exists() else 0


def no_room(_fd: int, _offset: int, _length: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_room_for_what_removes(path: Path) -> None:
    first = First(path)
    assert reserve(path) >= RESERVE

    def answers() -> Iterator[int | StorageError]:
        yield FULL
        yield reserve(path)

    assert first.remove(answers()) == 0
    assert reserve(path) >= RESERVE
    with pytest.raises(StorageError, match="is full"):
        first.remove(iter([FULL, FULL]))
    assert reserve(path) >= RESERVE
    first.close()


def test_no_room_for_the_reserve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = First(path)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_room)
        assert first.remove(iter([FULL, 1])) == 1
        assert not path.with_suffix(".reserve").exists()
        with pytest.raises(StorageError, match="is full"):
            first.remove(iter([FULL, 2]))
    assert first.remove(iter([3])) == 3
    assert reserve(path) >= RESERVE
    first.close()


def test_room_for_a_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    First(path).close()
    connect = sqlite3.connect

    def connect_if_there_is_room(*arguments: object, **options: object) -> sqlite3.Connection:
        if reserve(path):
            raise sqlite3.OperationalError("disk I/O error")
        return connect(*arguments, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", connect_if_there_is_room)
    First(path).close()
    assert reserve(path) >= RESERVE
