"""What every snapshotter owes containerd, as tests over its gRPC service.

A subclass gives `client`; the suite runs over lazyimg's service and over containerd's own overlayfs
snapshotter, so that what it asks for is known to be right. Source: containerd,
core/snapshots/snapshotter.go and what its overlayfs snapshotter does.

Keys are made anew for each test; nothing else may use the snapshotter meanwhile.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess
import time
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import pytest

from lazyimg.snapshotter.proto import snapshots_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.snapshot_client import SnapshotClient

GC_ROOT: Final = {"containerd.io/gc.root": "1"}
"""Label that keeps containerd from removing what nobody refers to."""

CAPABILITY: Final = bytes.fromhex("0100000202000000") + bytes(12)
"""The value of security.capability for cap_dac_override=ep, see capability.h."""

LAYERS: Final = 127
"""The most that images have: other tools refuse more."""

OLD: Final = 1_500_000_000
"""A time before it was set; any other is that of the test."""

SEQUENCES: Final = {
    "a file is changed": [
        "mkdir etc; echo 1 >etc/hosts; echo 1 >etc/profile",
        "echo 2 >etc/hosts; chmod 666 etc/profile; mkdir root; echo 2 >root/.profile",
        "echo 3 >>etc/hosts; truncate -s 1 etc/profile",
    ],
    "a directory is removed and made again": [
        "mkdir -p lib/deep/er; touch lib/hidden lib/deep/er/hidden",
        "rm -r lib; mkdir -m 700 lib; touch lib/seen",
        "mkdir lib/deep; touch lib/new",
        "rm -r lib/deep; mkdir lib/deep; touch lib/deep/last",
    ],
    "a file is removed": ["touch foo foobar", "rm foobar", "", "echo again >foobar", "rm foo*"],
    "owners change": [
        "mkdir -p opt/a/b; echo 1 >opt/a/b/file; touch other",
        "chown 1:1 opt opt/a opt/a/b opt/a/b/file; chown 100000:65534 other",
        "chown -R 0:2 opt; chown 2 .",
        "chown 3:3 opt/a; touch new",
    ],
    "modes and owners of directories": [
        "mkdir -m 700 1 2 3 4 5; touch 4/f 5/f; chown 1:1 1 2 3 5 5/f",
        "chown 0:0 2; rmdir 3; chown 1:1 4 4/f; chmod 2775 1; chmod 1777 5",
        "mkdir -m 700 3; chown 1:1 3; rm -r 5; mkdir -m 750 5; chown 1:1 5",
    ],
    "files are renamed": [
        "mkdir 1 some; echo 1 >some/a; echo 2 >some/b; mkfifo some/pipe",
        "echo new >some/x; mv some/x some/a; mv some/b some/c; mv some/pipe 1; mv some/a 1/a",
        "mv 1/a some/b; mv some/c some/b",
    ],
    "directories are renamed": [
        "mkdir -p 1/2/3; echo 1 >1/2/3/file; mkdir full; touch full/x",
        "mv 1 a; mkdir 1; touch 1/new",
        "mv a/2 b; rmdir a; mv 1 a; mv full b",
    ],
    "one kind becomes another": [
        "touch file; mkdir dir; touch dir/in; ln -s file link; mkfifo pipe; mknod null c 1 3",
        "rm file; mkdir file; touch file/in; rm -r dir; ln -s nowhere dir; rm link; touch link",
        "rm -r file; mkfifo file; rm dir; mknod dir b 7 1; rm pipe; mkdir pipe; rm null",
        "rm file dir link; rmdir pipe; echo 4 >file; echo 4 >dir; mkdir link; mknod null c 0 5",
    ],
    "links": [
        "echo 1 >a; ln a b; ln -s a s; mkdir d; ln a d/c",
        "ln -sfn b s; echo 2 >new; ln new newer",
        "rm a d/c; ln -s ../b d/s",
    ],
    "whiteouts in deep places": [
        "mkdir -p a/b/c; for n in 1 2 3 4; do echo $n >a/b/c/$n; done",
        "rm a/b/c/1; rm a/b/c/2; echo 22 >a/b/c/2",
        "rm -r a/b; mkdir -p a/b/c; echo 33 >a/b/c/3",
        "rm -r a",
        "mkdir a; touch a/b",
    ],
    "names": [
        "touch -- -n ' ' 'a b' 'größe' .wh.name ..dots; mkdir .hidden; touch .hidden/.wh..wh..opq",
        "rm .wh.name; echo 2 >' '; mv 'a b' b; rm -r .hidden",
    ],
    "times": [
        "mkdir d; touch -d @1.000000001 d/f; touch -d @1234567890.123456789 d",
        "touch d/g; touch -d @1.5 d/g; touch -h -d @99 d",
        "touch -d @-5 d/f; touch -h -d @100 d",
    ],
}
"""What is done in layers on top of each other, as shell commands, one for each layer."""

_numbers = itertools.count()


def new_key(name: str = "key") -> str:
    return f"{name}-{os.getpid()}-{next(_numbers)}"


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[None]:
    """Expect a call to be answered with a status."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()


@contextmanager
def refused_as_garbage() -> Iterator[None]:
    """Expect a call to be refused for what it says; containerd's own gives no reason of its own."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    codes = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN}
    assert caught.value.code() in codes, caught.value.details()


@contextmanager
def mounted(mounts: list[pb.Mount], target: Path) -> Iterator[Path]:
    """Mount what a snapshotter said, as containerd does."""
    (one,) = mounts
    target.mkdir()
    place, words = shorten(list(one.options))
    subprocess.run(
        ["mount", "-t", one.type, one.source, "-o", ",".join(words), target], check=True, cwd=place
    )
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)
        target.rmdir()


def shorten(words: list[str]) -> tuple[str, list[str]]:
    """Name lower directories from where they all are: options have one page, and some 128 of them.

    containerd does it, too. Gives that place, and the options.
    """
    for number, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == "lowerdir" and ":" in value:
            place = os.path.commonpath(value.split(":"))
            lowers = ":".join(os.path.relpath(lower, place) for lower in value.split(":"))
            return place, [*words[:number], f"lowerdir={lowers}", *words[number + 1 :]]
    return "/", words


def options(mount: pb.Mount) -> dict[str, str]:
    """Give a mount's options; those without a value have ""."""
    return {name: value for name, _, value in (option.partition("=") for option in mount.options)}


class SnapshotsContract:
    """The suite."""

    # Making.

    def test_first_layer_is_a_directory_to_write_into(self, client: SnapshotClient) -> None:
        (mount,) = client.prepare(new_key())
        assert mount.type == "bind"
        assert set(mount.options) == {"rw", "rbind"}
        assert os.listdir(mount.source) == []  # noqa: PTH208
        found = os.stat(mount.source)  # noqa: PTH116
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)

    def test_view_of_nothing(self, client: SnapshotClient) -> None:
        (mount,) = client.view(new_key())
        assert mount.type == "bind"
        assert set(mount.options) == {"ro", "rbind"}

    def test_container_on_one_layer(self, client: SnapshotClient) -> None:
        layer, source = self.layer(client)
        (mount,) = client.prepare(new_key(), layer)
        assert (mount.type, mount.source) == ("overlay", "overlay")
        assert options(mount)["lowerdir"] == source
        assert os.path.isdir(options(mount)["upperdir"])  # noqa: PTH112
        assert os.path.isdir(options(mount)["workdir"])  # noqa: PTH112

    def test_container_on_three_layers(self, client: SnapshotClient) -> None:
        first, one = self.layer(client)
        second, two = self.layer(client, first)
        third, three = self.layer(client, second)
        (mount,) = client.prepare(new_key(), third)
        assert options(mount)["lowerdir"].split(":") == [three, two, one]

    def test_view_of_one_layer(self, client: SnapshotClient) -> None:
        layer, source = self.layer(client)
        (mount,) = client.view(new_key(), layer)
        assert (mount.type, mount.source) == ("bind", source)
        assert set(mount.options) == {"ro", "rbind"}

    def test_view_of_two_layers(self, client: SnapshotClient) -> None:
        first, one = self.layer(client)
        second, two = self.layer(client, first)
        (mount,) = client.view(new_key(), second)
        assert mount.type == "overlay"
        assert options(mount)["lowerdir"].split(":") == [two, one]
        assert not {"upperdir", "workdir"} & options(mount).keys()

    def test_container_has_the_owner_of_the_layer_below(self, client: SnapshotClient) -> None:
        layer, source = self.layer(client)
        os.chown(source, 1234, 5678)
        (mount,) = client.prepare(new_key(), layer)
        found = os.stat(options(mount)["upperdir"])  # noqa: PTH116
        assert (found.st_uid, found.st_gid) == (1234, 5678)

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_key_is_taken(self, client: SnapshotClient, verb: str) -> None:
        key = new_key()
        client.prepare(key)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            getattr(client, verb)(key)

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_parent_is_missing(self, client: SnapshotClient, verb: str) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            getattr(client, verb)(new_key(), "no-such-parent")

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    @pytest.mark.parametrize("below", ["prepare", "view"])
    def test_parent_is_not_committed(self, client: SnapshotClient, verb: str, below: str) -> None:
        parent = new_key()
        getattr(client, below)(parent)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            getattr(client, verb)(new_key(), parent)

    def test_failed_prepare_leaves_its_key_free(self, client: SnapshotClient) -> None:
        key = new_key()
        with refused(grpc.StatusCode.NOT_FOUND):
            client.prepare(key, "no-such-parent")
        client.prepare(key)

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_key_of_a_layer_is_taken(self, client: SnapshotClient, verb: str) -> None:
        layer, _ = self.layer(client)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            getattr(client, verb)(layer)

    def test_one_of_many_gets_a_key(self, client: SnapshotClient) -> None:
        key = new_key()

        def prepare(_: int) -> str:
            try:
                client.prepare(key)
            except grpc.RpcError as error:
                return error.code().name
            return "OK"

        with ThreadPoolExecutor(8) as executor:
            outcomes = Counter(executor.map(prepare, range(8)))
        assert outcomes["OK"] == 1
        # containerd's own may find the key reserved by a call that is not done
        assert outcomes.keys() <= {"OK", "ALREADY_EXISTS", "UNAVAILABLE"}
        client.remove(key)

    def test_many_at_once(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        keys = [new_key() for _ in range(50)]
        with ThreadPoolExecutor(10) as executor:
            mounts = list(executor.map(lambda key: client.prepare(key, layer), keys))
            assert len({options(mount)["upperdir"] for (mount,) in mounts}) == len(keys)
            list(executor.map(client.remove, keys))
        client.remove(layer)

    # Mounts.

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_mounts_are_told_again(self, client: SnapshotClient, verb: str) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        told = getattr(client, verb)(key, layer)
        assert client.mounts(key) == told

    def test_mounts_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.mounts("no-such-snapshot")

    def test_mounts_of_a_committed_one(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.mounts(layer)

    # Commit.

    def test_commit_renames(self, client: SnapshotClient) -> None:
        below, _ = self.layer(client)
        key, name = new_key(), new_key("layer")
        client.prepare(key, below)
        client.commit(name, key, {**GC_ROOT, "own": "label"})
        info = client.stat(name)
        assert (info.name, info.parent, info.kind) == (name, below, pb.COMMITTED)
        assert dict(info.labels) == {**GC_ROOT, "own": "label"}
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat(key)

    def test_commit_does_not_inherit_labels(self, client: SnapshotClient) -> None:
        key, name = new_key(), new_key("layer")
        client.prepare(key, labels={"containerd.io/snapshot/own": "active"})
        client.commit(name, key, GC_ROOT)
        assert "containerd.io/snapshot/own" not in client.stat(name).labels

    def test_times_of_a_committed_one(self, client: SnapshotClient) -> None:
        key, name = new_key(), new_key("layer")
        client.prepare(key)
        before = time.time_ns()
        client.commit(name, key, GC_ROOT)
        info = client.stat(name)
        assert before <= info.created_at.ToNanoseconds() <= time.time_ns()
        assert info.updated_at == info.created_at

    @pytest.mark.parametrize("name", ["itself", "other"])
    def test_commit_to_the_name_of_an_active_one(self, client: SnapshotClient, name: str) -> None:
        keys = {"itself": new_key(), "other": new_key()}
        for key in keys.values():
            client.prepare(key)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            client.commit(keys[name], keys["itself"])
        assert client.stat(keys["itself"]).kind == pb.ACTIVE

    def test_key_is_free_after_commit(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key)
        client.commit(new_key("layer"), key, GC_ROOT)
        client.prepare(key)

    def test_commit_to_a_taken_name(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        client.prepare(key)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            client.commit(layer, key)
        assert client.stat(key).kind == pb.ACTIVE

    def test_commit_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.commit(new_key("layer"), "no-such-snapshot")

    def test_commit_that_was_done_before(self, client: SnapshotClient) -> None:
        key, name = new_key(), new_key("layer")
        client.prepare(key)
        client.commit(name, key, GC_ROOT)
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            client.commit(name, key, GC_ROOT)

    def test_commit_of_a_view(self, client: SnapshotClient) -> None:
        key = new_key()
        client.view(key)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.commit(new_key("layer"), key)

    def test_commit_of_a_committed_one(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.commit(new_key("layer"), layer)

    # Remove.

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_removed_one_is_gone(self, client: SnapshotClient, verb: str) -> None:
        key = new_key()
        getattr(client, verb)(key)
        client.remove(key)
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat(key)
        with refused(grpc.StatusCode.NOT_FOUND):
            client.remove(key)

    def test_layer_with_others_on_it_stays(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        client.prepare(key, layer)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.remove(layer)
        client.remove(key)
        client.remove(layer)
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat(layer)

    def test_layer_with_a_view_on_it_stays(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        view = new_view(client, layer)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            client.remove(layer)
        client.remove(view)
        client.remove(layer)

    def test_names_are_used_again(self, client: SnapshotClient) -> None:
        layer, first = self.layer(client)
        key = new_key()
        client.prepare(key, layer)
        client.remove(key)
        client.view(key, layer)
        client.remove(key)
        (mount,) = client.prepare(key)
        client.remove(layer)
        client.commit(layer, key, GC_ROOT)
        assert mount.source != first
        (mount_again,) = client.view(key, layer)
        assert mount_again.source == mount.source

    def test_chain_goes_from_the_top(self, client: SnapshotClient) -> None:
        first, _ = self.layer(client)
        second, _ = self.layer(client, first)
        third, _ = self.layer(client, second)
        for layer in (first, second):
            with refused(grpc.StatusCode.FAILED_PRECONDITION):
                client.remove(layer)
        for layer in (third, second, first):
            client.remove(layer)

    def test_key_is_free_after_remove(self, client: SnapshotClient, tmp_path: Path) -> None:
        key = new_key()
        with mounted(client.prepare(key), tmp_path / "m") as root:
            (root / "old").write_text("old")
        client.remove(key)
        with mounted(client.prepare(key), tmp_path / "m") as root:
            assert list(root.iterdir()) == []

    # Stat, Update.

    def test_stat_of_a_new_one(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        before = time.time_ns()
        client.prepare(key, layer, {"containerd.io/snapshot/own": "label", **GC_ROOT})
        info = client.stat(key)
        assert (info.name, info.parent, info.kind) == (key, layer, pb.ACTIVE)
        assert before <= info.created_at.ToNanoseconds() <= time.time_ns()
        assert info.updated_at == info.created_at
        assert info.labels["containerd.io/snapshot/own"] == "label"

    def test_stat_of_a_view(self, client: SnapshotClient) -> None:
        key = new_key()
        client.view(key)
        info = client.stat(key)
        assert (info.kind, info.parent) == (pb.VIEW, "")

    def test_stat_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat("no-such-snapshot")

    def test_update_of_all_labels(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels={"old": "1", **GC_ROOT})
        created = client.stat(key).created_at
        info = client.update(key, {"new": "2", **GC_ROOT})
        assert dict(info.labels) == {"new": "2", **GC_ROOT}
        assert info.created_at == created
        assert info.updated_at.ToNanoseconds() > created.ToNanoseconds()
        assert client.stat(key) == info

    def test_update_of_labels_by_name(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels={"old": "1", "gone": "2", **GC_ROOT})
        labels = {"new": "3", "not-masked": "4"}
        info = client.update(key, labels, ["labels.new", "labels.gone"])
        assert dict(info.labels) == {"old": "1", "new": "3", **GC_ROOT}

    def test_update_of_labels_with_dots(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels=GC_ROOT)
        info = client.update(key, {"a.b/c": "d"}, ["labels.a.b/c"])
        assert info.labels["a.b/c"] == "d"

    def test_update_of_the_whole_map(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels={"old": "1", **GC_ROOT})
        assert dict(client.update(key, GC_ROOT, ["labels"]).labels) == GC_ROOT

    @pytest.mark.parametrize("path", ["kind", "parent", "name", "created_at", "nonsense"])
    def test_update_of_what_cannot_change(self, client: SnapshotClient, path: str) -> None:
        key = new_key()
        client.prepare(key, labels=GC_ROOT)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.update(key, {}, [path])
        assert dict(client.stat(key).labels) == GC_ROOT

    def test_update_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.update("no-such-snapshot", {})

    @pytest.mark.parametrize("kind", [pb.VIEW, pb.ACTIVE, pb.COMMITTED])
    @pytest.mark.parametrize("layers", [0, 1])
    def test_update_changes_labels_only(
        self, client: SnapshotClient, kind: pb.Kind, layers: int
    ) -> None:
        parent = self.layer(client)[0] if layers else ""
        key = self.layer(client, parent)[0] if kind == pb.COMMITTED else new_key()
        if kind != pb.COMMITTED:
            (client.view if kind == pb.VIEW else client.prepare)(key, parent, GC_ROOT)
        before = client.stat(key)
        now = time.time_ns()
        info = client.update(key, {"more": "labels", **GC_ROOT}, parent="no-such-parent")
        assert (info.name, info.parent, info.kind) == (key, parent, kind)
        assert info.created_at == before.created_at
        assert now <= info.updated_at.ToNanoseconds() <= time.time_ns()
        assert dict(info.labels) == {"more": "labels", **GC_ROOT}
        assert client.stat(key) == info

    def test_empty_labels_are_none(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels={"empty": "", "own": "1", **GC_ROOT})
        assert dict(client.stat(key).labels) == {"own": "1", **GC_ROOT}
        info = client.update(key, {"own": "", "other": ""}, ["labels.own", "labels.other"])
        assert dict(info.labels) == GC_ROOT

    def test_label_is_too_large(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.prepare(new_key(), labels={"big": "x" * 4096})
        key = new_key()
        client.prepare(key, labels={"big": "x" * 4000, **GC_ROOT})
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.update(key, {"big": "x" * 4096})

    # List.

    def test_list_has_everything(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        active, view = new_key(), new_key()
        client.prepare(active, layer)
        client.view(view, layer)
        listed = {info.name: info for info in client.list()}
        for key in (layer, active, view):
            assert listed[key] == client.stat(key)

    def test_list_of_many(self, client: SnapshotClient) -> None:
        marked = {"test": new_key("many"), **GC_ROOT}
        keys = {new_key() for _ in range(450)}
        for key in keys:
            client.prepare(key, labels=marked)
        listed = client.list(f"labels.test=={marked['test']}")
        assert {info.name for info in listed} == keys
        assert len(listed) == len(keys)
        for key in keys:
            client.remove(key)

    def test_list_by_filters(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        mark = new_key("mark")
        labels = {"mark": mark, "containerd.io/a.b": "x y", **GC_ROOT}
        active, view = new_key("active"), new_key("view")
        client.prepare(active, layer, labels)
        client.view(view, layer, {"mark": mark, **GC_ROOT})
        for text, expected in {
            f"name=={active}": {active},
            f"parent=={layer},kind==view": {view},
            f"labels.mark=={mark}": {active, view},
            f'labels."containerd.io/a.b"=="x y",labels.mark=={mark}': {active},
            f'labels."containerd.io/a.b",labels.mark=={mark}': {active},
            f"labels.mark=={mark},kind!=active": {view},
            f"labels.mark~=^{mark[:-1]}.$,name~=/^view-/": {view},
            f'parent=="{layer}", kind==active': {active},
            f"labels.mark=={mark},labels.mark!={mark}": set(),
            f"name=={active},kind==committed": set(),
        }.items():
            assert {info.name for info in client.list(text)} == expected, text

    def test_list_by_parent(self, client: SnapshotClient) -> None:
        mark = new_key("mark")
        labels = {"mark": mark, **GC_ROOT}
        layer, _ = self.layer(client)
        lowest, upper, view = new_key(), new_key(), new_key()
        client.prepare(lowest, labels=labels)
        client.prepare(upper, layer, labels)
        client.view(view, layer, labels)
        for text, expected in {
            'parent!=""': {upper, view},
            'parent==""': {lowest},
            "parent": {lowest, upper, view},  # which is "" then
            f"parent=={layer}": {upper, view},
            f"parent~=^{layer[:5]},kind==view": {view},
        }.items():
            listed = client.list(f"{text},labels.mark=={mark}")
            assert {info.name for info in listed} == expected, text

    @pytest.mark.parametrize(
        "text", ["name=='x'", "name~=[", "no_such==x", "NAME==x", "labels.none"]
    )
    def test_filter_that_matches_nothing(self, client: SnapshotClient, text: str) -> None:
        assert client.list(text) == []

    def test_others_may_call_during_a_list(self, client: SnapshotClient) -> None:
        mark = new_key("mark")
        keys = {new_key() for _ in range(250)}
        for key in keys:
            client.prepare(key, labels={"mark": mark, **GC_ROOT})
        seen = set()
        for page in client.pages(f"labels.mark=={mark}"):
            for info in page:
                assert client.stat(info.name) == info
                client.remove(info.name)
                seen.add(info.name)
        assert seen == keys

    def test_list_by_any_of_several_filters(self, client: SnapshotClient) -> None:
        first, second = new_key(), new_key()
        client.prepare(first)
        client.view(second)
        listed = client.list(f"name=={first}", f"name=={second}", "name==other")
        assert {info.name for info in listed} == {first, second}

    # Usage.

    def test_usage_of_an_active_one_grows(self, client: SnapshotClient, tmp_path: Path) -> None:
        key = new_key()
        with mounted(client.prepare(key), tmp_path / "m") as root:
            size, inodes = client.usage(key)
            (root / "file").write_bytes(bytes(range(256)) * 4096)
            os.link(root / "file", root / "link")
            (root / "directory").mkdir()
            (root / "directory/symlink").symlink_to("x")
            grown, more = client.usage(key)
        assert more - inodes == 3  # a hard link is none
        assert 1 << 20 <= grown - size < (1 << 20) + (1 << 16)

    def test_usage_of_a_committed_one(self, client: SnapshotClient, tmp_path: Path) -> None:
        below, _ = self.layer(client)
        key, name = new_key(), new_key("layer")
        with mounted(client.prepare(key, below), tmp_path / "m") as root:
            (root / "sparse").write_bytes(b"x")
            os.truncate(root / "sparse", 1 << 30)
        client.commit(name, key, GC_ROOT)
        size, inodes = client.usage(name)
        assert inodes == 2  # its root, and the file
        assert size < 1 << 20
        assert client.usage(new_view(client, name)) == (0, 0)

    def test_usage_has_nothing_of_what_is_below(
        self, client: SnapshotClient, tmp_path: Path
    ) -> None:
        layer = self.written(client, tmp_path, "", {"large": "x" * (1 << 20), "d/small": "x"})
        assert client.usage(layer)[0] >= 1 << 20
        assert client.usage(layer)[1] == 4
        key = new_key()
        mounts = client.prepare(key, layer)
        assert client.usage(key)[1] == 1
        with mounted(mounts, tmp_path / "m") as root:
            (root / "large").read_text()
            (root / "d/new").write_text("x")
            size, inodes = client.usage(key)
            assert (size < 1 << 16, inodes) == (True, 3)
            (root / "large").chmod(0o600)  # copied up
            size, inodes = client.usage(key)
            assert (size >= 1 << 20, inodes) == (True, 4)
            (root / "large").unlink()  # a whiteout
            size, inodes = client.usage(key)
            assert (size < 1 << 16, inodes) == (True, 4)

    def test_usage_of_nothing(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            client.usage("no-such-snapshot")

    # What is in them.

    def test_writes_do_not_reach_the_layer_below(
        self, client: SnapshotClient, tmp_path: Path
    ) -> None:
        layer = self.written(client, tmp_path, "", {"kept": "1", "changed": "2", "gone": "3"})
        key = new_key()
        with mounted(client.prepare(key, layer), tmp_path / "m") as root:
            (root / "changed").write_text("new")
            (root / "gone").unlink()
            (root / "added").write_text("4")
            assert tree(root) == {"kept": "1", "changed": "new", "added": "4"}
        assert self.shown(client, tmp_path, layer) == {"kept": "1", "changed": "2", "gone": "3"}

    def test_layers_on_top_of_each_other(self, client: SnapshotClient, tmp_path: Path) -> None:
        first = self.written(client, tmp_path, "", {"a": "1", "d/x": "1", "d/y": "1", "f": "1"})
        key, second = new_key(), new_key("layer")
        with mounted(client.prepare(key, first), tmp_path / "m") as root:
            (root / "a").unlink()  # a whiteout
            subprocess.run(["rm", "-r", root / "d"], check=True)
            (root / "d").mkdir()  # opaque
            (root / "d/z").write_text("2")
            (root / "f").unlink()
            (root / "f").mkdir()  # a directory instead of a file
            (root / "f/in").write_text("2")
        client.commit(second, key, GC_ROOT)
        key, third = new_key(), new_key("layer")
        with mounted(client.prepare(key, second), tmp_path / "m") as root:
            (root / "a").write_text("3")
            subprocess.run(["rm", "-r", root / "f"], check=True)
            (root / "f").write_text("3")  # and back
            (root / "d/z").rename(root / "moved")
        client.commit(third, key, GC_ROOT)
        assert self.shown(client, tmp_path, first) == {"a": "1", "d/x": "1", "d/y": "1", "f": "1"}
        assert self.shown(client, tmp_path, second) == {"d/z": "2", "f/in": "2"}
        assert self.shown(client, tmp_path, third) == {"a": "3", "f": "3", "moved": "2"}

    @pytest.mark.parametrize("name", SEQUENCES)
    def test_sequence_of_changes(self, client: SnapshotClient, tmp_path: Path, name: str) -> None:
        """Layers show what the same changes make of one directory."""
        flat, layer = tmp_path / "flat", ""
        flat.mkdir()
        for step in SEQUENCES[name]:
            key, below, layer = new_key(), layer, new_key("layer")
            with mounted(client.prepare(key, below), tmp_path / "m") as root:
                assert describe(root) == describe(flat)
                for place in (root, flat):
                    subprocess.run(["sh", "-ec", step], cwd=place, check=True)
                assert describe(root) == describe(flat)
            client.commit(layer, key, GC_ROOT)
        with mounted(client.view(new_key(), layer), tmp_path / "m") as root:
            assert describe(root) == describe(flat)

    def test_attributes_over_layers(self, client: SnapshotClient, tmp_path: Path) -> None:
        flat, layer = tmp_path / "flat", ""
        flat.mkdir()

        def make(root: Path) -> None:
            for path in (root / "file", root / "directory"):
                (path.mkdir if path.name == "directory" else path.touch)()
                os.setxattr(path, "user.one", b"1")
                os.setxattr(path, "trusted.one", b"1")

        def change(root: Path) -> None:
            os.removexattr(root / "file", "user.one")
            os.setxattr(root / "file", "user.two", b"2")
            os.setxattr(root / "directory", "trusted.one", b"")

        def replace(root: Path) -> None:
            (root / "directory").rmdir()
            (root / "directory").mkdir()
            os.setxattr(root / "file", "security.capability", CAPABILITY)

        for step in (make, change, replace):
            key, below, layer = new_key(), layer, new_key("layer")
            with mounted(client.prepare(key, below), tmp_path / "m") as root:
                step(root)
                step(flat)
                assert describe(root) == describe(flat)
            client.commit(layer, key, GC_ROOT)
        with mounted(client.view(new_key(), layer), tmp_path / "m") as root:
            assert describe(root) == describe(flat)

    def test_as_many_layers_as_an_image_has(self, client: SnapshotClient, tmp_path: Path) -> None:
        layer = ""
        for number in range(LAYERS):
            key, below, layer = new_key(), layer, new_key("layer")
            (mount,) = client.prepare(key, below)
            upper = Path(options(mount).get("upperdir", mount.source))
            (upper / "changed").write_text(str(number))
            (upper / f"file{number}").touch()
            client.commit(layer, key, GC_ROOT)
        for mounts in (client.view(new_key(), layer), client.prepare(new_key(), layer)):
            with mounted(mounts, tmp_path / "m") as root:
                assert (root / "changed").read_text() == str(LAYERS - 1)
                assert len(list(root.iterdir())) == LAYERS + 1

    @pytest.mark.parametrize("layers", [1, 2])
    def test_view_cannot_be_written(
        self, client: SnapshotClient, tmp_path: Path, layers: int
    ) -> None:
        layer = ""
        for _ in range(layers):
            layer = self.written(client, tmp_path, layer, {"file": "x"})
        with mounted(client.view(new_key(), layer), tmp_path / "m") as root:
            for change in ((root / "new").touch, (root / "file").unlink):
                with pytest.raises(OSError, match="Read-only file system"):
                    change()

    def test_containers_do_not_see_each_other(self, client: SnapshotClient, tmp_path: Path) -> None:
        layer = self.written(client, tmp_path, "", {"file": "x"})
        with (
            mounted(client.prepare(new_key(), layer), tmp_path / "1") as one,
            mounted(client.prepare(new_key(), layer), tmp_path / "2") as two,
            mounted(client.view(new_key(), layer), tmp_path / "3") as view,
        ):
            (one / "file").write_text("one")
            (two / "file").unlink()
            assert [tree(root) for root in (one, two, view)] == [{"file": "one"}, {}, {"file": "x"}]

    def test_root_of_a_container(self, client: SnapshotClient, tmp_path: Path) -> None:
        """Its owner is that of the layer below, its mode is not."""
        key, layer = new_key(), new_key("layer")
        with mounted(client.prepare(key), tmp_path / "m") as root:
            os.chown(root, 7, 8)
            root.chmod(0o1777)
        client.commit(layer, key, GC_ROOT)
        with mounted(client.prepare(new_key(), layer), tmp_path / "m") as root:
            found = root.stat()
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (7, 8, 0o755)
        with mounted(client.view(new_key(), layer), tmp_path / "m") as root:
            assert stat.S_IMODE(root.stat().st_mode) == 0o1777

    def test_modes_owners_links_and_attributes_stay(
        self, client: SnapshotClient, tmp_path: Path
    ) -> None:
        key, layer = new_key(), new_key("layer")
        with mounted(client.prepare(key), tmp_path / "m") as root:
            (root / "file").write_text("x")
            os.chown(root / "file", 65534, 100_000)
            (root / "file").chmod(0o4751)
            os.utime(root / "file", ns=(1, 1_234_567_890_123_456_789))
            os.setxattr(root / "file", "user.name", b"value")
            os.setxattr(root / "file", "security.capability", CAPABILITY)
            os.link(root / "file", root / "link")
            os.mkfifo(root / "pipe")
        client.commit(layer, key, GC_ROOT)
        with mounted(client.prepare(new_key(), layer), tmp_path / "m") as root:
            found = (root / "file").stat()
            assert (found.st_uid, found.st_gid) == (65534, 100_000)
            assert stat.S_IMODE(found.st_mode) == 0o4751
            assert found.st_mtime_ns == 1_234_567_890_123_456_789
            assert os.getxattr(root / "file", "user.name") == b"value"
            assert os.getxattr(root / "file", "security.capability")[:4] == b"\x01\0\0\x02"
            assert (root / "link").stat().st_ino == found.st_ino
            assert stat.S_ISFIFO((root / "pipe").stat().st_mode)

    # Names.

    @pytest.mark.parametrize(
        "name",
        [
            "default/12/extract-123 sha256:abc",
            "spaces and\ttabs",
            "größe/дом/家/🐳",
            "../../etc",
            "quote\"back\\slash'",
            "long-" + "x" * 1000,
            "as long as can be-" + "x" * 32_600,
            "nul\0and\nlines",
            "%s %00 * ? [a-z]",
        ],
    )
    def test_any_text_is_a_key(self, client: SnapshotClient, name: str) -> None:
        key = f"{name} {new_key()}"
        told = client.prepare(key, labels=GC_ROOT)
        assert client.mounts(key) == told
        assert [info.name for info in client.list() if info.name == key] == [key]
        client.commit(f"{key} layer", key, GC_ROOT)
        assert client.stat(f"{key} layer").name == f"{key} layer"
        client.remove(f"{key} layer")

    def test_keys_that_look_alike(self, client: SnapshotClient) -> None:
        name = new_key("\N{LATIN SMALL LETTER O WITH DIAERESIS}/Key")
        keys = {name, name.lower(), f"{name} ", f" {name}", unicodedata.normalize("NFD", name)}
        for key in keys:
            client.prepare(key, labels=GC_ROOT)
        assert {info.name for info in client.list()} >= keys
        client.remove(name)
        assert {client.stat(key).name for key in keys - {name}} == keys - {name}

    @pytest.mark.parametrize(
        "label",
        [
            "containerd.io/snapshot/cri.image-ref",
            "größe/дом 🐳",
            'quote"back\\slash',
            "nul\0and\nline",
            "x" * 4000,
        ],
    )
    def test_any_text_is_a_label(self, client: SnapshotClient, label: str) -> None:
        key, labels = new_key(), {label: label[:96], **GC_ROOT}
        client.prepare(key, labels=labels)
        assert client.stat(key).labels[label] == label[:96]
        name, value = (json.dumps(text, ensure_ascii=False) for text in (label, label[:96]))
        if "\0" not in label:
            listed = client.list(f"name=={key},labels.{name}=={value}")
            assert [info.name for info in listed] == [key]
        assert client.update(key, {label: "new"}, [f"labels.{label}"]).labels[label] == "new"

    def test_many_labels(self, client: SnapshotClient) -> None:
        key = new_key()
        labels = {f"label{number}": "x" * 40 for number in range(20_000)}
        client.prepare(key, labels={**labels, **GC_ROOT})
        assert dict(client.stat(key).labels) == {**labels, **GC_ROOT}
        assert [dict(info.labels) for info in client.list(f"name=={key}")] == [
            {**labels, **GC_ROOT}
        ]
        client.remove(key)

    def test_labels_without_a_value_are_none(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key, labels={"empty": "", **GC_ROOT})
        assert dict(client.stat(key).labels) == GC_ROOT

    # Garbage. Where containerd's own says UNKNOWN, ours says which argument it is.

    @pytest.mark.parametrize("verb", ["prepare", "view"])
    def test_new_one_without_a_key(self, client: SnapshotClient, verb: str) -> None:
        with refused_as_garbage():
            getattr(client, verb)("")

    @pytest.mark.parametrize("verb", ["mounts", "stat", "remove", "usage"])
    def test_no_key_is_nobodys(self, client: SnapshotClient, verb: str) -> None:
        with refused(grpc.StatusCode.NOT_FOUND):
            getattr(client, verb)("")

    def test_commit_without_a_name(self, client: SnapshotClient) -> None:
        key = new_key()
        client.prepare(key)
        with refused_as_garbage():
            client.commit("", key)
        with refused(grpc.StatusCode.NOT_FOUND):
            client.commit(new_key("layer"), "")
        assert client.stat(key).kind == pb.ACTIVE

    def test_update_without_a_key(self, client: SnapshotClient) -> None:
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.update("", {})

    def test_key_is_too_long(self, client: SnapshotClient) -> None:
        with refused_as_garbage():
            client.prepare("x" * 40_000)
        key = new_key()
        client.prepare(key)
        with refused_as_garbage():
            client.commit("x" * 40_000, key)
        assert client.stat(key).kind == pb.ACTIVE

    def test_label_without_a_name(self, client: SnapshotClient) -> None:
        key = new_key()
        with refused_as_garbage():
            client.prepare(key, labels={"": "value"})
        with refused(grpc.StatusCode.NOT_FOUND):
            client.stat(key)

    @pytest.mark.parametrize("name", ["a", "containerd.io/snapshot/a", "größe"])
    def test_largest_label(self, client: SnapshotClient, name: str) -> None:
        fits = "x" * (4096 - len(name.encode()))
        key = new_key()
        for verb in (client.prepare, client.view):
            with refused(grpc.StatusCode.INVALID_ARGUMENT):
                verb(key, labels={name: fits + "x"})
        client.prepare(key, labels={name: fits, **GC_ROOT})
        for mask in (None, ["labels"], [f"labels.{name}"]):
            with refused(grpc.StatusCode.INVALID_ARGUMENT):
                client.update(key, {name: fits + "x"}, mask)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.commit(new_key("layer"), key, {name: fits + "x"})
        assert client.stat(key).labels[name] == fits

    @pytest.mark.parametrize(
        "mask", [[""], [".labels"], ["Labels"], ["labels "], ["labels.a", "kind"], ["info.labels"]]
    )
    def test_mask_that_says_nothing(self, client: SnapshotClient, mask: list[str]) -> None:
        key = new_key()
        client.prepare(key, labels={"a": "1", **GC_ROOT})
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.update(key, {"a": "2"}, mask)
        assert dict(client.stat(key).labels) == {"a": "1", **GC_ROOT}

    def test_what_else_an_update_says_is_passed_over(self, client: SnapshotClient) -> None:
        layer, _ = self.layer(client)
        key = new_key()
        client.prepare(key, layer)
        info = pb.Info(name=key, parent="other", kind=99, labels=GC_ROOT)  # type: ignore[arg-type]
        updated = client.update_info(info)
        assert (updated.kind, updated.parent) == (pb.ACTIVE, layer)
        assert client.stat(key) == updated

    @pytest.mark.parametrize(
        "text",
        [
            "=", ",", "==x", "name=", "name=x", "name==", "name==a,,b", "name==a b",
            'name=="a', "labels.", 'labels."a', "name==\0", "name===a",
        ],
    )  # fmt: skip
    def test_filter_that_is_none(self, client: SnapshotClient, text: str) -> None:
        with refused_as_garbage():
            client.list(text)

    def test_ref_of_what_cannot_be_lazy(self, client: SnapshotClient) -> None:
        key = new_key()
        labels = {"containerd.io/snapshot.ref": new_key("sha256:chain")}
        client.prepare(key, labels=labels)
        assert client.stat(key).kind == pb.ACTIVE

    def test_cleanup(self, client: SnapshotClient) -> None:
        layer, source = self.layer(client)
        try:
            client.cleanup()
        except grpc.RpcError as error:  # it need not be there
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED  # noqa: PT017
        assert os.path.isdir(source)  # noqa: PTH112
        assert client.stat(layer).kind == pb.COMMITTED

    # Parts.

    @staticmethod
    def layer(client: SnapshotClient, parent: str = "") -> tuple[str, str]:
        """Make an empty layer; give its key and its directory."""
        key, name = new_key(), new_key("layer")
        (mount,) = client.prepare(key, parent)
        client.commit(name, key, GC_ROOT)
        return name, options(mount)["upperdir"] if parent else mount.source

    @staticmethod
    def written(client: SnapshotClient, tmp_path: Path, parent: str, files: dict[str, str]) -> str:
        """Make a layer with files; give its key."""
        key, name = new_key(), new_key("layer")
        with mounted(client.prepare(key, parent), tmp_path / "m") as root:
            for path, text in files.items():
                (root / path).parent.mkdir(exist_ok=True)
                (root / path).write_text(text)
        client.commit(name, key, GC_ROOT)
        return name

    @staticmethod
    def shown(client: SnapshotClient, tmp_path: Path, layer: str) -> dict[str, str]:
        """Give the files that a view of a layer shows."""
        key = new_key()
        with mounted(client.view(key, layer), tmp_path / "m") as root:
            return tree(root)


def new_view(client: SnapshotClient, parent: str) -> str:
    key = new_key()
    client.view(key, parent)
    return key


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """Give all that can be seen of each file below a directory, by its path.

    Times are left out but where a test set them.
    """
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        one = path.lstat()
        kind = stat.S_IFMT(one.st_mode)
        content: object = ""
        if stat.S_ISREG(kind):
            content = path.read_bytes()
        elif stat.S_ISLNK(kind):
            content = path.readlink()
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        found[str(path.relative_to(root))] = (
            one.st_mode, one.st_uid, one.st_gid, one.st_rdev, content, attributes,
            one.st_mtime_ns if one.st_mtime < OLD else 0,
        )  # fmt: skip
    return found


def tree(root: Path) -> dict[str, str]:
    """Give the text of each file below a directory, by its path."""
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }
