"""What may be done with a snapshot, and the texts of what may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lazyimg.errors import LazyimgError, NotFoundError, UsageError
from lazyimg.snapshotter.lifecycle import (
    GID_MAP,
    MAX_ID,
    MAX_KEY,
    MAX_LABEL,
    MAX_LABELS,
    UID_MAP,
    AlreadyExistsError,
    IdMaps,
    Kind,
    NewSnapshot,
    Snapshot,
    WrongStateError,
    check_commit,
    check_key,
    check_labels,
    check_mounts,
    check_new,
    check_remove,
    parse_id_maps,
    update_labels,
)

ACTIVE = Snapshot(1, "one", "", Kind.ACTIVE, {}, 5, 5)
VIEW = replace(ACTIVE, key="seen", kind=Kind.VIEW)
LAYER = replace(ACTIVE, key="layer", kind=Kind.COMMITTED)
WANTED = NewSnapshot(Kind.ACTIVE, "new", "", {}, 7)


def refusal(error: pytest.ExceptionInfo[LazyimgError]) -> tuple[type[LazyimgError], str]:
    return type(error.value), str(error.value)


@pytest.mark.parametrize("key", ["a", "a/b c", "ü" * (MAX_KEY // 2), "\ud800"])
def test_keys(key: str) -> None:
    check_key(key)


def test_key_is_missing() -> None:
    with pytest.raises(UsageError, match=r"^snapshot: a snapshot needs a key$"):
        check_key("")


def test_key_is_too_long() -> None:
    with pytest.raises(UsageError, match=rf"its key has {MAX_KEY + 2} bytes, at most {MAX_KEY}"):
        check_key("ü" * (MAX_KEY // 2 + 1))


def many_labels(size: int) -> dict[str, str]:
    """Give labels of 1 KiB each, `size` bytes in all."""
    return {f"{number:024}": "x" * 1000 for number in range(size // 1024)}


def test_labels() -> None:
    check_labels("k", {"a": "x" * (MAX_LABEL - 1)} | {f"l{n}": "" for n in range(10_000)})
    check_labels("k", many_labels(MAX_LABELS))


def test_label_without_a_name() -> None:
    with pytest.raises(UsageError, match=r"^snapshot k: a label needs a name$"):
        check_labels("k", {"": "x"})


def test_label_is_too_large() -> None:
    with pytest.raises(UsageError, match=r"^snapshot k: label 'ä' and its value have 4097 bytes"):
        check_labels("k", {"ä": "x" * (MAX_LABEL - 1)})


def test_too_many_labels() -> None:
    with pytest.raises(UsageError, match=rf"^snapshot k: its labels have {MAX_LABELS + 1} bytes"):
        check_labels("k", {**many_labels(MAX_LABELS), "x": ""})


def test_new_ones() -> None:
    check_new(WANTED, None, None)
    check_new(replace(WANTED, parent="layer"), None, LAYER)


@pytest.mark.parametrize(
    ("parent", "existing", "below", "expected"),
    [
        ("gone", None, None, (NotFoundError, "snapshot gone: the parent does not exist")),
        (
            "one", None, ACTIVE,
            (UsageError, "snapshot new: its parent one is active, not committed"),
        ),
        (
            "seen", None, VIEW,
            (UsageError, "snapshot new: its parent seen is a view, not committed"),
        ),
        ("", ACTIVE, None, (AlreadyExistsError, "snapshot new: it exists already")),
    ],
)  # fmt: skip
def test_new_one_is_refused(
    parent: str,
    existing: Snapshot | None,
    below: Snapshot | None,
    expected: tuple[type[LazyimgError], str],
) -> None:
    with pytest.raises(LazyimgError) as caught:
        check_new(replace(WANTED, parent=parent), existing, below)
    assert refusal(caught) == expected


@pytest.mark.parametrize("snapshot", [ACTIVE, VIEW])
def test_mounts(snapshot: Snapshot) -> None:
    check_mounts(snapshot)


def test_committed_one_is_not_mounted() -> None:
    with pytest.raises(WrongStateError, match=r"^snapshot layer: is committed; only active"):
        check_mounts(LAYER)


def test_commits() -> None:
    check_commit(WANTED, ACTIVE, None)
    check_commit(replace(WANTED, parent="layer"), replace(ACTIVE, parent="layer"), None)
    check_commit(replace(WANTED, parent="layer"), ACTIVE, LAYER)


@pytest.mark.parametrize(
    ("parent", "snapshot", "below", "expected"),
    [
        ("", VIEW, None,
         (WrongStateError, "snapshot seen: is a view; only active ones are committed")),
        ("", LAYER, None,
         (WrongStateError, "snapshot layer: is committed; only active ones are committed")),
        ("layer", replace(ACTIVE, parent="other"), LAYER,
         (UsageError, "snapshot one: its parent is other, it cannot become layer")),
        ("gone", ACTIVE, None, (NotFoundError, "snapshot gone: the parent does not exist")),
        ("seen", ACTIVE, VIEW,
         (WrongStateError, "snapshot seen: is not committed, so it can be no parent")),
    ],
)  # fmt: skip
def test_commit_is_refused(
    parent: str,
    snapshot: Snapshot,
    below: Snapshot | None,
    expected: tuple[type[LazyimgError], str],
) -> None:
    with pytest.raises(LazyimgError) as caught:
        check_commit(replace(WANTED, parent=parent), snapshot, below)
    assert refusal(caught) == expected


def test_remove() -> None:
    check_remove(LAYER, has_children=False)
    with pytest.raises(
        WrongStateError, match=r"^snapshot layer: others stand on it; remove those first$"
    ):
        check_remove(LAYER, has_children=True)


@pytest.mark.parametrize(
    ("sent", "mask", "expected"),
    [
        ({"b": "2"}, [], {"b": "2"}),
        ({"b": "2"}, ["labels"], {"b": "2"}),
        ({"b": "2", "c": "3"}, ["labels.b"], {"a": "1", "b": "2"}),
        ({}, ["labels.a"], {}),
        ({"a": ""}, ["labels.a"], {}),
        ({"a": ""}, [], {}),
        ({"x.y/z": "4"}, ["labels.x.y/z"], {"a": "1", "x.y/z": "4"}),
    ],
)
def test_labels_change(sent: dict[str, str], mask: list[str], expected: dict[str, str]) -> None:
    changed = update_labels(replace(ACTIVE, labels={"a": "1"}), sent, mask, 9)
    assert changed == replace(ACTIVE, labels=expected, updated=9)


@pytest.mark.parametrize("path", ["kind", "labels.", "", "labelsx"])
def test_only_labels_change(path: str) -> None:
    with pytest.raises(UsageError, match=r"^snapshot one: '.*' cannot be changed, only labels$"):
        update_labels(ACTIVE, {}, [path], 9)


def test_changed_labels_are_checked() -> None:
    with pytest.raises(UsageError, match="and its value have"):
        update_labels(ACTIVE, {"a": "x" * MAX_LABEL}, [], 9)


def test_ids_of_a_user_namespace() -> None:
    assert parse_id_maps("one", {"other": "label", UID_MAP: ""}) is None
    labels = {UID_MAP: "1000:0:1,0:1:1000", GID_MAP: f"0:{MAX_ID}:1"}
    maps = parse_id_maps("one", labels)
    assert maps == IdMaps(((1000, 0, 1), (0, 1, 1000)), ((0, MAX_ID, 1),))
    assert maps.root == (1, MAX_ID)


@pytest.mark.parametrize(
    ("uids", "problem"),
    [
        ("", f"of {UID_MAP} and {GID_MAP} one alone says nothing"),
        ("0:5:0", f"label {UID_MAP}: '0:5:0' is not CONTAINER:HOST:COUNT"),
        ("0:5", f"label {UID_MAP}: '0:5' is not CONTAINER:HOST:COUNT"),
        ("0:-5:1", f"label {UID_MAP}: '0:-5:1' is not CONTAINER:HOST:COUNT"),
        ("0:5:1,", f"label {UID_MAP}: '' is not CONTAINER:HOST:COUNT"),
        ("0:4294967294:2", f"label {UID_MAP}: '0:4294967294:2' is not CONTAINER:HOST:COUNT"),
        ("1:5:9", f"label {UID_MAP}: the container's id 0 is missing"),
    ],
)
def test_ids_that_make_no_sense(uids: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_id_maps("one", {UID_MAP: uids, GID_MAP: "0:5:1"})
    assert refusal(caught) == (UsageError, f"snapshot one: {problem}")
