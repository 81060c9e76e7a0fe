"""Records of this node's images: SQLite, one short transaction for each call.

What is recorded is what the daemon must know to serve without a registry, and cannot see from the
files: which bootstrap belongs to which layers, what a name last stood for, and where each device's
bytes come from. Files named in a record exist: they are written first.

Methods block for as long as a local transaction takes; the daemon calls them in a thread.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from lazyimg.host.database import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Container, Iterable, Mapping

_STEPS: Final = (
    """
CREATE TABLE image (
    reference TEXT NOT NULL,     -- canonical, with the tag or digest asked for
    platform TEXT NOT NULL,      -- os/arch[/variant]
    digest TEXT NOT NULL,        -- of the platform's manifest
    fsid TEXT NOT NULL REFERENCES bootstrap (fsid),
    PRIMARY KEY (reference, platform)
) STRICT, WITHOUT ROWID;
CREATE TABLE bootstrap (
    fsid TEXT PRIMARY KEY,       -- sha256 of the file
    size INTEGER NOT NULL        -- bytes
) STRICT, WITHOUT ROWID;
CREATE TABLE chain (             -- the layers that a bootstrap was built from
    key TEXT PRIMARY KEY,        -- of the layers' indexes, lowest first
    fsid TEXT NOT NULL REFERENCES bootstrap (fsid),
    layers BLOB NOT NULL         -- JSON, [LayerRecord]
) STRICT, WITHOUT ROWID;
CREATE TABLE device (
    name TEXT PRIMARY KEY,
    size INTEGER NOT NULL        -- bytes
) STRICT, WITHOUT ROWID;
CREATE TABLE source (            -- a blob from which a device can be filled
    device TEXT NOT NULL REFERENCES device (name),
    repository TEXT NOT NULL,    -- with its registry
    blob TEXT NOT NULL,          -- digest
    blob_size INTEGER NOT NULL,  -- bytes
    table_name TEXT NOT NULL,    -- file below tables/
    access BLOB NOT NULL,        -- JSON, without secrets
    PRIMARY KEY (device, repository, blob)
) STRICT, WITHOUT ROWID;
""",
    """
CREATE TABLE mount (             -- on users' directories
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- one may lie in an earlier one
    directory TEXT NOT NULL UNIQUE,
    reference TEXT NOT NULL,     -- what was asked for
    platform TEXT NOT NULL,      -- os/arch[/variant]
    digest TEXT NOT NULL,        -- of the platform's manifest
    fsid TEXT NOT NULL REFERENCES bootstrap (fsid),
    scratch TEXT NOT NULL,       -- name below scratch/; '' where nothing can be written
    state TEXT NOT NULL          -- MountState
) STRICT;
""",
    """
CREATE TABLE proof (             -- that a user may read a blob
    repository TEXT NOT NULL,    -- with its registry
    user TEXT NOT NULL,          -- name in the credential; '' for none
    blob TEXT NOT NULL,          -- digest
    seen REAL NOT NULL,          -- seconds since the epoch
    PRIMARY KEY (repository, user, blob)
) STRICT, WITHOUT ROWID;
""",
    """
CREATE TABLE new_image (
    reference TEXT NOT NULL,     -- canonical, with the tag or digest asked for
    platform TEXT NOT NULL,      -- os/arch[/variant]
    digest TEXT NOT NULL,        -- of the platform's manifest
    chain TEXT NOT NULL REFERENCES chain (key),
    PRIMARY KEY (reference, platform)
) STRICT, WITHOUT ROWID;
INSERT INTO new_image
    SELECT reference, platform, digest, min(key) FROM image JOIN chain USING (fsid)
    GROUP BY reference, platform;
DROP TABLE image;
ALTER TABLE new_image RENAME TO image;
CREATE TABLE new_mount (         -- on users' directories
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- one may lie in an earlier one
    directory TEXT NOT NULL UNIQUE,
    reference TEXT NOT NULL,     -- what was asked for
    platform TEXT NOT NULL,      -- os/arch[/variant]
    digest TEXT NOT NULL,        -- of the platform's manifest
    chain TEXT NOT NULL REFERENCES chain (key),
    scratch TEXT NOT NULL,       -- name below scratch/; '' where nothing can be written
    state TEXT NOT NULL          -- MountState
) STRICT;
INSERT INTO new_mount
    SELECT number, directory, reference, platform, digest, min(key), scratch, state
    FROM mount JOIN chain USING (fsid) GROUP BY number;
DROP TABLE mount;
ALTER TABLE new_mount RENAME TO mount;
""",
    """
ALTER TABLE proof ADD COLUMN     -- that has let it be read; '' is not known
    host TEXT NOT NULL DEFAULT '';
""",
    """
CREATE TABLE part (              -- the lowest layers of an image
    digest TEXT NOT NULL,        -- of the platform's manifest
    depth INTEGER NOT NULL,      -- how many layers
    chain TEXT NOT NULL REFERENCES chain (key),
    PRIMARY KEY (digest, depth)
) STRICT, WITHOUT ROWID;
""",
    """
CREATE TABLE checked (           -- layers whose blobs were read to the end
    blob TEXT NOT NULL,          -- digest
    diff_id TEXT NOT NULL,       -- as an image's config says
    index_name TEXT NOT NULL,    -- of the index that is said to describe it
    problem TEXT NOT NULL,       -- how it is another; '' for none
    PRIMARY KEY (blob, diff_id, index_name)
) STRICT, WITHOUT ROWID;
""",
    """
CREATE TABLE own_index (         -- of layers that have none: made here, of checked bytes
    blob TEXT NOT NULL,          -- digest
    diff_id TEXT NOT NULL,       -- of its tar
    blob_size INTEGER NOT NULL,  -- bytes
    digest TEXT NOT NULL,        -- of the index; its file is below content/
    size INTEGER NOT NULL,       -- bytes of the index
    PRIMARY KEY (blob, diff_id)
) STRICT, WITHOUT ROWID;
""",
)
"""What makes each version of the records from the one before; the first from nothing."""


class LayerRecord(msgspec.Struct, frozen=True):
    """One layer of a chain.

    Attributes:
        blob: the blob's digest.
        blob_size: its bytes.
        media_type: as the manifest says.
        format: in the words of `lazyimg.layers`.
        table: name of its device table's file.
        device: the device's name.
        device_size: its bytes; 0 for a layer without file data.
        first: bytes at the device's start that whoever made the layer says are wanted first.
    """

    blob: str
    blob_size: int
    media_type: str
    format: str
    table: str
    device: str
    device_size: int
    first: int = 0


class OwnIndex(NamedTuple):
    """An index that this node has made of a layer.

    Attributes:
        blob: the blob's digest.
        diff_id: digest of its tar.
        blob_size: bytes of the blob.
        digest: of the index.
        size: bytes of the index.
    """

    blob: str
    diff_id: str
    blob_size: int
    digest: str
    size: int


class ChainRecord(msgspec.Struct, frozen=True):
    """A bootstrap, its size in bytes, and the layers it was built from, lowest first.

    Several chains may have one bootstrap: their layers hold the same, and are other blobs.

    Attributes:
        key: of the layers' indexes.
        fsid: of the bootstrap.
        size: its bytes.
        layers: lowest first.
    """

    key: str
    fsid: str
    size: int
    layers: list[LayerRecord]


class ImageRecord(msgspec.Struct, frozen=True):
    """What a reference stood for on a platform: the manifest's digest and the chain's key."""

    reference: str
    platform: str
    digest: str
    chain: str


class MountState(StrEnum):
    """How far a mount on a user's directory is: MOUNTED, LOST, or something was being done.

    LOST was mounted by a process that died, and could not be mounted again yet.
    """

    MOUNTING = "mounting"
    MOUNTED = "mounted"
    LOST = "lost"
    UNMOUNTING = "unmounting"
    DETACHING = "detaching"


class MountRecord(msgspec.Struct, frozen=True):
    """A mount on a user's directory.

    Attributes:
        directory: absolute.
        image: what is mounted.
        scratch: name of the directory that takes what is written; "" for a read-only mount.
        state: recorded before and after what is done.
    """

    directory: str
    image: ImageRecord
    scratch: str
    state: MountState


class SourceRecord(msgspec.Struct, frozen=True):
    """A blob of a repository, from which a device can be filled.

    Attributes:
        repository: with its registry, as in a reference.
        blob: digest.
        blob_size: bytes.
        table: name of the device table's file that goes with this blob.
        access: how to reach it, as `lazyimg.images.access` records it.
    """

    repository: str
    blob: str
    blob_size: int
    table: str
    access: bytes


class LayerClaim(NamedTuple):
    """What an image says of one of its layers.

    Attributes:
        blob: the blob's digest.
        diff_id: the digest of the tar in it.
        index_name: of the index that describes it.
    """

    blob: str
    diff_id: str
    index_name: str


class Library(Database):
    """The records in one file.

    Args:
        path: the database's file; made when missing.

    Raises:
        StorageError: from every method, when the file cannot be used.
    """

    steps = _STEPS

    def bootstraps(self) -> dict[str, int]:
        """Give all bootstraps: fsid -> size in bytes."""
        with self._transaction(write=False) as db:
            return dict(db.execute("SELECT fsid, size FROM bootstrap"))

    def devices(self) -> dict[str, int]:
        """Give all devices: name -> size in bytes."""
        with self._transaction(write=False) as db:
            return dict(db.execute("SELECT name, size FROM device"))

    def find_chain(self, key: str) -> ChainRecord | None:
        """Give the bootstrap that was built from these layers, if one was."""
        with self._transaction(write=False) as db:
            row = db.execute(
                "SELECT fsid, size, layers FROM chain JOIN bootstrap USING (fsid) WHERE key = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        fsid, size, layers = row
        return ChainRecord(key, fsid, size, msgspec.json.decode(layers, type=list[LayerRecord]))

    def add_chain(self, chain: ChainRecord) -> None:
        """Record a bootstrap and its devices; its files exist."""
        with self._transaction(write=True) as db:
            db.execute(
                "INSERT INTO bootstrap VALUES (?, ?) ON CONFLICT DO NOTHING",
                (chain.fsid, chain.size),
            )
            db.executemany(
                "INSERT INTO device VALUES (?, ?) ON CONFLICT DO NOTHING",
                [(layer.device, layer.device_size) for layer in chain.layers if layer.device_size],
            )
            db.execute(
                "INSERT OR REPLACE INTO chain VALUES (?, ?, ?)",
                (chain.key, chain.fsid, msgspec.json.encode(chain.layers)),
            )

    def add_image(self, image: ImageRecord, sources: list[tuple[str, SourceRecord]]) -> None:
        """Record what a reference stands for now, and (device, source) pairs found through it."""
        with self._transaction(write=True) as db:
            db.execute(
                "INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?)",
                (image.reference, image.platform, image.digest, image.chain),
            )
            _add_sources(db, sources)

    def add_part(
        self, digest: str, depth: int, chain: str, sources: list[tuple[str, SourceRecord]]
    ) -> None:
        """Record the chain of the lowest layers of an image, and sources found through it.

        Args:
            digest: of the platform's manifest, and what else tells the chain from others.
            depth: how many layers.
            chain: the chain's key.
            sources: (device, source) pairs.
        """
        with self._transaction(write=True) as db:
            db.execute("INSERT OR REPLACE INTO part VALUES (?, ?, ?)", (digest, depth, chain))
            _add_sources(db, sources)

    def add_sources(self, sources: list[tuple[str, SourceRecord]]) -> None:
        """Record (device, source) pairs."""
        with self._transaction(write=True) as db:
            _add_sources(db, sources)

    def find_part(self, digest: str, depth: int) -> str | None:
        """Give the key of the chain of an image's lowest layers; see `add_part`."""
        with self._transaction(write=False) as db:
            row = db.execute(
                "SELECT chain FROM part WHERE digest = ? AND depth = ?", (digest, depth)
            ).fetchone()
        return str(row[0]) if row else None

    def find_image(self, reference: str, platform: str) -> ImageRecord | None:
        """Give what a reference last stood for."""
        with self._transaction(write=False) as db:
            row = db.execute(
                "SELECT * FROM image WHERE reference = ? AND platform = ?", (reference, platform)
            ).fetchone()
        return ImageRecord(*row) if row else None

    def sources(self, device: str) -> list[SourceRecord]:
        """Give what a device can be filled from, in no particular order."""
        with self._transaction(write=False) as db:
            rows = db.execute(
                "SELECT repository, blob, blob_size, table_name, access FROM source"
                " WHERE device = ?",
                (device,),
            ).fetchall()
        return [SourceRecord(*row) for row in rows]

    def has_sources(self, repository: str, devices: Iterable[str]) -> bool:
        """Tell whether every one of `devices` can be filled from a repository."""
        with self._transaction(write=False) as db:
            found = "SELECT 1 FROM source WHERE device = ? AND repository = ?"
            return all(db.execute(found, (one, repository)).fetchone() for one in devices)

    def proofs(self, repository: str, user: str, hosts: Container[str]) -> dict[str, float]:
        """Give when one of `hosts` last let a user read each blob, in seconds since the epoch."""
        with self._transaction(write=False) as db:
            rows = db.execute(
                "SELECT blob, seen, host FROM proof WHERE repository = ? AND user = ?",
                (repository, user),
            ).fetchall()
        return {blob: seen for blob, seen, host in rows if host in hosts}

    def add_proofs(self, repository: str, user: str, blobs: Mapping[str, str], seen: float) -> None:
        """Record that a user may read blobs of a repository.

        Args:
            repository: with its registry.
            user: the name in the credential.
            blobs: digest -> the host that has let it be read.
            seen: when, in seconds since the epoch.
        """
        with self._transaction(write=True) as db:
            db.executemany(
                "INSERT OR REPLACE INTO proof VALUES (?, ?, ?, ?, ?)",
                [(repository, user, blob, seen, host) for blob, host in blobs.items()],
            )

    def mounts(self) -> list[MountRecord]:
        """Give the mounts on users' directories, the oldest first."""
        with self._transaction(write=False) as db:
            rows = db.execute(
                "SELECT directory, reference, platform, digest, chain, scratch, state FROM mount"
                " ORDER BY number"
            ).fetchall()
        return [
            MountRecord(directory, ImageRecord(*image), scratch, MountState(state))
            for directory, *image, scratch, state in rows
        ]

    def add_mount(self, record: MountRecord) -> None:
        """Record a mount; whatever was recorded of its directory is forgotten."""
        image = record.image
        with self._transaction(write=True) as db:
            db.execute("DELETE FROM mount WHERE directory = ?", (record.directory,))
            db.execute(
                "INSERT INTO mount (directory, reference, platform, digest, chain, scratch, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    record.directory, image.reference, image.platform, image.digest, image.chain,
                    record.scratch, record.state,
                ),
            )  # fmt: skip

    def set_mount(self, directory: str, state: MountState) -> None:
        """Record how far a mount is."""
        with self._transaction(write=True) as db:
            db.execute("UPDATE mount SET state = ? WHERE directory = ?", (state, directory))

    def remove_mount(self, directory: str) -> None:
        """Forget a mount."""
        with self._transaction(write=True) as db:
            db.execute("DELETE FROM mount WHERE directory = ?", (directory,))

    def add_own_index(self, index: OwnIndex) -> None:
        """Record an index; its file exists."""
        with self._transaction(write=True) as db:
            db.execute("INSERT OR REPLACE INTO own_index VALUES (?, ?, ?, ?, ?)", index)

    def own_indexes(self) -> list[OwnIndex]:
        """Give all indexes that were made here, by their blobs' digests."""
        with self._transaction(write=False) as db:
            rows = db.execute("SELECT * FROM own_index ORDER BY blob, diff_id").fetchall()
        return [OwnIndex(*row) for row in rows]

    def find_own_index(self, blob: str, diff_id: str) -> OwnIndex | None:
        """Give the index that was made of a layer."""
        with self._transaction(write=False) as db:
            row = db.execute(
                "SELECT * FROM own_index WHERE blob = ? AND diff_id = ?", (blob, diff_id)
            ).fetchone()
        return OwnIndex(*row) if row else None

    def remove_own_index(self, index: OwnIndex) -> bool:
        """Forget an index; tells whether no other layer has the same one."""
        with self._transaction(write=True) as db:
            db.execute(
                "DELETE FROM own_index WHERE blob = ? AND diff_id = ?", (index.blob, index.diff_id)
            )
            other = "SELECT 1 FROM own_index WHERE digest = ?"
            return db.execute(other, (index.digest,)).fetchone() is None

    def add_checked(self, claim: LayerClaim, problem: str) -> None:
        """Record what a check has found: how a layer is not what is said of it; "" if it is."""
        with self._transaction(write=True) as db:
            db.execute("INSERT OR REPLACE INTO checked VALUES (?, ?, ?, ?)", (*claim, problem))

    def checked(self, claims: Iterable[LayerClaim]) -> dict[LayerClaim, str]:
        """Give what was found of those layers that were checked; see `add_checked`."""
        found = {}
        with self._transaction(write=False) as db:
            for claim in claims:
                row = db.execute(
                    "SELECT problem FROM checked WHERE blob = ? AND diff_id = ? AND index_name = ?",
                    claim,
                ).fetchone()
                if row is not None:
                    found[claim] = str(row[0])
        return found


def _add_sources(db: sqlite3.Connection, sources: list[tuple[str, SourceRecord]]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?, ?, ?)",
        [
            (device, one.repository, one.blob, one.blob_size, one.table, one.access)
            for device, one in sources
        ],
    )
