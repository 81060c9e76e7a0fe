"""The records of this node's images, in a real file."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.errors import StorageError
from lazyimg.images import library as library_module
from lazyimg.images.library import (
    ChainRecord,
    ImageRecord,
    LayerClaim,
    LayerRecord,
    Library,
    MountRecord,
    MountState,
    OwnIndex,
    SourceRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FSID = "f" * 64


def layer_record(device: str = "dev", size: int = 8192, blob: str = "sha256:aa") -> LayerRecord:
    return LayerRecord(blob, 4000, "some/type", "zstd:chunked", "table", device, size)


def chain(
    *layers: LayerRecord, key: str = "key", fsid: str = FSID, size: int = 4096
) -> ChainRecord:
    return ChainRecord(key, fsid, size, list(layers))


def source(
    repository: str = "reg/app", table: str = "table", access: bytes = b"{}"
) -> SourceRecord:
    return SourceRecord(repository, "sha256:aa", 4000, table, access)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "library.sqlite"


@pytest.fixture
def library(path: Path) -> Iterator[Library]:
    library = Library(path)
    yield library
    library.close()


def test_new_library_is_empty(library: Library) -> None:
    assert library.bootstraps() == {}
    assert library.devices() == {}
    assert library.find_chain("key") is None
    assert library.find_image("reg/app:1", "linux/amd64") is None
    assert library.sources("dev") == []


def test_records_are_synced_and_readers_do_not_wait(library: Library) -> None:
    assert library._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert library._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_chain_with_the_same_layer_twice_and_one_without_data(library: Library) -> None:
    record = chain(layer_record(), layer_record(), layer_record("empty", 0))
    library.add_chain(record)
    assert library.find_chain("key") == record
    assert library.bootstraps() == {FSID: 4096}
    assert library.devices() == {"dev": 8192}


def test_two_chains_of_one_bootstrap(library: Library) -> None:
    one = chain(layer_record(blob="sha256:aa"), key="a")
    other = chain(layer_record(blob="sha256:bb"), key="b")
    library.add_chain(other)
    library.add_chain(one)
    assert library.find_chain("a") == one
    assert library.find_chain("b") == other
    assert library.bootstraps() == {FSID: 4096}


def test_chain_that_is_built_again(library: Library) -> None:
    library.add_chain(chain(layer_record()))
    again = chain(layer_record("new"), fsid="e" * 64, size=12_288)
    library.add_chain(again)
    assert library.find_chain("key") == again
    assert library.bootstraps() == {FSID: 4096, "e" * 64: 12_288}


def test_tag_that_moves(library: Library) -> None:
    library.add_chain(chain(layer_record()))
    library.add_chain(chain(layer_record(), key="next", fsid="e" * 64))
    first = ImageRecord("reg/app:1", "linux/amd64", "sha256:m1", "key")
    second = ImageRecord("reg/app:1", "linux/amd64", "sha256:m2", "next")
    other = ImageRecord("reg/app:1", "linux/arm64", "sha256:m3", "key")
    for image in (first, other, second):
        library.add_image(image, [])
    assert library.find_image("reg/app:1", "linux/amd64") == second
    assert library.find_image("reg/app:1", "linux/arm64") == other
    assert library.find_image("reg/app:2", "linux/amd64") is None


def test_parts_of_an_image(library: Library) -> None:
    library.add_chain(chain(layer_record()))
    assert library.find_part("sha256:m1", 1) is None
    library.add_part("sha256:m1", 1, "key", [("dev", source())])
    assert library.find_part("sha256:m1", 1) == "key"
    assert library.find_part("sha256:m1", 2) is None
    assert library.find_part("sha256:m2", 1) is None
    assert library.sources("dev") == [source()]
    assert library.find_image("reg/app:1", "linux/amd64") is None


def test_sources_of_a_device(library: Library) -> None:
    library.add_chain(chain(layer_record(), layer_record("other")))
    image = ImageRecord("reg/app:1", "linux/amd64", "sha256:m1", "key")
    library.add_image(image, [("dev", source()), ("other", source("reg/other"))])
    library.add_image(image, [("dev", source("reg/mirror")), ("dev", source(access=b"new"))])
    assert sorted(library.sources("dev"), key=lambda one: one.repository) == [
        source(access=b"new"),
        source("reg/mirror"),
    ]
    assert library.sources("other") == [source("reg/other")]
    assert library.has_sources("reg/mirror", ["dev"])
    assert library.has_sources("reg/mirror", [])
    assert not library.has_sources("reg/mirror", ["dev", "other"])
    assert not library.has_sources("reg/none", ["dev"])


def test_image_of_an_unknown_bootstrap_changes_nothing(library: Library) -> None:
    image = ImageRecord("reg/app:1", "linux/amd64", "sha256:m1", "key")
    with pytest.raises(StorageError, match="records: FOREIGN KEY constraint failed"):
        library.add_image(image, [])
    library.add_chain(chain(layer_record()))
    with pytest.raises(StorageError, match="FOREIGN KEY"):
        library.add_image(image, [("dev", source()), ("unknown", source())])
    assert library.find_image("reg/app:1", "linux/amd64") is None
    assert library.sources("dev") == []
    library.add_image(image, [("dev", source())])
    assert library.find_image("reg/app:1", "linux/amd64") == image


def test_records_outlive_the_process(path: Path, library: Library) -> None:
    library.add_chain(chain(layer_record()))
    again = Library(path)  # the first one is still open, as it is after a crash
    assert again.find_chain("key") == chain(layer_record())
    again.close()


def test_failed_commit_does_not_block_the_next_transaction(path: Path) -> None:
    library = Library(path)
    reader = sqlite3.connect(path, isolation_level=None)
    library._db.execute("PRAGMA journal_mode = DELETE")
    library._db.execute("PRAGMA busy_timeout = 0")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM chain").fetchall()
    with pytest.raises(StorageError, match="records: database is locked"):
        library.add_chain(chain(layer_record()))
    reader.execute("COMMIT")
    reader.close()
    assert library.find_chain("key") is None
    library.add_chain(chain(layer_record()))
    assert library.find_chain("key") == chain(layer_record())
    library.close()


def test_full_disk(library: Library) -> None:
    (pages,) = library._db.execute("PRAGMA page_count").fetchone()
    library._db.execute(f"PRAGMA max_page_count = {pages}")
    many = chain(*(layer_record(f"{number:064}") for number in range(1000)))
    with pytest.raises(StorageError, match="records: database or disk is full"):
        library.add_chain(many)
    library._db.execute("PRAGMA max_page_count = 1000000")
    assert library.bootstraps() == {}
    library.add_chain(many)
    assert library.find_chain("key") == many


def test_threads_take_turns(library: Library) -> None:
    def work(number: int) -> None:
        for step in range(5):
            library.add_chain(chain(layer_record(f"{number}-{step}"), key=f"{number}-{step}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(library.devices()) == 20


def test_proofs_are_of_one_user_and_one_repository(path: Path, library: Library) -> None:
    library.add_proofs("reg/app", "me", {"a": "reg", "b": "reg"}, 10.0)
    library.add_proofs("reg/app", "me", {"b": "reg"}, 20.5)
    library.add_proofs("reg/app", "", {"c": "reg"}, 30.0)
    assert Library(path).proofs("reg/app", "me", {"reg"}) == {"a": 10.0, "b": 20.5}
    assert library.proofs("reg/app", "", {"reg"}) == {"c": 30.0}
    assert library.proofs("reg/other", "me", {"reg"}) == {}


def test_proofs_are_of_one_host(library: Library) -> None:
    library.add_proofs("reg/app", "", {"a": "reg", "b": "mirror:5000"}, 10.0)
    assert library.proofs("reg/app", "", {"reg"}) == {"a": 10.0}
    assert library.proofs("reg/app", "", {"reg", "mirror:5000"}) == {"a": 10.0, "b": 10.0}
    library.add_proofs("reg/app", "", {"b": "reg"}, 20.0)
    assert library.proofs("reg/app", "", {"reg"}) == {"a": 10.0, "b": 20.0}


def test_closed_library(path: Path) -> None:
    library = Library(path)
    library.close()
    with pytest.raises(StorageError, match="records: Cannot operate on a closed database"):
        library.devices()


def test_newer_records_are_refused(path: Path, library: Library) -> None:
    library._db.execute("PRAGMA user_version = 9")
    with pytest.raises(StorageError) as caught:
        Library(path)
    assert str(caught.value) == (
        f"{path}: has records of version 9, this lazyimg knows {len(library_module._STEPS)};"
        " use the lazyimg that wrote them, or another root"
    )


def test_records_of_every_earlier_version_open(tmp_path: Path) -> None:
    schemas = set()
    for version in range(len(library_module._STEPS) + 1):
        path = tmp_path / f"{version}.sqlite"
        database = sqlite3.connect(path)
        database.executescript("".join(library_module._STEPS[:version]))
        if version:
            database.execute("INSERT INTO bootstrap VALUES ('f', 4096)")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
        database.close()
        library = Library(path)
        assert library.bootstraps() == ({"f": 4096} if version else {})
        rows = library._db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
        schemas.add(tuple(rows))
        library.close()
    assert len(schemas) == 1


VERSION_3 = """
BEGIN;
CREATE TABLE bootstrap (
    fsid TEXT PRIMARY KEY,       -- sha256 of the file
    size INTEGER NOT NULL        -- bytes
) STRICT, WITHOUT ROWID;
INSERT INTO "bootstrap" VALUES ('e',4096);
INSERT INTO "bootstrap" VALUES ('f',4096);
CREATE TABLE chain (             -- the layers that a bootstrap was built from
    key TEXT PRIMARY KEY,        -- of the layers' indexes, lowest first
    fsid TEXT NOT NULL REFERENCES bootstrap (fsid),
    layers BLOB NOT NULL         -- JSON, [LayerRecord]
) STRICT, WITHOUT ROWID;
INSERT INTO "chain" VALUES ('a','f',CAST('[{"blob":"sha256:aa","blob_size":4000,
    "media_type":"some/type","format":"zstd:chunked",
    "table":"table","device":"dev","device_size":8192}]' AS BLOB));
INSERT INTO "chain" VALUES ('b','f',CAST('[{"blob":"sha256:bb","blob_size":4000,
    "media_type":"some/type","format":"zstd:chunked",
    "table":"table","device":"dev","device_size":8192}]' AS BLOB));
INSERT INTO "chain" VALUES ('c','e',CAST('[{"blob":"sha256:cc","blob_size":4000,
    "media_type":"some/type","format":"zstd:chunked",
    "table":"table","device":"dev","device_size":8192}]' AS BLOB));
CREATE TABLE device (
    name TEXT PRIMARY KEY,
    size INTEGER NOT NULL        -- bytes
) STRICT, WITHOUT ROWID;
INSERT INTO "device" VALUES ('dev',8192);
CREATE TABLE image (
    reference TEXT NOT NULL,     -- canonical, with the tag or digest asked for
    platform TEXT NOT NULL,      -- os/arch[/variant]
    digest TEXT NOT NULL,        -- of the platform's manifest
    fsid TEXT NOT NULL REFERENCES bootstrap (fsid),
    PRIMARY KEY (reference, platform)
) STRICT, WITHOUT ROWID;
INSERT INTO "image" VALUES ('reg/app:1','linux/amd64','sha256:app','f');
INSERT INTO "image" VALUES ('reg/copy:1','linux/amd64','sha256:copy','f');
INSERT INTO "image" VALUES ('reg/other:1','linux/amd64','sha256:other','e');
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
INSERT INTO "mount" VALUES (2,'/b','reg/app:1','linux/amd64','sha256:app','f','scr','mounted');
INSERT INTO "mount" VALUES (3,'/a','reg/other:1','linux/amd64','sha256:other','e','','unmounting');
CREATE TABLE proof (             -- that a user may read a blob
    repository TEXT NOT NULL,    -- with its registry
    user TEXT NOT NULL,          -- name in the credential; '' for none
    blob TEXT NOT NULL,          -- digest
    seen REAL NOT NULL,          -- seconds since the epoch
    PRIMARY KEY (repository, user, blob)
) STRICT, WITHOUT ROWID;
INSERT INTO "proof" VALUES ('reg/app','me','sha256:aa',5.0);
CREATE TABLE source (            -- a blob from which a device can be filled
    device TEXT NOT NULL REFERENCES device (name),
    repository TEXT NOT NULL,    -- with its registry
    blob TEXT NOT NULL,          -- digest
    blob_size INTEGER NOT NULL,  -- bytes
    table_name TEXT NOT NULL,    -- file below tables/
    access BLOB NOT NULL,        -- JSON, without secrets
    PRIMARY KEY (device, repository, blob)
) STRICT, WITHOUT ROWID;
INSERT INTO "source" VALUES ('dev','reg/app','sha256:aa',4000,'table',X'7B7D');
INSERT INTO "source" VALUES ('dev','reg/copy','sha256:bb',4000,'table',X'7B7D');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES ('mount',3);
PRAGMA user_version = 3;
COMMIT;
"""
"""All of a file as the lazyimg with records of version 3 wrote it; digests are shortened."""


def test_records_of_images_and_mounts_without_their_chains(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript(VERSION_3)
    database.close()
    library = Library(path)
    assert library.find_image("reg/app:1", "linux/amd64") == ImageRecord(
        "reg/app:1", "linux/amd64", "sha256:app", "a"
    )
    copied = library.find_image("reg/copy:1", "linux/amd64")
    assert copied == ImageRecord("reg/copy:1", "linux/amd64", "sha256:copy", "a")
    other = ImageRecord("reg/other:1", "linux/amd64", "sha256:other", "c")
    assert library.find_image("reg/other:1", "linux/amd64") == other
    layers = [layer_record(blob="sha256:bb")]
    assert library.find_chain("b") == ChainRecord("b", "f", 4096, layers)
    assert [
        (one.directory, one.image.chain, one.scratch, one.state) for one in library.mounts()
    ] == [
        ("/b", "a", "scr", MountState.MOUNTED),
        ("/a", "c", "", MountState.UNMOUNTING),
    ]
    assert library.proofs("reg/app", "me", {""}) == {"sha256:aa": 5.0}  # asked anew
    assert len(library.sources("dev")) == 2
    library.add_image(
        msgspec.structs.replace(copied, chain="b"), []
    )  # as the next look at the registry does
    found = library.find_image("reg/copy:1", "linux/amd64")
    assert found is not None
    assert found.chain == "b"
    library.add_mount(MountRecord("/new", other, "", MountState.MOUNTING))
    (number,) = library._db.execute("SELECT max(number) FROM mount").fetchone()
    assert number == 4  # none is given twice
    library.close()


def mount_record(
    directory: str, state: MountState = MountState.MOUNTED, scratch: str = ""
) -> MountRecord:
    image = ImageRecord("reg/app:1", "linux/amd64", "sha256:aa", "key")
    return MountRecord(directory, image, scratch, state)


def test_mounts_in_the_order_they_were_made(library: Library) -> None:
    library.add_chain(chain())
    assert library.mounts() == []
    records = [mount_record("/b"), mount_record("/a", scratch="s"), mount_record("/c")]
    for record in records:
        library.add_mount(record)
    assert library.mounts() == records
    library.remove_mount("/a")
    library.add_mount(records[0])
    assert library.mounts() == [records[2], records[0]]


def test_state_of_a_mount(library: Library) -> None:
    library.add_chain(chain())
    library.add_mount(mount_record("/a", MountState.MOUNTING))
    library.add_mount(mount_record("/b"))
    library.set_mount("/a", MountState.UNMOUNTING)
    library.set_mount("/none", MountState.UNMOUNTING)
    assert [record.state for record in library.mounts()] == [
        MountState.UNMOUNTING,
        MountState.MOUNTED,
    ]


def test_mount_of_an_unknown_image(library: Library) -> None:
    with pytest.raises(StorageError, match="FOREIGN KEY constraint failed"):
        library.add_mount(mount_record("/a"))
    assert library.mounts() == []


def test_file_that_is_no_library(path: Path) -> None:
    path.write_bytes(b"text, and enough of it to be taken for a database's header" * 100)
    with pytest.raises(StorageError, match="cannot be opened: file is not a database"):
        Library(path)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened: unable to open database file"):
        Library(tmp_path / "none" / "library.sqlite")


def test_what_checks_have_found(library: Library) -> None:
    one, two, three = (LayerClaim("sha256:aa", f"sha256:{n}", "index") for n in "123")
    library.add_checked(one, "")
    library.add_checked(two, "is another")
    assert library.checked([one, two, three]) == {one: "", two: "is another"}
    library.add_checked(two, "")
    assert library.checked([two]) == {two: ""}
    assert library.checked([]) == {}


def test_own_indexes(library: Library) -> None:
    one, two, three = (OwnIndex("sha256:aa", f"sha256:{n}", 10, "sha256:ii", 5) for n in "123")
    other = three._replace(blob="sha256:00", digest="sha256:jj")
    for index in (two, one, other):
        library.add_own_index(index)
    assert library.own_indexes() == [other, one, two]
    assert library.find_own_index("sha256:aa", "sha256:2") == two
    assert library.find_own_index("sha256:aa", "sha256:3") is None
    library.add_own_index(two._replace(size=6))
    assert library.find_own_index("sha256:aa", "sha256:2") == two._replace(size=6)
    assert [library.remove_own_index(index) for index in (one, two, other)] == [False, True, True]
    assert library.own_indexes() == []
