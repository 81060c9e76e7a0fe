"""Records of snapshots: what is kept, in which order, and what a failure leaves."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import NotFoundError, StorageError
from lazyimg.snapshotter.lifecycle import (
    REF,
    AlreadyExistsError,
    HeldImage,
    Kind,
    NewSnapshot,
    RemoteLayer,
    Snapshot,
    Unpacked,
    WrongStateError,
)
from lazyimg.snapshotter.records import Records
from lazyimg_formats.containerd.labels import serialize_image_labels
from lazyimg_formats.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REMOTE = RemoteLayer("sha256:chain", "registry/name@sha256:digest", "linux/amd64", 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


@pytest.fixture
def records(path: Path) -> Iterator[Records]:
    opened = Records(path)
    yield opened
    opened.close()


def create(records: Records, key: str, parent: str = "", **labels: str) -> Snapshot:
    return make(records, Kind.ACTIVE, key, parent, **labels)


def make(records: Records, kind: Kind, key: str, parent: str = "", **labels: str) -> Snapshot:
    return records.create(NewSnapshot(kind, key, parent, labels, 5), lambda _: None)[0]


def commit(records: Records, key: str, name: str, parent: str = "", **labels: str) -> None:
    wanted = NewSnapshot(Kind.COMMITTED, name, parent, labels, 9)
    records.commit(records.find_to_commit(key, name), wanted, (4096, 1))


def layer(records: Records, name: str, parent: str = "", **labels: str) -> None:
    create(records, f"making {name}", parent)
    commit(records, f"making {name}", name, **labels)


def test_records_stay(path: Path) -> None:
    records = Records(path)
    layer(records, "layer")
    created = create(records, "key", "layer", own="label")
    records.close()
    again = Records(path)
    assert again.find("key") == created
    assert created == Snapshot(2, "key", "layer", Kind.ACTIVE, {"own": "label"}, 5, 5)
    assert again.find("layer") == Snapshot(1, "layer", "", Kind.COMMITTED, {}, 9, 9, 4096, 1)
    again.close()


def test_ancestry_has_the_lowest_last(records: Records) -> None:
    layer(records, "a")
    layer(records, "b", "a")
    seen: list[list[str]] = []
    wanted = NewSnapshot(Kind.VIEW, "v", "b", {}, 5)
    created = records.create(wanted, lambda chain: seen.append([one.key for one in chain]))
    assert [one.key for one in created] == ["v", "b", "a"]
    assert seen == [["v", "b", "a"]]
    assert records.ancestry("v") == created


def test_nothing_is_recorded_when_its_directory_cannot_be_made(records: Records) -> None:
    def fail(_: list[Snapshot]) -> None:
        raise StorageError("/disk", "full")

    with pytest.raises(StorageError, match=r"^/disk: full$"):
        records.create(NewSnapshot(Kind.ACTIVE, "key", "", {}, 5), fail)
    with pytest.raises(NotFoundError, match=r"^snapshot key: it does not exist$"):
        records.find("key")
    create(records, "key")


def test_numbers_are_not_used_again(records: Records) -> None:
    first = create(records, "key").number
    records.remove("key")
    assert create(records, "key").number > first


def test_commit_keeps_number_and_parent(records: Records) -> None:
    layer(records, "below")
    number = create(records, "key", "below", old="label").number
    commit(records, "key", "name", new="label")
    found = records.find("name")
    assert (found.number, found.parent, found.labels) == (number, "below", {"new": "label"})
    with pytest.raises(NotFoundError):
        records.find("key")


def test_commit_with_a_parent(records: Records) -> None:
    layer(records, "below")
    create(records, "key")
    commit(records, "key", "name", "below")
    assert records.find("name").parent == "below"


def test_commit_to_a_name_that_is_taken(records: Records) -> None:
    layer(records, "name")
    create(records, "key")
    with pytest.raises(AlreadyExistsError):
        commit(records, "key", "name")
    with pytest.raises(AlreadyExistsError):  # whether or not there is something to commit
        commit(records, "no such key", "name")


def test_commit_of_nothing(records: Records) -> None:
    with pytest.raises(NotFoundError, match=r"^snapshot key: it does not exist$"):
        commit(records, "key", "name")


def test_commit_of_what_another_call_has_changed(records: Records) -> None:
    active = create(records, "key")
    records.remove("key")
    create(records, "key")
    wanted = NewSnapshot(Kind.COMMITTED, "name", "", {}, 9)
    with pytest.raises(NotFoundError, match=r"^snapshot key: it does not exist$"):
        records.commit(active, wanted, (4096, 1))
    layer(records, "name")
    with pytest.raises(AlreadyExistsError):
        records.commit(records.find("key"), wanted, (4096, 1))


def test_remove_gives_what_was_there(records: Records) -> None:
    created = create(records, "key")
    assert records.remove("key") == created
    with pytest.raises(NotFoundError):
        records.remove("key")


def test_remove_with_children(records: Records) -> None:
    layer(records, "layer")
    create(records, "key", "layer")
    with pytest.raises(WrongStateError):
        records.remove("layer")
    records.remove("key")
    records.remove("layer")


def test_update(records: Records) -> None:
    create(records, "key", old="label")
    changed = records.update("key", {"new": "label", REF: "chain"}, [], 11)
    assert (changed.labels, changed.updated) == ({"new": "label", REF: "chain"}, 11)
    assert records.find("key") == changed
    with pytest.raises(NotFoundError):
        records.update("other", {}, [], 11)


def test_pages(records: Records) -> None:
    for key in ("c", "a", "d", "b"):
        create(records, key)
    first = records.page("", 3, 99)
    assert [one.key for one in first] == ["a", "b", "c"]
    assert [one.key for one in records.page("c", 3, 99)] == ["d"]
    assert records.page("d", 3, 99) == []


def test_pages_by_size(records: Records) -> None:
    for key in ("a", "b", "c", "d"):
        create(records, key, label="x" * (500 if key == "c" else 20))  # {"label": "..."}
    pages = {after: [one.key for one in records.page(after, 9, 70)] for after in ("", "b", "c")}
    assert pages == {"": ["a", "b"], "b": ["c"], "c": ["d"]}


def test_pages_of_one_chain(records: Records) -> None:
    layer(records, "a", **{REF: "chain"})
    layer(records, "b")
    records.update("b", {REF: "other"}, [], 6)
    create(records, "c", **{REF: "chain"})
    assert [one.key for one in records.page("", 9, 99, "chain")] == ["a", "c"]
    records.update("a", {}, [], 7)
    assert [one.key for one in records.page("", 9, 99, "chain")] == ["c"]


def test_remote_ones(records: Records) -> None:
    labels = {REF: "sha256:chain"}
    wanted = NewSnapshot(Kind.COMMITTED, "remote", "", labels, 5)
    added = records.add_remote(wanted, REMOTE)
    assert added == Snapshot(1, "remote", "", Kind.COMMITTED, labels, 5, 5, remote=REMOTE)
    assert records.find("remote") == added
    create(records, "key", "remote")
    assert [one.remote for one in records.ancestry("key")] == [None, REMOTE]
    records.remove("key")
    records.remove("remote")
    assert records.find_ref("sha256:chain", "") is None


def test_remote_one_is_recorded_once(records: Records) -> None:
    labels = {REF: "sha256:chain"}
    added = records.add_remote(NewSnapshot(Kind.COMMITTED, "one", "", labels, 5), REMOTE)
    assert records.add_remote(NewSnapshot(Kind.COMMITTED, "two", "", labels, 6), REMOTE) == added
    with pytest.raises(NotFoundError):
        records.find("two")


def test_find_ref_wants_a_committed_one_on_that_parent(records: Records) -> None:
    layer(records, "below")
    create(records, "active", **{REF: "chain"})
    create(records, "making", "below")
    commit(records, "making", "layer", **{REF: "chain"})
    assert records.find_ref("chain", "") is None
    found = records.find_ref("chain", "below")
    assert found is not None
    assert found.key == "layer"


def test_comparison_with_what_is_below(records: Records) -> None:
    layer(records, "base")
    layer(records, "top", "base")
    create(records, "container", "top")
    for key, parent, kind in (
        ("plain", "top", Kind.VIEW),
        ("active-parent-view-1", "top", Kind.ACTIVE),
        ("1/base-parent-view-2", "base", Kind.VIEW),
    ):
        assert not records.are_compared(records.ancestry("container"))
        make(records, kind, key, parent)
    assert records.are_compared(records.ancestry("container"))
    assert not records.are_compared(records.ancestry("base")[1:])
    records.remove("1/base-parent-view-2")
    assert not records.are_compared(records.ancestry("container"))


def test_while_unchanged(records: Records) -> None:
    create(records, "a")
    create(records, "b")
    seen: list[set[int]] = []
    records.while_unchanged(seen.append)
    assert seen == [{1, 2}]


def test_shown(records: Records) -> None:
    base = add_remote(records, 1)
    top = add_remote(records, 2, base)
    layer(records, "unpacked", top)
    layer(records, "upper", "unpacked")
    layer(records, "other")
    users = {
        create(records, "on top", top).number: 2,
        make(records, Kind.VIEW, "view of the base", base).number: 1,
        create(records, "on unpacked ones", "upper").number: 2,
    }
    create(records, "on nothing")
    create(records, "on others", "other")
    assert {user: shown.depth for user, shown in records.shown().items()} == users
    (shown,) = {one for one in records.shown().values() if one.depth == 1}
    assert shown == records.ancestry("view of the base")[1].remote


def add_remote(records: Records, depth: int, parent: str = "", name: str = "app:1") -> str:
    labels = serialize_image_labels(name, Digest.of(b"app"), Digest.of(b"layer"))
    remote = RemoteLayer(f"chain {depth}", f"app@{Digest.of(b'app')}", "linux/amd64", depth)
    wanted = NewSnapshot(Kind.COMMITTED, f"remote {depth}", parent, {**labels, REF: "x"}, 5)
    return records.add_remote(wanted, remote).key


def unpack(records: Records, key: str, parent: str, why: Unpacked) -> None:
    wanted = NewSnapshot(Kind.ACTIVE, f"extract {key}", parent, {REF: "x"}, 5)
    records.create(wanted, lambda _: None, why)
    commit(records, f"extract {key}", key)


def test_pulled(records: Records) -> None:
    base = add_remote(records, 1)
    assert [one.depth for one in records.pulled()] == [1]
    top = add_remote(records, 2, base)
    create(records, "on top", top)
    create(records, "in between", base)
    for name in ("other", "the same once more"):
        wanted = NewSnapshot(Kind.COMMITTED, name, "", {REF: name}, 5)
        records.add_remote(wanted, REMOTE)
    layer(records, "unpacked", "other")
    layer(records, "alone")
    remote = records.find(top).remote
    assert remote is not None
    assert remote.depth == 2
    assert records.pulled() == [remote, REMOTE]


def test_images_of_layers(records: Records) -> None:
    digest = str(Digest.of(b"app"))
    top = add_remote(records, 2, add_remote(records, 1))
    why = Unpacked("app:1", digest, "format", "no index")
    unpack(records, "3", top, why)
    unpack(records, "4", "3", Unpacked("app:1", "", "below", "the layer below it is unpacked"))
    other = Unpacked("other:1", "", "registry", "is away")
    unpack(records, "5", "", other)
    unpack(records, "6", "", Unpacked("", "", "no-labels", "no label names the image"))
    layer(records, "7")
    for key, parent in (("a", top), ("b", "4"), ("c", "4"), ("d", "7")):
        create(records, key, parent)
    create(records, "extract 8", "5", **{REF: "chain"})  # is no container
    make(records, Kind.VIEW, "view", "5")
    assert records.images() == [
        HeldImage("app:1", digest, 2, 2, 3, why),
        HeldImage("other:1", "", 0, 1, 0, other),
        HeldImage("", "", 0, 2, 1, Unpacked("", "", "no-labels", "no label names the image")),
    ]
    for key in ("b", "c", "4", "3"):
        records.remove(key)
    assert records.images()[0] == HeldImage("app:1", digest, 2, 0, 1, None)


def test_image_whose_labels_are_gone(records: Records) -> None:
    records.update(add_remote(records, 1), {}, [], 6)
    assert records.images() == [HeldImage("app", str(Digest.of(b"app")), 1, 0, 0, None)]


def test_why_a_layer_is_unpacked_stays(path: Path) -> None:
    why = Unpacked("app:1", "", "format", "no index")
    records = Records(path)
    unpack(records, "layer", "", why)
    records.close()
    again = Records(path)
    assert again.images() == [HeldImage("app:1", "", 0, 1, 0, why)]
    again.close()


def test_records_of_the_version_before(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.executescript(f"{Records.steps[0]} PRAGMA user_version = 1;")
        db.execute("INSERT INTO snapshot VALUES (1, 'layer', NULL, 3, '{}', NULL, 5, 5, 0, 0)")
    db.close()
    records = Records(path)
    assert records.images() == [HeldImage("", "", 0, 1, 0, None)]
    records.close()


def test_newer_records_are_refused(path: Path) -> None:
    Records(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StorageError, match="has records of version 99, this lazyimg knows 3; use"):
        Records(path)


def test_no_database(path: Path) -> None:
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="cannot be opened: file is not a database"):
        Records(path)


def test_failing_disk(records: Records, path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE remote")
    other.close()
    with pytest.raises(StorageError, match="records: no such table: remote"):
        records.find("key")
