"""The queue of completion, and quarantine, as the records have them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.snapshotter.lifecycle import REF, Kind, NewSnapshot, Quarantined, RemoteLayer
from lazyimg.snapshotter.records import Records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


@pytest.fixture
def records(path: Path) -> Iterator[Records]:
    opened = Records(path)
    yield opened
    opened.close()


def layers(records: Records, image: str, depth: int) -> str:
    """Give the key of the uppermost of an image's layers, which are there lazily."""
    parent = ""
    for number in range(1, depth + 1):
        chain = f"{image}-{number}"
        wanted = NewSnapshot(Kind.COMMITTED, f"key {chain}", parent, {REF: chain, "own": "x"}, 5)
        remote = RemoteLayer(chain, f"{image}@sha256:digest", "linux/amd64", number)
        parent = records.add_remote(wanted, remote).key
    return parent


def run(records: Records, key: str, parent: str, **labels: str) -> None:
    records.create(NewSnapshot(Kind.ACTIVE, key, parent, labels, 5), lambda _: None)


def queued(records: Records) -> list[tuple[str, int]]:
    return [(one.reference.partition("@")[0], one.depth) for one in records.pending()]


def test_order_of_first_containers(records: Records) -> None:
    one, two = layers(records, "one", 2), layers(records, "two", 1)
    run(records, "first", two)
    run(records, "second", one)
    run(records, "third", two)
    run(records, "lower", "key one-1")
    assert queued(records) == [("two", 1), ("one", 2), ("one", 1)]


def test_unpacking_is_no_container(records: Records) -> None:
    run(records, "extract", layers(records, "one", 1), **{REF: "upper"})
    assert queued(records) == []


def test_complete_once(path: Path) -> None:
    records = Records(path)
    top = layers(records, "one", 1)
    run(records, "first", top)
    records.finish(records.pending()[0])
    records.close()
    again = Records(path)
    run(again, "second", top)
    assert queued(again) == []
    again.close()


def test_removed_layers_leave_the_queue_with_their_last_snapshot(records: Records) -> None:
    top = layers(records, "one", 1)
    other = NewSnapshot(Kind.COMMITTED, "another", "", {}, 5)
    remote = records.find(top).remote
    assert remote is not None
    records.add_remote(other, replace(remote, chain="other"))
    run(records, "first", top)
    for key, expected in (("first", [("one", 1)]), (top, [("one", 1)]), ("another", [])):
        records.remove(key)
        assert queued(records) == expected


def test_quarantine_reaches_from_the_lying_layer_up(records: Records) -> None:
    top = layers(records, "one", 3)
    layers(records, "two", 3)
    run(records, "lower", "key one-1")
    run(records, "first", top)
    first, second = records.pending()
    assert first.depth == 1
    assert records.quarantine(second, 2, "problem") == ["one-2", "one-3"]
    assert records.quarantined() == [
        Quarantined(
            RemoteLayer(f"one-{depth}", "one@sha256:digest", "linux/amd64", depth), "problem"
        )
        for depth in (2, 3)
    ]
    assert [records.find(f"key one-{depth}").problem for depth in (1, 2, 3)] == [
        "", "problem", "problem",
    ]  # fmt: skip
    assert records.find("key one-1").labels == {REF: "one-1", "own": "x"}
    assert records.find(top).labels == {"own": "x"}
    assert records.find_ref("one-3", "key one-2") is None
    assert records.pending() == [first]


def test_label_that_comes_back_brings_nothing_back(records: Records) -> None:
    top = layers(records, "one", 1)
    run(records, "first", top)
    records.quarantine(records.pending()[0], 1, "problem")
    records.update(top, {REF: "one-1"}, [f"labels.{REF}"], 9)
    assert records.find_ref("one-1", "") is None
