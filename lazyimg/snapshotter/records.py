"""The records of snapshots: SQLite, one synced transaction for each call.

Methods block for as long as a local transaction takes, and may be called from any thread.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lazyimg.host.database import Database
from lazyimg.snapshotter import queue
from lazyimg.snapshotter.lifecycle import (
    COMPARED,
    REF,
    HeldImage,
    Kind,
    NewSnapshot,
    Quarantined,
    RemoteLayer,
    Snapshot,
    Unpacked,
    check_commit,
    check_new,
    check_remove,
    check_shown,
    missing,
    name_image,
    taken,
    update_labels,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

_STEPS: Final = (
    """
CREATE TABLE snapshot (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- names its directory; never used again
    key TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshot (number),
    kind INTEGER NOT NULL,       -- as the protocol numbers them
    labels TEXT NOT NULL,        -- JSON
    ref TEXT,                    -- the label that names a chain
    created INTEGER NOT NULL,    -- nanoseconds since the epoch
    updated INTEGER NOT NULL,
    size INTEGER NOT NULL,       -- bytes on the disk, when it was committed
    inodes INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshot_parent ON snapshot (parent);
CREATE INDEX snapshot_ref ON snapshot (ref) WHERE ref IS NOT NULL;
CREATE TABLE remote (            -- what a snapshot without a directory shows
    number INTEGER PRIMARY KEY REFERENCES snapshot (number) ON DELETE CASCADE,
    chain TEXT NOT NULL,         -- chain ID
    reference TEXT NOT NULL,     -- of the image, with its manifest's digest
    platform TEXT NOT NULL,
    depth INTEGER NOT NULL       -- how many of the image's layers
) STRICT;
""",
    """
CREATE TABLE unpacked (          -- why a snapshot is none of those that show without a directory
    number INTEGER PRIMARY KEY REFERENCES snapshot (number) ON DELETE CASCADE,
    name TEXT NOT NULL,          -- of the image, as labels say it
    digest TEXT NOT NULL,        -- of its manifest
    reason TEXT NOT NULL,        -- one word
    problem TEXT NOT NULL
) STRICT;
""",
    queue.STEP,
)
"""What makes each version of the records from the one before; the first from nothing."""

_SELECT: Final = (
    "SELECT snapshot.number, snapshot.key, below.key, snapshot.kind, snapshot.labels,"
    " snapshot.created, snapshot.updated, snapshot.size, snapshot.inodes,"
    " chain, reference, platform, depth, remote.problem FROM snapshot"
    " LEFT JOIN snapshot AS below ON below.number = snapshot.parent"
    " LEFT JOIN remote ON remote.number = snapshot.number "
)

_KINDS: Final = {"active": Kind.ACTIVE, "committed": Kind.COMMITTED}

_IMAGES: Final = """
SELECT reference, labels, name, digest, reason, unpacked.problem, count(*),
    sum((SELECT count(*) FROM snapshot AS upper
         WHERE upper.parent = snapshot.number AND upper.kind = :active AND upper.ref IS NULL)),
    min(snapshot.number)         -- what is not grouped by is that one's (SQLite: bare columns)
FROM snapshot LEFT JOIN remote USING (number) LEFT JOIN unpacked USING (number)
WHERE kind = :committed GROUP BY reference, name, digest
ORDER BY reference IS NULL, min(snapshot.number)
"""
"""Committed snapshots by image. What has a label `ref` and is active becomes the next layer."""

_ANCESTRY: Final = " ".join(
    (
        "WITH RECURSIVE chain (number, height) AS (SELECT number, 0 FROM snapshot WHERE key = ?",
        "UNION ALL SELECT parent, height + 1 FROM chain JOIN snapshot USING (number)",
        "WHERE parent IS NOT NULL)",
        _SELECT.replace(
            "FROM snapshot", "FROM chain JOIN snapshot ON snapshot.number = chain.number"
        ),
        "ORDER BY height",
    )
)

_SHOWN: Final = """
WITH RECURSIVE below (user, number) AS (
    SELECT number, parent FROM snapshot WHERE kind != :committed AND parent IS NOT NULL
    UNION ALL
    SELECT user, parent FROM below JOIN snapshot USING (number) LEFT JOIN remote USING (number)
        WHERE remote.number IS NULL AND parent IS NOT NULL
)
SELECT user, chain, reference, platform, depth FROM below JOIN remote USING (number) ORDER BY user
"""
"""The uppermost remote snapshot below each one that is mounted."""

_PULLED: Final = """
SELECT chain, reference, platform, depth FROM remote
WHERE number NOT IN (
    SELECT parent FROM snapshot JOIN remote USING (number) WHERE parent IS NOT NULL
)
GROUP BY reference, depth ORDER BY min(number)
"""
"""The remote snapshots on which no other stands."""

_LABELS: Final = msgspec.json.Decoder(dict[str, str])


class Records(Database):
    """The records in one file.

    Args:
        path: the database's file; made when missing.

    Raises:
        StorageError: from every method, when the file cannot be used.
    """

    steps = _STEPS

    def find(self, key: str) -> Snapshot:
        """Give a snapshot.

        Raises:
            NotFoundError: there is none of this key.
        """
        with self._transaction(write=False) as db:
            return _require(db, key)

    def find_to_commit(self, key: str, name: str) -> Snapshot:
        """Give a snapshot that is to be committed under a name.

        Raises:
            AlreadyExistsError: the name is taken, perhaps because this was done before.
            NotFoundError: there is none of this key.
        """
        with self._transaction(write=False) as db:
            if _find(db, name) is not None:
                raise taken(name)
            return _require(db, key)

    def ancestry(self, key: str) -> list[Snapshot]:
        """Give a snapshot and all below it, the lowest last.

        Raises:
            NotFoundError: there is none of this key.
        """
        with self._transaction(write=False) as db:
            ancestry = _ancestry(db, key)
        if not ancestry:
            raise missing(key)
        return ancestry

    def are_compared(self, ancestry: Sequence[Snapshot]) -> bool:
        """Tell whether a client compares what is on top of some snapshots with what is below.

        Then there is a view of one of them as `lifecycle.COMPARED` says.
        """
        numbers = [snapshot.number for snapshot in ancestry]
        marks = ", ".join("?" * len(numbers))
        with self._transaction(write=False) as db:
            row = db.execute(
                f"SELECT 1 FROM snapshot WHERE parent IN ({marks}) AND kind = ?"  # noqa: S608
                " AND instr(key, ?) LIMIT 1",
                (*numbers, Kind.VIEW, COMPARED),
            ).fetchone()
        return row is not None

    def page(self, after: str, count: int, size: int, ref: str | None = None) -> list[Snapshot]:
        """Give up to `count` snapshots in the order of their keys, beginning behind `after`.

        Args:
            after: a key; "" for the first page.
            count: of snapshots.
            size: what their keys and labels may have in bytes; one may have more.
            ref: only those whose label `lifecycle.REF` has this value; None: all.
        """
        condition, values = ("", ()) if ref is None else (" AND snapshot.ref = ?", (ref,))
        with self._transaction(write=False) as db:
            found = db.execute(
                f"{_SELECT} WHERE snapshot.key > ?{condition} ORDER BY snapshot.key LIMIT ?",
                (after, *values, count),
            )
            page: list[Snapshot] = []
            for row in found:
                size -= len(row[1].encode()) + len(row[4])
                if page and size < 0:
                    break
                page.append(_snapshot(row))
            found.close()
        return page

    def find_ref(self, ref: str, parent: str) -> Snapshot | None:
        """Give the committed snapshot on `parent` whose label `lifecycle.REF` is `ref`, if any."""
        with self._transaction(write=False) as db:
            return _find_ref(db, ref, parent)

    def while_unchanged(self, call: Callable[[set[int]], None]) -> None:
        """Call with the numbers of all snapshots; none is made or removed meanwhile."""
        with self._transaction(write=True) as db:
            call({number for (number,) in db.execute("SELECT number FROM snapshot")})

    def shown(self) -> dict[int, RemoteLayer]:
        """Give what each active snapshot and view shows of remote ones, by its number."""
        with self._transaction(write=False) as db:
            return {user: RemoteLayer(*layer) for user, *layer in db.execute(_SHOWN, _KINDS)}

    def pulled(self) -> list[RemoteLayer]:
        """Give the uppermost remote layer of each image, in the order in which they came."""
        with self._transaction(write=False) as db:
            return [RemoteLayer(*layer) for layer in db.execute(_PULLED)]

    def images(self) -> list[HeldImage]:
        """Give the images that committed snapshots were made for, those with lazy layers first."""
        with self._transaction(write=False) as db:
            return _gather(db.execute(_IMAGES, _KINDS).fetchall())

    def create(
        self,
        wanted: NewSnapshot,
        make: Callable[[list[Snapshot]], None],
        unpacked: Unpacked | None = None,
    ) -> list[Snapshot]:
        """Record a new active snapshot or view.

        Args:
            wanted: the new one.
            unpacked: why it is not lazy; None: nobody asked for that.
            make: makes its directory, given what is returned here; when it raises, nothing is
                recorded.

        Returns:
            It and all below it, the lowest last.

        Raises:
            LazyimgError: as `lifecycle.check_new` and `check_shown`.
        """
        with self._transaction(write=True) as db:
            ancestry = created, *under = _insert(db, wanted)
            shown = check_shown(wanted, under)
            if shown is not None and shown.remote is not None and REF not in wanted.labels:
                queue.enqueue(db, shown.remote)  # it is a container's
            if unpacked is not None:
                db.execute(
                    "INSERT INTO unpacked VALUES (?, ?, ?, ?, ?)",
                    (
                        created.number, unpacked.name, unpacked.digest, unpacked.reason,
                        unpacked.problem,
                    ),
                )  # fmt: skip
            make(ancestry)
        return ancestry

    def add_remote(self, wanted: NewSnapshot, remote: RemoteLayer) -> Snapshot:
        """Record a committed snapshot without a directory, or give the one that is there.

        Args:
            wanted: the new one; its label `lifecycle.REF` names the chain.
            remote: what it shows.

        Raises:
            LazyimgError: as `lifecycle.check_new` and `check_shown`.
        """
        with self._transaction(write=True) as db:
            existing = _find_ref(db, remote.chain, wanted.parent)
            if existing is not None:
                return existing
            created, *under = _insert(db, wanted)
            check_shown(wanted, under[:1])
            db.execute(
                "INSERT INTO remote (number, chain, reference, platform, depth)"
                " VALUES (?, ?, ?, ?, ?)",
                (created.number, remote.chain, remote.reference, remote.platform, remote.depth),
            )
        return replace(created, remote=remote)

    def commit(self, active: Snapshot, wanted: NewSnapshot, usage: tuple[int, int]) -> None:
        """Turn an active snapshot into a committed one.

        Args:
            active: as it was when it was measured.
            wanted: what it becomes; its parent is "" for the one that it has.
            usage: bytes on the disk and inodes.

        Raises:
            AlreadyExistsError: the new key is taken.
            NotFoundError: it is not there any more.
            LazyimgError: as `lifecycle.check_commit`.
        """
        with self._transaction(write=True) as db:
            if _find(db, wanted.key) is not None:
                raise taken(wanted.key)
            now = _require(db, active.key)
            if now.number != active.number:  # another one has its key
                raise missing(active.key)
            below = _find(db, wanted.parent) if wanted.parent else None
            check_commit(wanted, active, below)
            if below is not None:
                db.execute(
                    "UPDATE snapshot SET parent = ? WHERE number = ?", (below.number, active.number)
                )
            db.execute(
                "UPDATE snapshot SET key = ?, kind = ?, labels = ?, ref = ?, created = ?,"
                " updated = ?, size = ?, inodes = ? WHERE number = ?",
                (
                    wanted.key, wanted.kind, json.dumps(dict(wanted.labels)),
                    wanted.labels.get(REF), wanted.now, wanted.now, *usage, active.number,
                ),
            )  # fmt: skip

    def remove(self, key: str) -> Snapshot:
        """Forget a snapshot, on a full disk as well, and give what it was.

        Raises:
            NotFoundError: there is none of this key.
            WrongStateError: others stand on it.
        """
        return self._even_when_full(partial(self._remove, key))

    def _remove(self, key: str) -> Snapshot:
        with self._transaction(write=True) as db:
            snapshot = _require(db, key)
            child = db.execute(
                "SELECT 1 FROM snapshot WHERE parent = ? LIMIT 1", (snapshot.number,)
            ).fetchone()
            check_remove(snapshot, has_children=child is not None)
            db.execute("DELETE FROM snapshot WHERE number = ?", (snapshot.number,))
            if snapshot.remote is not None:
                queue.drop_unused(db, snapshot.remote)
        return snapshot

    def update(
        self, key: str, labels: Mapping[str, str], mask: Sequence[str], now: int
    ) -> Snapshot:
        """Change labels, and give the snapshot with them.

        Raises:
            NotFoundError: there is none of this key.
            UsageError: as `lifecycle.update_labels`.
        """
        with self._transaction(write=True) as db:
            changed = update_labels(_require(db, key), labels, mask, now)
            db.execute(
                "UPDATE snapshot SET labels = ?, ref = ?, updated = ? WHERE number = ?",
                (json.dumps(dict(changed.labels)), changed.labels.get(REF), now, changed.number),
            )
        return changed

    def pending(self) -> list[queue.Pending]:
        """Give the layers that are to be completed, in the order of their first containers."""
        with self._transaction(write=False) as db:
            return queue.list_pending(db)

    def finish(self, image: queue.Pending) -> None:
        """Record that layers are complete."""
        with self._transaction(write=True) as db:
            db.execute("UPDATE completion SET done = 1 WHERE number = ?", (image.number,))

    def quarantine(self, image: queue.Pending, depth: int, problem: str) -> list[str]:
        """Have nobody use what shows an image's layers from the `depth`th up any more.

        Returns:
            The chains of these layers.
        """
        with self._transaction(write=True) as db:
            return queue.quarantine(db, image, depth, problem)

    def quarantined(self) -> list[Quarantined]:
        """Give what must not be used."""
        with self._transaction(write=False) as db:
            return queue.list_quarantined(db)


def _gather(rows: list[tuple[Any, ...]]) -> list[HeldImage]:
    """Put the lazy and the unpacked layers of each image together."""
    held: dict[tuple[str, str], HeldImage] = {}
    digests: dict[str, str] = {}  # for layers whose labels do not say it
    for reference, labels, *unpacked, count, containers, _ in rows:
        why = None if unpacked[0] is None else Unpacked(*unpacked)
        name, digest = (why.name, why.digest) if why else ("", "")
        if reference is not None:
            repository, _, digest = reference.rpartition("@")
            name = name_image(_LABELS.decode(labels))[0] or repository
            digests[name] = digest
        key = (name, digest or digests.get(name, ""))
        one = held.get(key, HeldImage(*key, 0, 0, 0, None))
        held[key] = HeldImage(
            *key,
            one.lazy + (0 if reference is None else count),
            one.unpacked + (count if reference is None else 0),
            one.containers + containers,
            one.why or why,
        )
    return list(held.values())


def _insert(db: sqlite3.Connection, wanted: NewSnapshot) -> list[Snapshot]:
    """Record a new snapshot; gives it and all below it, the lowest last."""
    under = _ancestry(db, wanted.parent)
    check_new(wanted, _find(db, wanted.key), under[0] if under else None)
    (number,) = db.execute(
        "INSERT INTO snapshot (key, parent, kind, labels, ref, created, updated, size, inodes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0) RETURNING number",
        (
            wanted.key, under[0].number if under else None, wanted.kind,
            json.dumps(dict(wanted.labels)), wanted.labels.get(REF), wanted.now, wanted.now,
        ),
    ).fetchone()  # fmt: skip
    created = Snapshot(
        number, wanted.key, wanted.parent, wanted.kind, wanted.labels, wanted.now, wanted.now
    )
    return [created, *under]


def _find(db: sqlite3.Connection, key: str) -> Snapshot | None:
    row = db.execute(f"{_SELECT} WHERE snapshot.key = ?", (key,)).fetchone()
    return None if row is None else _snapshot(row)


def _find_ref(db: sqlite3.Connection, ref: str, parent: str) -> Snapshot | None:
    row = db.execute(
        f"{_SELECT} WHERE snapshot.ref = ? AND coalesce(below.key, '') = ? AND snapshot.kind = ?"
        " AND coalesce(remote.problem, '') = ''"
        " ORDER BY snapshot.number LIMIT 1",
        (ref, parent, Kind.COMMITTED),
    ).fetchone()
    return None if row is None else _snapshot(row)


def _require(db: sqlite3.Connection, key: str) -> Snapshot:
    snapshot = _find(db, key)
    if snapshot is None:
        raise missing(key)
    return snapshot


def _ancestry(db: sqlite3.Connection, key: str) -> list[Snapshot]:
    return [_snapshot(row) for row in db.execute(_ANCESTRY, (key,))]


def _snapshot(row: tuple[Any, ...]) -> Snapshot:
    number, key, parent, kind, labels, created, updated, size, inodes, *remote = row
    chain, reference, platform, depth, problem = remote
    return Snapshot(
        number,
        key,
        parent or "",
        Kind(kind),
        _LABELS.decode(labels),
        created,
        updated,
        size,
        inodes,
        None if chain is None else RemoteLayer(chain, reference, platform, depth),
        problem or "",
    )
