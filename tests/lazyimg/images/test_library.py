"""The records of this node's images, in a real file."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import StorageError
from lazyimg.images import library as library_module
from lazyimg.images.library import (
    ChainRecord,
    ImageRecord,
    LayerRecord,
    Library,
    MountRecord,
    MountState,
    SourceRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FSID = "f" * 64


def layer_record(device: str = "dev", size: int = 8192, blob: str = "sha256:aa") -> LayerRecord:
    return LayerRecord(blob, 4000, "some/type", "zstd:chunked", "table", device, size)


def chain(*layers: LayerRecord, fsid: str = FSID, size: int = 4096) -> ChainRecord:
    return ChainRecord(fsid, size, list(layers))


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
    assert library.chain_of(FSID) is None
    assert library.find_image("reg/app:1", "linux/amd64") is None
    assert library.sources("dev") == []


def test_records_are_synced_and_readers_do_not_wait(library: Library) -> None:
    assert library._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert library._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_chain_with_the_same_layer_twice_and_one_without_data(library: Library) -> None:
    record = chain(layer_record(), layer_record(), layer_record("empty", 0))
    library.add_chain("key", record)
    assert library.find_chain("key") == record
    assert library.chain_of(FSID) == record
    assert library.bootstraps() == {FSID: 4096}
    assert library.devices() == {"dev": 8192}


def test_two_chains_of_one_bootstrap(library: Library) -> None:
    one, other = chain(layer_record(blob="sha256:aa")), chain(layer_record(blob="sha256:bb"))
    library.add_chain("b", other)
    library.add_chain("a", one)
    assert library.find_chain("a") == one
    assert library.find_chain("b") == other
    assert library.chain_of(FSID) == one
    assert library.bootstraps() == {FSID: 4096}


def test_chain_that_is_built_again(library: Library) -> None:
    library.add_chain("key", chain(layer_record()))
    again = chain(layer_record("new"), fsid="e" * 64, size=12_288)
    library.add_chain("key", again)
    assert library.find_chain("key") == again
    assert library.chain_of(FSID) is None
    assert library.bootstraps() == {FSID: 4096, "e" * 64: 12_288}


def test_tag_that_moves(library: Library) -> None:
    library.add_chain("key", chain(layer_record()))
    library.add_chain("next", chain(layer_record(), fsid="e" * 64))
    first = ImageRecord("reg/app:1", "linux/amd64", "sha256:m1", FSID)
    second = ImageRecord("reg/app:1", "linux/amd64", "sha256:m2", "e" * 64)
    other = ImageRecord("reg/app:1", "linux/arm64", "sha256:m3", FSID)
    for image in (first, other, second):
        library.add_image(image, [])
    assert library.find_image("reg/app:1", "linux/amd64") == second
    assert library.find_image("reg/app:1", "linux/arm64") == other
    assert library.find_image("reg/app:2", "linux/amd64") is None


def test_sources_of_a_device(library: Library) -> None:
    library.add_chain("key", chain(layer_record(), layer_record("other")))
    image = ImageRecord("reg/app:1", "linux/amd64", "sha256:m1", FSID)
    library.add_image(image, [("dev", source()), ("other", source("reg/other"))])
    library.add_image(image, [("dev", source("reg/mirror")), ("dev", source(access=b"new"))])
    assert sorted(library.sources("dev"), key=lambda one: one.repository) == [
        source(access=b"new"),
        source("reg/mirror"),
    ]
    assert library.sources("other") == [source("reg/other")]


def test_image_of_an_unknown_bootstrap_changes_nothing(library: Library) -> None:
    image = ImageRecord("reg/app:1", "linux/amd64", "sha256:m1", FSID)
    with pytest.raises(StorageError, match="records: FOREIGN KEY constraint failed"):
        library.add_image(image, [])
    library.add_chain("key", chain(layer_record()))
    with pytest.raises(StorageError, match="FOREIGN KEY"):
        library.add_image(image, [("dev", source()), ("unknown", source())])
    assert library.find_image("reg/app:1", "linux/amd64") is None
    assert library.sources("dev") == []
    library.add_image(image, [("dev", source())])
    assert library.find_image("reg/app:1", "linux/amd64") == image


def test_records_outlive_the_process(path: Path, library: Library) -> None:
    library.add_chain("key", chain(layer_record()))
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
        library.add_chain("key", chain(layer_record()))
    reader.execute("COMMIT")
    reader.close()
    assert library.find_chain("key") is None
    library.add_chain("key", chain(layer_record()))
    assert library.find_chain("key") == chain(layer_record())
    library.close()


def test_full_disk(library: Library) -> None:
    (pages,) = library._db.execute("PRAGMA page_count").fetchone()
    library._db.execute(f"PRAGMA max_page_count = {pages}")
    many = chain(*(layer_record(f"{number:064}") for number in range(1000)))
    with pytest.raises(StorageError, match="records: database or disk is full"):
        library.add_chain("key", many)
    library._db.execute("PRAGMA max_page_count = 1000000")
    assert library.bootstraps() == {}
    library.add_chain("key", many)
    assert library.find_chain("key") == many


def test_threads_take_turns(library: Library) -> None:
    def work(number: int) -> None:
        for step in range(5):
            library.add_chain(f"{number}-{step}", chain(layer_record(f"{number}-{step}")))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(library.devices()) == 20


def test_proofs_are_of_one_user_and_one_repository(path: Path, library: Library) -> None:
    library.add_proofs("reg/app", "me", ["a", "b"], 10.0)
    library.add_proofs("reg/app", "me", ["b"], 20.5)
    library.add_proofs("reg/app", "", ["c"], 30.0)
    assert Library(path).proofs("reg/app", "me") == {"a": 10.0, "b": 20.5}
    assert library.proofs("reg/app", "") == {"c": 30.0}
    assert library.proofs("reg/other", "me") == {}


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


def mount_record(
    directory: str, state: MountState = MountState.MOUNTED, scratch: str = ""
) -> MountRecord:
    image = ImageRecord("reg/app:1", "linux/amd64", "sha256:aa", FSID)
    return MountRecord(directory, image, scratch, state)


def test_mounts_in_the_order_they_were_made(library: Library) -> None:
    library.add_chain("key", chain())
    assert library.mounts() == []
    records = [mount_record("/b"), mount_record("/a", scratch="s"), mount_record("/c")]
    for record in records:
        library.add_mount(record)
    assert library.mounts() == records
    library.remove_mount("/a")
    library.add_mount(records[0])
    assert library.mounts() == [records[2], records[0]]


def test_state_of_a_mount(library: Library) -> None:
    library.add_chain("key", chain())
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
